"""One row as a job: merge, answer and score every benchmark, one file per cell, then throw the merged weights away.

Cells that stand already are kept, and so are the answers of the cell in progress: a killed job loses a batch of them at
most. What goes wrong in a merge or in a benchmark becomes a cell with status ``failed`` and its reason; the other cells
are scored all the same.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from emkit.files import atomic_write, sha256_json, write_json
from emkit.locks import lock
from emkit.progress import report, section
from eval import asking, devices, memory, merging, scores, signs, times
from eval.judge.errors import NoJudge
from eval.places import Job
from eval.plan import Plan

KEPT = ("coefficients.json", "history.json")  # what a fit leaves beside the weights and a reader may want


def run_job(plan: Plan, job: Job) -> None:
    """Score what is missing of a job and leave its stamp; raises ``UserError`` when nothing can be recorded at all."""
    with lock(plan.run / "locks" / job.split / f"{job.name}.lock"), signs.written(plan.signs, job.name):
        resolved = plan.resolved(job)
        report("checking which scores stand")
        missing = [name for name in plan.benchmarks if not plan.is_valid(job, name)]
        if missing:
            devices.check(plan.profile.device)  # of a cluster's node, say, before its cells say "failed"
            devices.take(plan.profile.device)
            torch.set_num_threads(1)  # sums in another order are other numbers
            with _workspace(plan, job) as folder:
                _score(plan, resolved, missing, folder)
        with atomic_write(plan.stamp(job)) as part:
            part.write_text(f"{job.name}: {len(plan.benchmarks)} cells\n", encoding="utf-8")


@contextlib.contextmanager
def _workspace(plan: Plan, job: Job) -> Iterator[Path]:
    """A folder for merged weights, removed at the end; one that a killed job left is removed first."""
    folder = plan.run / "tmp" / job.split / job.name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _score(plan: Plan, job: Job, benchmarks: list[str], folder: Path) -> None:
    about = {
        name: {"row": job.row, "seed": job.seed, "benchmark": name, **plan.expected(job, name)} for name in benchmarks
    }
    began = time.monotonic()
    try:
        merged = _merged(plan, job, folder, about)
        times.note(plan, job, times.MERGE, time.monotonic() - began)
    except Exception as error:
        for name in benchmarks:
            scores.write_unscored(plan.cell(job, name), "failed", _reason("merging", error), **about[name])
        return
    with asking.opened_judge(plan, benchmarks) as judged:
        for name in benchmarks:
            path, started, resumed = plan.cell(job, name), time.monotonic(), plan.answers(job, name).exists()
            try:
                with section(name):
                    items, harness = asking.ask(merged, name, judged)
                scores.write_scored(path, items, harness=harness, **about[name])
                if not resumed:  # then it took longer than this
                    times.note(plan, job, name, time.monotonic() - started)
                plan.answers(job, name).unlink(missing_ok=True)
            except NoJudge as error:
                scores.write_unscored(path, "no judge", str(error), **about[name])
            except Exception as error:
                scores.write_unscored(path, "failed", _reason("scoring", error), **about[name])
            print(f"{job.name} {name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def _merged(plan: Plan, job: Job, folder: Path, about: Mapping[str, dict]) -> asking.Merged:
    """Merge into ``folder``; what a fit learned is kept beside the cells. ``about``: of the benchmarks' cells."""
    report("opening the models")
    merged = merging.merge(plan, job, folder / "model", plan.cache)
    memory.let_go()
    write_json(plan.cells(job) / "merge.json", merged)
    for name in KEPT:
        if (folder / name).is_file():
            with atomic_write(plan.cells(job) / name) as part:
                shutil.copyfile(folder / name, part)
    identities = {name: sha256_json([merged["model_sha256"], asked]) for name, asked in about.items()}
    return asking.Merged(plan, job, folder / "model", identities)


def _reason(step: str, error: Exception) -> str:
    """One line that says what went wrong where."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{step}: {text}"
