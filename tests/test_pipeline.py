"""The whole path on `smoke`, in a copy of the repository: killed in the middle of every stage, it ends all the same.

A copy holds what a fresh clone holds (no ignored file); nothing in it is faked but the number of rows and benchmarks.
All three tables are run in one go, as `make reproduce-tables` does; between them they go through every harness.
"""

import contextlib
import csv
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest
import yaml
from small_plan import SMOKE

from emkit.files import read_json
from eval import parameters, scores
from eval.places import EVALUATION, VALIDATION, Job
from eval.plan import Plan
from eval.signs import running
from eval.vlm import client
from eval.workers import client as workers

ROOT = Path(__file__).parent.parent
RECIPE, SIZES, TEXT = (Path(f"few/table{number}.yaml") for number in (1, 2, 3))
PROFILE = "few"  # the folder holds the profile's files, too
KEPT_ROWS = (
    "base",
    "vqa",
    "vqa_reset",
    "weight_average",
    "task_arithmetic",
    "ties",
    "expert_merging",
    "expert_merging_pp",
)
SIZES_ROWS = ("base", "vqa", "weight_average", "task_arithmetic", "ta_dare", "expert_merging", "expert_merging_pp")
TEXT_ROWS = ("base", "chat", "task_arithmetic", "wudi", "wudi_v2", "expert_merging", "expert_merging_pp")
MERGED = ("merge.json", "coefficients.json", "history.json")  # what lies beside a row's scores
LIMIT = 900  # seconds that one stage may take on a busy machine


def clone(folder: Path) -> Path:
    """What a fresh clone of the working tree would hold, with three tables more."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    few(folder / RECIPE, "table1", KEPT_ROWS, ["VizWiz", "MathVista", "ChartQA", "RefCOCO"])
    few(folder / SIZES, "table2", SIZES_ROWS, ["VizWiz", "OCRVQA", "RefCOCO"])
    few(folder / TEXT, "table3", TEXT_ROWS, ["AlpacaEval", "MATH", "MBPP"])
    for path, text in MORE.items():
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def few(path: Path, table: str, rows: Sequence[str], columns: Sequence[str]) -> None:
    """The table ``table`` with some of its rows and columns, and its smoke profile with one seed beside it; ``ties`` is
    a row that is not run yet."""
    data = yaml.safe_load((ROOT / "eval" / "tables" / f"{table}.yaml").read_text(encoding="utf-8"))
    data["rows"] = [row | {"method": None} if row["id"] == "ties" else row for row in data["rows"] if row["id"] in rows]
    data["compare"] = [pair for pair in data["compare"] if set(pair) <= set(rows)]
    data["compare_beyond"] = [pair for pair in data["compare_beyond"] if set(pair) <= set(rows)]
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(data | {"columns": list(columns)}, sort_keys=False), encoding="utf-8")
    text = (SMOKE.parent / f"{data['backbone']}.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^seeds: .*$", "seeds: [0]", text, flags=re.MULTILINE)
    (path.parent / f"{data['backbone']}.yaml").write_text(text, encoding="utf-8")


def plan_of(folder: Path, monkeypatch, recipe: Path = RECIPE) -> Plan:
    monkeypatch.chdir(folder)
    return Plan(recipe, PROFILE)


# Tables like the paper's 8 and 11 (sweeps that share a row with the first table) and 4 (averages), and one of models of
# one's own, with a backbone of which the paper has no table: a file each, but for the models' profile.
MORE = {
    "few/table8.yaml": """
title: Table 8
backbone: internvl
columns: [VizWiz, MathVista, ChartQA, RefCOCO]
published: {file: eval/paper/table8.csv, models: InternVL2.5-1B}
rows:
  - {id: gamma, label: "{}", method: expert_merging, vary: {options.gamma: [0, 0.2]}}
  - {id: expert_merging, label: "5", method: expert_merging}
compare: [[gamma_0, expert_merging]]
learned: [gamma_0.2]
""",
    "few/table11.yaml": """
title: Table 11
backbone: internvl
columns: [VizWiz, MathVista, ChartQA, RefCOCO]
rows:
  - {id: samples, label: "N = {}", method: expert_merging, vary: {calibration.samples: [1]}}
""",
    "few/table4.yaml": """
title: Table 4
averages: {InternVL2.5: few/table1.yaml, Qwen2-VL: few/table2.yaml, Mistral: few/table3.yaml}
published: {file: eval/paper/table4.csv, models: the published models}
rows:
  - {id: expert_merging, label: Expert Merging}
  - {id: expert_merging_pp, label: Expert Merging++}
  - {id: ties, label: TIES Merging}
""",
    "few/own.yaml": """
