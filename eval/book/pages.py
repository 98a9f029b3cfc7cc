"""The generated pages of the site, as Markdown."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from urllib.parse import quote

from emkit import explain
from emkit.methods import registry
from eval import scores
from eval.places import Job
from eval.plan import Plan

KEPT = "scores"  # the site's folder of score files


def table(plan: Plan, path: Path) -> str:
    """A table as it was published (``path``, its CSV), each number linked to its row's scores where they are here."""
    with open(path, encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    columns = list(dict.fromkeys(line["benchmark"] for line in lines))
    found: dict[str, dict[str, dict[str, str]]] = {}
    for line in lines:
        found.setdefault(line["method"], {})[line["benchmark"]] = line
    ids = {row.label: row.id for row in plan.rows.values()}
    text = [f"# {plan.table.title}: {plan.table.about}", _explained(plan), f"![{plan.table.title}]({plan.name}.png)"]
    text.append(_lines(["", *columns], [[label, *_cells(plan, ids.get(label), of)] for label, of in found.items()]))
    return "\n\n".join(text) + "\n"


def _explained(plan: Plan) -> str:
    profile = plan.profile.name
    said = f"Scores in percent, ± one standard error, on the profile `{profile}`, as `{plan.command}` makes them."
    if any(map(_is_here, [(plan, job) for job in plan.jobs])):
        return f"{said} Each number leads to the score files that it is the mean of."
    return f"{said} The score files were not there when this page was made; that command makes them."


def _cells(plan: Plan, row: str | None, of: dict[str, dict[str, str]]) -> list[str]:
    texts = [f"{cell['score']} ± {cell['stderr']}" if cell["score"] else cell["status"] for cell in of.values()]
    if row is None or not _jobs(plan, row):
        return texts
    return [f"[{text}]({plan.name}-scores.md#{anchor(plan, row)})" for text in texts]


def _jobs(plan: Plan, row: str) -> list[Job]:
    """The jobs behind a row, of which there are scores; a row that is another one has that one's."""
    return [job for job in plan.jobs if job.row == plan.scored(row) and _is_here((plan, job))]


def _is_here(of: tuple[Plan, Job]) -> bool:
    plan, job = of
    return any(plan.cell(job, name).is_file() for name in plan.benchmarks)


def anchor(plan: Plan, row: str) -> str:
    """The name of a row's section on its table's page of scores."""
    return f"{plan.name}-{row}".replace("_", "-").replace(".", "-").lower()


def rows(plan: Plan) -> str | None:
    """The page behind a table: each row's commands and score files; None where there are no score files."""
    text = []
    for row in plan.rows.values():
        if jobs := _jobs(plan, row.id):
            text.append(f"({anchor(plan, row.id)})=\n## {row.label}\n\n{_commands(plan, jobs)}")
            text.append(_lines(["seed", *plan.benchmarks], [[str(job.seed), *_scores(plan, job)] for job in jobs]))
    if not text:
        return None
    title = f"# {plan.table.title}: the scores behind it"
    about = "Each number is a link to its score file: value, items, standard error, and the hashes of what it rests on."
    return "\n\n".join([title, about, *text]) + "\n"


def _commands(plan: Plan, jobs: list[Job]) -> str:
    table, profile = plan.asked
    more = "" if profile == "mini" else f" --profile {profile}"
    python = ".venv/bin/python -m eval"
    lines = [f"{plan.command}  # the whole table"]
    lines += [f"{python} row {table} {job.row} {job.seed}{more}" for job in jobs]
    lines += [f"{python} explain {table} {jobs[0].row}{more}  # its settings, and where each is from"]
    return "```\n" + "\n".join(lines) + "\n```"


def _scores(plan: Plan, job: Job) -> list[str]:
    cells = [plan.cell(job, name) for name in plan.benchmarks]
    return [_score(path, kept(plan, path)) if path.is_file() else "not run yet" for path in cells]


def kept(plan: Plan, path: Path) -> Path:
    """Where a score file lies in the site."""
    return Path(KEPT) / path.relative_to(plan.home)


def _score(path: Path, place: Path) -> str:
    cell = scores.read_cell(path)
    text = f"{cell.value:.2f}" if cell.status == "ok" else cell.status
    return f'<a href="{quote(str(place))}">{text}</a>'


def _lines(heads: list[str], lines: list[list[str]]) -> str:
    aligned = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, aligned, *lines])


def methods() -> dict[str, str]:
    """Name → page of every method that merges, as ``emkit explain`` says it."""
    found = [method for method in registry().values() if method.merges]
    return {
        method.name: f"# {_name(method.about)}\n\n```text\n{explain.method(method.name)}\n```\n" for method in found
    }


def _name(about: str) -> str:
    return about.splitlines()[0].partition(":")[0]


def method_list() -> str:
    """The chapter's first page: each method in a line."""
    found = [method for method in registry().values() if method.merges]
    lines = [f"- [{method.name}](methods/{method.name}.md): {method.about.splitlines()[0]}" for method in found]
    return "# Methods\n\nAs `emkit explain METHOD` says it.\n\n" + "\n".join(lines) + "\n"


def notebook(text: str) -> str:
    """An executed notebook for the site: its figures at their width, with their alternative texts."""
    data = json.loads(text)
    for cell in data["cells"]:
        for output in cell.get("outputs", []):
            about = output.get("metadata", {}).get("image/png", {})
            if about:
                image = {"alt": about.get("alt", ""), "width": f"{about['width']}px"} if "width" in about else about
                cell["metadata"]["mystnb"] = {"image": image}
    return json.dumps(data, ensure_ascii=False)
