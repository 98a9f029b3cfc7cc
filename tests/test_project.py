"""The house's own promises: versions, targets, what imports what, what is committed."""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eval import keys, profile
from eval import table as tables
from eval.plan import Plan

ROOT = Path(__file__).parent.parent
PROFILES = sorted(profile.FOLDER.glob("*/*.yaml"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def committed() -> list[str]:
    """Tracked files (of an export without a repository: every file that is not ignored has been committed)."""
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


# ---- environment
def locked() -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9_.\-]+)==(\S+)", text("requirements.lock"), re.MULTILINE))


def asked() -> list[str]:
    lines = [line.split("#")[0].strip() for line in text("requirements.in").splitlines()]
    return [re.split(r"[=<>!~]", line)[0] for line in lines if line]


def test_environment_yml_carries_the_locks_versions():
    entries = yaml.safe_load(text("environment.yml"))["dependencies"]
    pip = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    assert dict(line.split("==") for line in pip) == {name: locked()[name] for name in asked()}
    assert "python=3.11" in entries


def test_the_lock_has_hashes_and_no_urls():
    content = text("requirements.lock")
    assert "://" not in content and "--index" not in content and "--find-links" not in content
    blocks = re.split(r"^(?=[A-Za-z0-9_.\-]+==)", content, flags=re.MULTILINE)[1:]
    assert len(blocks) > 100 and all("--hash=sha256:" in block for block in blocks)


def test_the_lock_fits_what_is_asked():
    pinned = [line.split("==") for line in text("requirements.in").splitlines() if "==" in line]
    assert pinned and all(locked()[name] == version.strip() for name, version in pinned)


# ---- Makefile
def targets() -> set[str]:
    names = re.findall(r"^([a-z][a-z0-9-]*):(?!=)", text("Makefile"), re.MULTILINE)
    return set(names)


def explained() -> list[list[str]]:
    lines = re.findall(r"^#: (.*\|.*)$", text("Makefile"), re.MULTILINE)
    return [[part.strip() for part in line.split("|")] for line in lines if "target | what" not in line]


def test_make_explains_every_target_with_needs_and_duration():
    lines = [line for line in explained() if len(line) == 4]
    of_tables = {f"reproduce-{name}" for name in tables.names() if name != "taste"} | {"plan-table1"}
    assert {line[0] for line in lines} == targets() | of_tables
    assert all(all(line) for line in lines)
    assert all(re.match(r"(about )?\d+ (s|min)|at once", line[3]) for line in lines)
    assert "MEASURE" not in text("README.md")


def test_make_alone_prints_every_target():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {name}" in shown for name in targets())


def test_every_target_is_phony():
    phony = re.search(r"^\.PHONY: (.*)$", text("Makefile"), re.MULTILINE)[1].split()
    assert set(phony) == targets() | {"$(TABLES:%=reproduce-%)", "$(TABLES:%=plan-%)"}


def test_a_wrong_python_gives_one_clear_line(tmp_path):
    (tmp_path / "Makefile").write_text(text("Makefile"), encoding="utf-8")
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    fake = tmp_path / "python2.7"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 2.7.18"\nexit 1\n', encoding="utf-8")
    fake.chmod(0o755)
    run = subprocess.run(["make", "setup", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True, text=True, check=False)
    said = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert run.returncode != 0 and len(said) == 1 and "Python 3.9 or newer" in said[0] and "2.7.18" in said[0]
    assert not (tmp_path / ".venv").exists()


def test_ci_lints_then_tests():
    lines = text(".ci/run").splitlines()
    assert lines.index("make lint") < lines.index("make test") and "set -euo pipefail" in lines
    steps = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]