title: Our own models
backbone: causal_lm
columns: [MATH]
rows:
  - {id: start, label: Start, method: checkpoint, model: base}
  - {id: half, label: Half of both, method: task_arithmetic, scale: 0.5}
""",
    "few/causal_lm.yaml": """
name: smoke
backbone: causal_lm
zoo: mistral-smoke
models:
  base: results/smoke/zoo/mistral/base
  experts: {left: results/smoke/zoo/mistral/math, right: results/smoke/zoo/mistral/code}
calibration: {samples: 1, response_tokens: 8}
grid: [0.1]
seeds: [0]
protocol: {judge_upstream: rules, every_column: {n: 10, validation_n: 8}}
""",
}
SWEPT = {"few/table8.yaml": {"gamma_0", "gamma_0.2"}, "few/table11.yaml": {"samples_1"}}
REPRODUCE = ("reproduce", str(RECIPE), str(SIZES), str(TEXT), *(path for path in MORE if path != "few/causal_lm.yaml"))
REPRODUCE += ("--profile", PROFILE, "--jobs", "2")


def start(folder: Path, step: Sequence[str] = REPRODUCE) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-m", "eval", *step]
    with open(folder / "output", "ab") as output:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def stop(process: subprocess.Popen) -> None:
    """Kill the whole process group with SIGKILL, so that nobody can clean up."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(folder: Path, step: Sequence[str] = REPRODUCE) -> None:
    """Run to the end."""
    process = start(folder, step)
    try:
        status = process.wait(timeout=3 * LIMIT)
    finally:
        stop(process)
    logs = [path.read_text(errors="replace")[-6000:] for path in folder.glob("results/smoke/.run/*/log/*.log")]
    assert status == 0, (folder / "output").read_text() + "".join(logs)


def kill_when(folder: Path, reached, step: Sequence[str] = REPRODUCE) -> None:
    """Run until ``reached()`` and kill the run there."""
    process, began = start(folder, step), time.monotonic()
    try:
        while not reached():
            assert process.poll() is None, "it ended before it could be killed: " + (folder / "output").read_text()
            assert time.monotonic() - began < LIMIT, "it never came to that stage: " + (folder / "output").read_text()
            time.sleep(0.02)
    finally:
        stop(process)


def stages(folder: Path, plan: Plan, sizes: Plan, text: Plan) -> dict:
    """Stage → a test whether the run is in the middle of it; tables come one after another."""
    point = plan.points("task_arithmetic")[0]
    return {
        "zoo": lambda: (folder / "results/smoke/zoo/internvl/base/config.json").is_file(),
        "data": lambda: any(plan.data(EVALUATION).glob("*.tsv")) or any(plan.data(VALIDATION).glob("*.tsv")),
        "scale": lambda: plan.cell(point, "VizWiz").is_file(),
        "fit": lambda: any((plan.run / "cache").rglob("*.state.json")),
        "scoring": lambda: plan.cell(Job("expert_merging", 0), "MathVista").is_file(),
        "notebook": lambda: plan.csv.is_file() and not plan.notebook.is_file(),
        "the second table's fit": lambda: any((sizes.run / "cache").rglob("*.state.json")),
        "the third table's scoring": lambda: text.cell(Job("chat", 0), "MATH").is_file(),
        "a sweep": lambda: (folder / "results/smoke/internvl/gamma_0.2/0/VizWiz.json").is_file(),
    }


