"""``make reproduce-table1``: run what is missing under a lock of our own, show progress, publish the results.

Snakemake orders and runs the jobs. Its own lock survives a ``kill -9``, so it runs with ``--nolock`` under an advisory
lock that dies with its holders; its own idea of "up to date" rests on file times, so stamps whose scores are missing,
failed or scored from something else are removed before it looks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from emkit.errors import UserError
from emkit.files import atomic_write, unwritable
from eval import scores
from eval.plan import EVALUATION, VALIDATION, Job, Plan
from eval.progress import Display

TICK = 0.5  # seconds between looks at the files
TAIL = 15  # lines of the log shown when a job broke


def reproduce(plan: Plan, jobs: int) -> int:
    """Bring a recipe's table and notebook up to date; returns the exit status (1: some cell failed)."""
    plan.check()
    log = plan.run / "log" / "table1.log"
    with _lock(plan.run / "lock") as handle:
        _writable(plan.home)
        missing = prune(plan)
        if missing or not plan.notebook.is_file():
            print(f"profile {plan.recipe.profile}: {missing} of {len(plan.jobs)} rows to score; details in {log}")
        _snakemake(plan, jobs, log, handle)
        publish(plan)
    return report(plan)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[int]:
    """Hold the profile's lock; the descriptor is handed to Snakemake, so the lock lasts as long as either lives."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another run holds {path}: waiting for it to end", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _writable(folder: Path) -> None:
    """Raise ``UserError`` now rather than after an hour when results cannot be written."""
    for name in ("tables", "notebooks"):
        with atomic_write(folder / name / ".writable"):
            pass
        (folder / name / ".writable").unlink()


def prune(plan: Plan) -> int:
    """Remove the stamps that no longer hold and what a killed job left; returns how many rows have to be scored."""
    shutil.rmtree(plan.run / "tmp", ignore_errors=True)
    for source in plan.scale_rows:
        points = [point for point in plan.points(source) if not plan.is_done(point)]
        for point in points:
            plan.stamp(point).unlink(missing_ok=True)
        if points or not plan.scale_is_current(source):
            plan.scale_file(source).unlink(missing_ok=True)
    stale = [job for job in plan.jobs if not plan.is_done(job)]
    for job in stale:
        plan.stamp(job).unlink(missing_ok=True)
    if not plan.zoo_is_built():
        plan.zoo_stamp.unlink(missing_ok=True)
    if not plan.table_is_current():
        plan.table.unlink(missing_ok=True)
    if not plan.notebook_is_current():
        plan.notebook.unlink(missing_ok=True)
    return len(stale)


def _snakemake(plan: Plan, jobs: int, log: Path, lock: int) -> None:
    command = [sys.executable, "-m", "snakemake", "--snakefile", "Snakefile", "--cores", str(jobs), "--nolock"]
    command += ["--rerun-incomplete", "--keep-going", "--rerun-triggers", "mtime", "params", "input"]
    command += ["--config", f"recipe={plan.path}", f"results={plan.home.parent}", f"python={sys.executable}"]
    log.parent.mkdir(parents=True, exist_ok=True)
    display = Display(lambda: count(plan))
    with open(log, "w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, pass_fds=(lock,))
        try:
            while process.poll() is None:
                display.update()
                time.sleep(TICK)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    display.update(last=True)
    if process.returncode:
        raise UserError(_what_broke(log))


def _what_broke(log: Path) -> str:
    """The first line in which a job said what is wrong, else where to read on."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if said:
        return f"{said[0]} (log: {log})"
    return f"a job broke off; the log's end:\n" + "\n".join(lines[-TAIL:]) + f"\n(whole log: {log})"


def count(plan: Plan) -> list[tuple[str, int, int, str]]:
    """How far each stage is: ``(stage, done, total, note)``."""
    splits = ([VALIDATION] if plan.scale_rows else []) + [EVALUATION]
    points = [point for source in plan.scale_rows for point in plan.points(source)]
    ready = sum(plan.manifest(split).is_file() for split in splits)
    stages = [("models", int(plan.zoo_stamp.is_file()), 1, ""), ("data", ready, len(splits), "")]
    if points:
        stages.append(("scale", *_cells(plan, points)))
    stages.append(("rows", *_cells(plan, plan.jobs)))
    return stages + [("table", int(plan.table.is_file()), 1, ""), ("notebook", int(plan.notebook.is_file()), 1, "")]


def _cells(plan: Plan, jobs: list[Job]) -> tuple[int, int, str]:
    """Score files of the rows that have ended or are being scored, out of all, and how many rows have ended."""
    benchmarks = plan.recipe.benchmarks
    ended = [job for job in jobs if plan.stamp(job).is_file()]
    open_jobs = [job for job in jobs if job not in ended]
    done = sum(plan.cell(job, benchmark).is_file() for job in open_jobs for benchmark in benchmarks)
    done = min(done, len(open_jobs) * len(benchmarks) - bool(open_jobs))
    return len(ended) * len(benchmarks) + done, len(jobs) * len(benchmarks), f"cells, {len(ended)}/{len(jobs)} rows"


def publish(plan: Plan) -> None:
    """Copy what the run left to the places that are committed, where the bytes differ."""
    for folder in ("tables", "notebooks"):
        for source in sorted((plan.run / folder).iterdir()):
            target = plan.home / folder / source.name
            if source.name.startswith(".") or (target.is_file() and target.read_bytes() == source.read_bytes()):
                continue
            with atomic_write(target) as part:
                shutil.copyfile(source, part)


def report(plan: Plan) -> int:
    """Say where the results are, and which cells failed: then the exit status is 1."""
    failed = []
    for job in plan.jobs:
        for benchmark in plan.recipe.benchmarks:
            cell = scores.read_cell(plan.cell(job, benchmark))
            if cell.status == "failed":
                failed.append(f"{job.name} {benchmark}: {cell.reason}")
    print(f"table:    {plan.home / 'tables' / 'table1.md'}")
    print(f"notebook: {plan.home / 'notebooks' / 'table1.ipynb'}")
    if failed:
        print(f"error: {len(failed)} cells failed, the first: {failed[0]}", file=sys.stderr)
    return 1 if failed else 0
