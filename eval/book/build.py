"""Lays the site's sources out and has jupyter-book build them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from emkit.errors import UserError
from emkit.files import atomic_dir
from eval import table as tables
from eval.all_notebooks import plan_of
from eval.book import pages
from eval.keys import ROOT
from eval.plan import Plan

TAIL = 15  # lines of the builder's words shown when it fails


def build(profile: str, results: str, out: Path) -> Path:
    """Make the site in ``out`` and return its first page. It needs neither scores nor network; what has not been
    executed or scored is not shown."""
    plans = [plan for name in tables.names() if (plan := plan_of(name, profile, results)) is not None]
    with tempfile.TemporaryDirectory(prefix="emkit-book-") as folder:
        source, made = Path(folder) / "source", Path(folder) / "made"
        lay_out(plans, Path(results) / Path(profile).stem, source)
        command = [
            sys.executable,
            "-c",
            "from jupyter_book.cli.main import main; main()",
            "build",
            str(source),
            "--path-output",
            str(made),
            "-q",
        ]
        run = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        html = made / "_build" / "html"
        if run.returncode or not (html / "intro.html").is_file():
            raise UserError("the site was not built; its builder says:\n" + "\n".join(run.stderr.splitlines()[-TAIL:]))
        _mathjax(html / "_static" / "mathjax")  # not before: jupyter-book would have each page load all of its scripts
        for plan in plans:
            _copy_scores(plan, html)
        with atomic_dir(out) as part:
            shutil.copytree(html, part, dirs_exist_ok=True)
    return out / "index.html"


def lay_out(plans: list[Plan], home: Path, source: Path) -> None:
    """Write every page of the site, and its table of contents, into ``source``."""
    shutil.copytree(ROOT / "docs", source)
    executed = sorted((home / "notebooks").glob("*.ipynb"))
    for path in executed:
        _write(source / "notebooks" / path.name, pages.notebook(path.read_text(encoding="utf-8")))
    shown = [name for plan in plans for name in _table(plan, home / "tables" / f"{plan.name}.csv", source)]
    methods = pages.methods()
    for name, text in methods.items():
        _write(source / "methods" / f"{name}.md", text)
    _write(source / "methods.md", pages.method_list())
    titles = {plan.name: {"title": f"{plan.table.title}: its notebook"} for plan in plans}  # they are all called alike
    of = {
        "Notebooks": [{"file": f"notebooks/{path.stem}", **titles.get(path.stem, {})} for path in executed],
        "Tables": [{"file": name} for name in shown],
    }
    parts = [{"caption": name, "chapters": chapters} for name, chapters in of.items() if chapters]
    sections = [{"file": f"methods/{name}"} for name in methods]
    library = [{"file": "methods", "sections": sections}, {"file": "api"}]
    toc = {"format": "jb-book", "root": "intro", "parts": [*parts, {"caption": "Library", "chapters": library}]}
    _write(source / "_toc.yml", yaml.safe_dump(toc, sort_keys=False))


def _table(plan: Plan, path: Path, source: Path) -> list[str]:
    """Write the pages of one table; returns their names, none where the table has not been made."""
    if not path.is_file():
        return []
    _write(source / f"{plan.name}.md", pages.table(plan, path))
    shutil.copyfile(path.with_suffix(".png"), source / f"{plan.name}.png")
    behind = pages.rows(plan)
    if behind is not None:
        _write(source / f"{plan.name}-scores.md", behind)
    return [plan.name] if behind is None else [plan.name, f"{plan.name}-scores"]


def _copy_scores(plan: Plan, html: Path) -> None:
    for job in plan.jobs:
        for path in (plan.cell(job, name) for name in plan.benchmarks):
            if path.is_file():
                place = html / pages.kept(plan, path)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)


def _mathjax(target: Path) -> None:
    """MathJax itself, which pages otherwise fetch from the network."""
    import jupyter_server_mathjax

    static = Path(jupyter_server_mathjax.__file__).parent / "static"
    shutil.copytree(static, target, ignore=shutil.ignore_patterns("localization", "a11y", "SVG", "otf"))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