def results(folder: Path) -> dict[str, bytes]:
    """The bytes of every published result and score file."""
    home = folder / "results" / "smoke"
    paths = [*home.glob("tables/*"), *home.glob("notebooks/*"), *home.glob("*/*/*/*.json*")]
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The clone of which every test gets a copy."""
    return clone(tmp_path_factory.mktemp("fresh") / "clone")


@pytest.fixture(scope="module")
def undisturbed(fresh, tmp_path_factory):
    """A copy in which the run was never killed."""
    folder = shutil.copytree(fresh, tmp_path_factory.mktemp("undisturbed") / "clone")
    finish(folder)
    return folder


@pytest.mark.timeout(3000)
def test_killed_at_every_stage_it_ends_with_the_identical_results(fresh, undisturbed, tmp_path, monkeypatch):
    folder = shutil.copytree(fresh, tmp_path / "clone")
    plan = plan_of(folder, monkeypatch)
    for stage, reached in stages(folder, plan, Plan(SIZES, PROFILE), Plan(TEXT, PROFILE)).items():
        kill_when(folder, reached)
        print(f"killed in stage {stage}")
    # a row that is taken up again is merged again, and what its merge leaves is written again; its scores are not
    ended = [path for path in folder.glob("results/smoke/[imq]*/*/*/*.json") if path.name not in MERGED]
    scored = {path: path.stat().st_mtime_ns for path in ended}
    finish(folder)
    assert results(folder) == results(undisturbed)
    assert scored and all(path.stat().st_mtime_ns == before for path, before in scored.items())


@pytest.mark.timeout(3000)
def test_killed_while_a_cell_is_being_scored_it_ends_with_the_identical_table(undisturbed, tmp_path, monkeypatch):
    """One cell is missing; the row is killed while the harness is at it, and run once more."""
    folder = shutil.copytree(undisturbed, tmp_path / "clone")
    plan = plan_of(folder, monkeypatch)
    monkeypatch.setattr(workers, "_PACKAGE_ROOT", folder)  # the worker of that copy
    work = client.socket_path(folder / plan.data(EVALUATION)).with_suffix(".work")
    cell, row = plan.cell(Job("base", 0), "MathVista"), ("row", str(RECIPE), "base", "0", "--profile", PROFILE)
    for path in (cell, scores.items_path(cell), plan.csv):
        path.unlink()
    kill_when(folder, lambda: work.is_file() and read_json(work)["id"], row)
    assert not cell.exists() and list(plan.run.glob("tmp/**/*.safetensors"))
    finish(folder, row)
    finish(folder, ("table", str(RECIPE), "--profile", PROFILE))
    assert plan.csv.read_bytes() == (undisturbed / plan.csv).read_bytes()
    assert results(folder) == results(undisturbed)
    assert not list(plan.run.glob("tmp/**/*.safetensors"))


@pytest.mark.timeout(600)
def test_ended_by_a_signal_to_itself_alone_it_ends_its_jobs_too(undisturbed, tmp_path, monkeypatch):
    """As `kill` and batch systems do it: nobody tells Snakemake, which on its own would wait for its jobs."""
    folder = shutil.copytree(undisturbed, tmp_path / "clone")
    plan = plan_of(folder, monkeypatch)
    job = Job("expert_merging", 0)
    for path in (plan.cell(job, "VizWiz"), scores.items_path(plan.cell(job, "VizWiz"))):
        path.unlink()
    step = ("reproduce", str(RECIPE), "--profile", PROFILE, "--jobs", "2")
    process, signs, began = start(folder, step), folder / plan.signs, time.monotonic()
    try:
        while not list(signs.rglob("*.sign")):
            assert process.poll() is None and time.monotonic() - began < LIMIT, (folder / "output").read_text()
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        assert not running(signs), "a job outlived the run"
        with open(folder / plan.run / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        stop(process)
    assert "interrupted; the same command goes on from here" in (folder / "output").read_text()
    finish(folder, step)
    assert results(folder) == results(undisturbed)


@pytest.mark.timeout(600)
def test_again_with_nothing_changed_nothing_is_computed(undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("results/**/*") if path.is_file()}
    finish(undisturbed)
    after = {path: path.stat().st_mtime_ns for path in undisturbed.glob("results/**/*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("recipe", "table", "lines", "statuses"),
    [
        (RECIPE, "table1", 1 + len(KEPT_ROWS) * 5, {"ok", "not run yet"}),
        (SIZES, "table2", 1 + len(SIZES_ROWS) * 4, {"ok"}),
        (TEXT, "table3", 1 + len(TEXT_ROWS) * 4, {"ok"}),
    ],
)
def test_every_cell_is_there_and_merged_weights_are_not(undisturbed, monkeypatch, recipe, table, lines, statuses):
    plan = plan_of(undisturbed, monkeypatch, recipe)
    assert all(plan.is_done(job) for job in plan.jobs)
    assert not list(plan.cells(plan.jobs[0]).parents[1].rglob("*.safetensors"))
    assert not list((plan.run / "tmp").rglob("*.safetensors"))
    found = (undisturbed / f"results/smoke/tables/{table}.csv").read_text(encoding="utf-8").splitlines()
    assert len(found) == lines
    assert {line.split(",")[-1] for line in found[1:]} == statuses
    assert (undisturbed / f"results/smoke/notebooks/{table}.ipynb").is_file()


@pytest.mark.parametrize("table", list(SWEPT))
def test_a_sweep_is_scored_row_by_row_and_a_shared_row_once(undisturbed, monkeypatch, table):
    plan = plan_of(undisturbed, monkeypatch, Path(table))
    assert {job.row for job in plan.jobs} == SWEPT[table] | set(plan.rows) and all(map(plan.is_done, plan.jobs))
    found = {row: read_json(plan.cells(Job(row, 0)) / "coefficients.json") for row in plan.rows}
    assert len({str(coefficients) for coefficients in found.values()}) == len(found)
    log = (plan.run / "log" / f"{plan.name}.log").read_text()
    assert "rule row" in log and f"eval row {table} expert_merging 0" not in log  # scored for the first table
    text = (undisturbed / f"results/smoke/tables/{plan.name}.md").read_text(encoding="utf-8")
    assert ("| 0.2 | 44.79 | 29.75 |" in text) == (plan.table.published is not None)  # Table 8 as published


def test_a_table_of_averages_has_the_averages_of_its_tables(undisturbed):
    found = csv.DictReader((undisturbed / "results/smoke/tables/table4.csv").read_text().splitlines())
    cells = {(line["method"], line["benchmark"]): (line["score"], line["status"]) for line in found}
    for column, table in (("InternVL2.5", "table1"), ("Qwen2-VL", "table2"), ("Mistral", "table3")):
        lines = csv.DictReader((undisturbed / f"results/smoke/tables/{table}.csv").read_text().splitlines())
        averages = {line["method"]: line["score"] for line in lines if line["benchmark"] == "Avg"}
        assert cells["Expert Merging", column] == (averages["Expert Merging"], "ok")
        assert cells["TIES Merging", column] == ("", "not run yet")
    text = (undisturbed / "results/smoke/tables/table4.md").read_text(encoding="utf-8")
    assert "| Expert Merging | 58.11 | 63.34 | 47.43 |" in text and "Avg" not in text


def test_a_table_of_ones_own_models_of_any_backbone(undisturbed):
    text = (undisturbed / "results/smoke/tables/own.md").read_text(encoding="utf-8")
    assert text.startswith("# Our own models, profile `smoke`") and "Published" not in text and "paper" not in text
    assert (
        re.search(r"\| Half of both \| \d+\.\d\d\s±\s", text) and "| Half of both | 0.5 | given by the recipe |" in text
    )
    assert (undisturbed / "results/smoke/causal_lm/half/0/MATH.json").is_file()


def test_one_display_shows_every_table(undisturbed):
    shown = (undisturbed / "output").read_text()
    for table in ("table1", "table2", "table3"):
        assert all(f"{table} {stage}" in shown for stage in ("scale", "rows", "notebook")), table


@pytest.mark.timeout(600)
def test_published_files_come_back_when_they_are_lost(undisturbed):
    table = undisturbed / "results/smoke/tables/table1.csv"
    before = table.read_bytes()
    table.unlink()
    finish(undisturbed)
    assert table.read_bytes() == before


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("table", "profile"), [(RECIPE, PROFILE), ("table1", "mini"), ("table2", "mini"), ("table3", "mini")]
)
def test_in_a_fresh_clone_every_cell_is_yet_to_be_scored(fresh, tmp_path, monkeypatch, table, profile):
    folder = shutil.copytree(fresh, tmp_path / "clone")
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--nolock"]
    command += ["--config", f"table={table}", f"profile={profile}", f"python={sys.executable}"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    monkeypatch.chdir(folder)
    plan = Plan(table, profile)
    points = [point for row in plan.scale_rows for point in plan.points(row)]
    lines = re.findall(r"^ +output: (.*)$", run.stdout + run.stderr, re.MULTILINE)
    planned = {file for line in lines for file in line.split(", ")}
    assert {str(plan.stamp(job)) for job in [*plan.jobs, *points]} <= planned
    assert not any(plan.cell(job, name).exists() for job in plan.jobs for name in plan.benchmarks)


SMALL = {  # on the models that the run has, in seconds
    "01-task-vectors": {"backbone": "internvl", "beside": "", "questions": 2, "fit_steps": 1},
    "02-expert-merging": {
        "backbone": "internvl",
        "samples": 1,
        "tokens": 8,
        "steps": 2,
        "long_steps": 3,
        "questions": 2,
        "held": 1,
        "betas": "1, 10",
        "counts": "1, 2",
        "gammas": "0, 5",
    },
    "03-importance": {"backbones": "internvl", "steps": 1},
    "04-expert-merging-plus-plus": {"backbone": "internvl", "steps": 2, "samples": 1, "draws": 1, "questions": 2},
    "05-your-own-experts": {"steps": 5},
}


@pytest.mark.timeout(1800)
def test_every_notebook_runs_at_smoke_size(undisturbed):
    """By nbmake, on the models and scores of this run: most of Table 1's rows have none here."""
    folder = undisturbed / "notebooks" / "at-smoke-size"
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = parameters.read(path)
        known = parameters.declared(notebook, path.name)
        small = {"profile": "smoke", **SMALL.get(path.stem, {})}
        parameters.fill(notebook, {name: small[name] for name in small if name in known}, path.name)
        folder.mkdir(exist_ok=True)
        nbformat.write(notebook, folder / path.name)
    command = [sys.executable, "-m", "pytest", "-q", "--nbmake", "--nbmake-timeout=600", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(undisturbed)}
    run = subprocess.run(
        [*command, str(folder)], cwd=undisturbed, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-5000:]