# ---- arrows only go down
def test_importing_emkit_needs_neither_harness_nor_jupyter():
    code = """
import sys
import emkit, emkit.cli, emkit.methods, emkit.backbones.internvl
unwanted = {"vlmeval", "papermill", "nbformat", "IPython", "jupyter_client", "snakemake", "eval"}
print(*sorted(unwanted & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_emkit_never_imports_eval():
    for path in (ROOT / "emkit").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) eval\b", path.read_text(encoding="utf-8"), re.MULTILINE), path


# ---- profiles and tables
@pytest.mark.parametrize("path", PROFILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_value_of_a_profile_has_its_source(path):
    found = profile.load(path)
    named = set(found.sources)
    for method, settings in found.methods.items():
        for key in settings:
            assert f"methods.{method}.{key}" in named, f"methods.{method}.{key} has no source"
    for key in found.calibration.model_fields_set:
        assert f"calibration.{key}" in named or key == "files", f"calibration.{key} has no source"
    assert found.prompts is None or "prompts" in named
    assert {"grid", "seeds"} <= named and bool(found.scales) == ("scales" in named)


TABLES = pytest.mark.parametrize("table", ["table1", "table2", "table3"])
OF_ROWS = pytest.mark.parametrize("table", [name for name in tables.names() if not tables.load(name).averages])


@TABLES
@pytest.mark.parametrize("name", ["mini", "paper"])
def test_the_rows_are_the_papers_table_in_its_order(name, table):
    plan = Plan(table, name)
    rows = tables.published(plan.table)
    labels = [row.label for row in plan.rows.values() if row.method != "reset_expert" and not row.beyond]
    assert labels == list(rows)
    assert not {row.label for row in plan.table.rows if row.beyond} & set(rows)
    assert [*plan.benchmarks, "Avg"] == list(rows["Task Arithmetic"])
    assert plan.benchmarks == list(plan.experts)
    assert set(plan.profile.models.experts) == set(plan.experts.values())
    assert set(plan.protocol.columns) == set(plan.benchmarks)


@OF_ROWS
def test_paper_and_mini_run_the_same_rows(table):
    plans = [Plan(table, name) for name in ("mini", "paper")]
    mini, paper = ({job.row for job in plan.jobs} for plan in plans)
    same = {row for row in plans[1].rows if plans[1].scored(row) != row}  # β is 1 there: Expert Merging itself
    ours = {"mixture", "trade_offs"}  # no checkpoint of the mixture is public; Table 5's weights are chosen on mini
    beyond = {row.id for row in plans[0].table.rows if row.beyond}
    assert mini - paper == (ours | same | beyond) & mini and beyond - set(plans[0].profile.leave_out) <= mini


# ---- what is committed
@OF_ROWS
@pytest.mark.parametrize("name", ["mini", "smoke", "paper"])
def test_no_committed_file_is_a_target_of_the_pipeline(name, table, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = Plan(table, name)
    points = [point for row in plan.scale_rows for point in plan.points(row)]
    produced = {plan.zoo_stamp, plan.csv, plan.notebook}
    produced |= {plan.manifest(split) for split in ("evaluation", "validation")}
    produced |= {plan.stamp(job) for job in [*plan.jobs, *points]} | {plan.scale_file(row) for row in plan.scale_rows}
    produced |= {plan.cell(job, name) for job in [*plan.jobs, *points] for name in plan.benchmarks}
    assert not {str(file) for file in produced} & set(committed())
    names = "\n".join(sorted(map(str, produced)))
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        input=names,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(ignored.stdout.splitlines()) == set(map(str, produced))


def test_source_notebooks_are_prose_and_a_few_lines_of_code():
    sources = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert sources
    for path in sources:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        written = [cell for cell in cells if cell["cell_type"] == "code"]
        code = ["".join(c["source"]) for c in written if "parameters" not in c["metadata"].get("tags", [])]
        prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        assert not any(re.search(r"^\s*(def|class) ", cell, re.MULTILINE) for cell in code), path.name
        lines = [len([line for line in cell.splitlines() if line]) for cell in code]
        assert max(lines) <= 10 and statistics.median(lines) <= 6, path.name
        assert sum(map(len, prose)) >= sum(map(len, code)), path.name


def test_committed_text_has_no_local_paths():
    for name in committed():
        if name.endswith((".py", ".md", ".yaml", ".toml", ".ipynb", "Makefile", "Snakefile", ".cff", ".csv")):
            assert f"{ROOT}/" not in text(name), name


def test_a_models_identity_is_that_of_the_folder_that_is_there_now(tmp_path, monkeypatch):
    """The same relative name in another place, or before and after its folder was made, is another model."""
    found = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        assert keys.model_identity("zoo/base") == "hub:zoo/base"
        Path("zoo/base").mkdir(parents=True)
        Path("zoo/base/config.json").write_text(place)
        found.append(keys.model_identity("zoo/base"))
    assert found[0] != found[1] and not any(identity.startswith("hub:") for identity in found)
