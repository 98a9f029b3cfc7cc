"""``make reproduce-table1`` and its like: run what is missing under a lock of our own, show progress, publish.

What is current is decided here, by content keys alone (:mod:`eval.keys`): :func:`prune` removes every target that no
longer holds, then Snakemake makes what is missing. Order, jobs at once, retries and clusters are Snakemake's; its file
times, recorded parameters and marks of incomplete files are not used (targets appear whole, by a rename), nor is its
lock, which survives a ``kill -9``: a run holds an advisory lock that dies with its holders.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from emkit.disk import unwritable
from emkit.errors import UserError
from emkit.files import atomic_write, write_json
from eval import committed, devices, models, notebooks, prompts, remaining, scale, scores, table_files
from eval.judge import estimate, upstream
from eval.judge.service import KEY_VARIABLE
from eval.places import EVALUATION, VALIDATION
from eval.plan import Plan
from eval.progress import Display
from eval.summary import Summary
from eval.threads import ONE_THREAD

CLUSTER = Path(__file__).parent / "cluster"  # Snakemake's own profiles: where jobs run
TICK, SHARE = 0.5, 0.02  # seconds between looks at the files, at least; and the part of the time that they may take
TAIL = 15  # lines of the log shown when a job broke


def reproduce(
    plans: Sequence[Plan], jobs: int, summaries: Sequence[Summary] = (), snakemake: Sequence[str] = ()
) -> int:
    """Bring the tables and notebooks of all ``plans`` up to date; returns the exit status (1: some cell failed).

    Everything is checked before anything runs. A table whose run breaks off does not keep the next one waiting; its
    error is raised at the end. ``summaries`` are written when the tables that they sum up were run; ``snakemake``:
    further arguments of Snakemake's (:func:`with_profiles`).
    """
    for plan in plans:
        _ = plan.protocol  # checks the benchmarks
        if here(snakemake):
            devices.check(plan.profile.device)
        models.check(plan)
        if plan.profile.prompts is not None:
            prompts.check_ours(plan)
    for plan in plans:
        announce_judge(plan)
    with contextlib.ExitStack() as held:
        folders = dict.fromkeys(plan.run for plan in plans)  # tables of one backbone share theirs
        locks = {folder: held.enter_context(_lock(folder / "lock")) for folder in folders}
        for plan in plans:
            _writable(plan.home)
        broken = _run([(plan, prune(plan), locks[plan.run]) for plan in plans], jobs, with_profiles(snakemake))
        for plan in plans:
            if plan.notebook.is_file():  # the last thing that a run makes
                publish(plan)
    if broken is not None:
        raise broken
    for summary in summaries:
        print(f"table:    {summary.write()}")
    return max([report(plan) for plan in plans])


def with_profiles(arguments: Sequence[str]) -> list[str]:
    """Snakemake's ``arguments``, where ``--profile NAME`` may name a folder of ``eval/cluster``."""
    found = list(arguments)
    for i, (flag, name) in enumerate(itertools.pairwise(arguments), start=1):
        if flag == "--profile" and (CLUSTER / name / "config.yaml").is_file():
            found[i] = str(CLUSTER / name)
    return found


def _run(pruned: Sequence[tuple[Plan, set[Path], int]], jobs: int, more: Sequence[str]) -> UserError | None:
    """Run what is missing, table after table, under one display; returns the first error."""
    started, missing, first = time.time(), [each for each in pruned if not each[0].notebook.is_file()], None
    for plan, *_ in pruned:
        if plan.notebook.is_file():
            print(f"{plan.table.title}: nothing to do: every score stands")
    watch = remaining.Watch([(plan, standing) for plan, standing, _ in missing], started)
    display = Display(watch.count, signs=watch.running, left=watch.left)
    for plan, _, lock in missing:
        log = plan.run / "log" / f"{plan.name}.log"
        print(f"{plan.table.title}, profile {plan.profile.name}, {jobs} jobs at once; log: {log}", flush=True)
        try:
            _snakemake(plan, [f"--cores={jobs}", *_gpus(plan, more), *more], log, lock, display)
        except UserError as error:
            first = first or UserError(f"{plan.table.title}: {error}")
    return first


def here(snakemake: Sequence[str]) -> bool:
    """Whether jobs run on this machine, by Snakemake's arguments: not where a profile or executor sends them away."""
    return not any(word.partition("=")[0] in ("--profile", "--workflow-profile", "--executor") for word in snakemake)


def _gpus(plan: Plan, more: Sequence[str]) -> list[str]:
    """Snakemake's arguments for as many jobs at once as this machine has GPUs, for those that take one."""
    asked = any(word.partition("=")[0] in ("--resources", "--res") for word in more)
    if not plan.on_gpu or asked or not here(more):
        return []
    return [f"--resources=gpu={len(devices.visible())}"]


def announce_judge(plan: Plan) -> None:
    """Say what a paid judge will cost; ``UserError`` when no cap is set, or one below the estimate."""
    if upstream.mode() == "replay" or not estimate.total(plan):
        return
    print(estimate.text(plan), end="", flush=True)
    cap = estimate.cap_of(plan)
    if cap is None:
        raise UserError("the judge costs money: say with --max-usd how much it may cost at most")
    if (needed := estimate.spent(plan) + estimate.total(plan)) > cap:
        raise UserError(
            f"the judge will have cost about ${needed:.2f} in the end, the cap is ${cap:g}: raise --max-usd"
        )
    if not os.environ.get(KEY_VARIABLE):
        print(f"no {KEY_VARIABLE} in the environment: judged cells will be 'no judge'", file=sys.stderr)


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


def prune(plan: Plan) -> set[Path]:
    """Remove the targets that no longer hold and what a killed job left; returns the cells that stand."""
    shutil.rmtree(plan.run / "tmp", ignore_errors=True)
    if not models.are_there(plan):
        plan.zoo_stamp.unlink(missing_ok=True)
    prompted = plan.profile.prompts is None or prompts.are_current(plan)
    if not prompted:
        plan.prompts_stamp.unlink(missing_ok=True)
    for split in (VALIDATION, EVALUATION):
        if not plan.data_is_current(split):
            plan.manifest(split).unlink(missing_ok=True)
    standing = set()
    points = {source: plan.points(source) for source in plan.scale_rows}
    for job in [*(point for of in points.values() for point in of), *plan.jobs]:
        valid = {plan.cell(job, name) for name in plan.benchmarks if plan.is_valid(job, name)}
        # what was fitted on files that are to be made anew is looked at again once they are
        if len(valid) < len(plan.benchmarks) or (not prompted and plan.method(job.row).learned):
            plan.stamp(job).unlink(missing_ok=True)
        standing |= valid
    for source, of in points.items():
        if not all(plan.stamp(point).is_file() for point in of) or not scale.is_current(plan, source):
            plan.scale_file(source).unlink(missing_ok=True)
    # the figure beside the table is drawn by code that its notebook calls, too: both are stale at once
    drawn = plan.csv.with_suffix(".png").is_file() and notebooks.is_current(plan)
    if not drawn or not all(plan.stamp(job).is_file() for job in plan.jobs) or not table_files.is_current(plan):
        plan.csv.unlink(missing_ok=True)
    if not plan.csv.is_file():
        plan.notebook.unlink(missing_ok=True)
    return standing


def config(plan: Plan) -> Path:
    """Write what the Snakefile is told, and return its file: on the command line a path could be read as a number."""
    table, profile = plan.asked
    path = plan.run / "log" / f"{plan.name}.config.json"
    write_json(path, {"table": table, "profile": profile, "results": str(plan.home.parent), "python": sys.executable})
    return path


def _snakemake(plan: Plan, how: Sequence[str], log: Path, lock: int, display: Display) -> None:
    command = [sys.executable, "-m", "snakemake", "--snakefile", "Snakefile", "--nolock", *how]
    command += ["--keep-going", "--ignore-incomplete", "--drop-metadata", "--rerun-triggers", "mtime"]
    command += ["--configfile", str(config(plan))]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, pass_fds=(lock,), env=os.environ | ONE_THREAD
        )
        try:
            while process.poll() is None:
                began = time.monotonic()
                display.update()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(TICK, (time.monotonic() - began) / SHARE))
        except BaseException:
            display.clear()
            _end(process)
            raise
    display.update(last=True)
    if process.returncode:
        raise UserError(_what_broke(log))


def _end(process: subprocess.Popen) -> None:
    """End Snakemake with its jobs, for which it would wait."""
    with contextlib.suppress(psutil.NoSuchProcess):
        jobs = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        for job in jobs:
            with contextlib.suppress(psutil.NoSuchProcess):
                job.terminate()
    process.wait()


def _what_broke(log: Path) -> str:
    """The first line in which a job said what is wrong, else where to read on."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if said:
        return f"{said[0]} (log: {log})"
    return "a job broke off; the log's end:\n" + "\n".join(lines[-TAIL:]) + f"\n(whole log: {log})"


def publish(plan: Plan, table: bool = True) -> None:
    """Copy what the run left to the places that are committed, where the bytes differ: the notebook and the table."""
    for source in sorted([*(plan.csv.parent.glob(f"{plan.name}.*") if table else ()), plan.notebook]):
        target = plan.home / source.parent.name / source.name
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            with atomic_write(target) as part:
                shutil.copyfile(source, part)


def report(plan: Plan) -> int:
    """Say where the results are, and which cells have no score: then the exit status is 1."""
    failed: list[str] = []
    judged: Counter[str] = Counter()
    for job in plan.jobs:
        for benchmark in plan.benchmarks:
            cell = scores.read_cell(plan.cell(job, benchmark))
            if cell.status != "ok":
                failed.append(f"{job.name} {benchmark}: {cell.status}: {cell.reason}")
            judged.update(cell.harness.get("judge", {}))
    table, notebook = plan.home / "tables" / plan.name, plan.home / "notebooks" / f"{plan.name}.ipynb"
    texts = [table.with_suffix(".md"), table.with_suffix(".csv")]
    for kind, paths in (("table:", texts), ("figure:", [table.with_suffix(".png")]), ("notebook:", [notebook])):
        print(f"{kind:<9} {paths[0]}{committed.said(paths)}")
    if judged:
        print(f"judge:    {judged['requests']} requests, {judged['unparsable']} unparsable replies")
    if failed:
        again = f"`{plan.command}` tries them again"
        print(f"error: {len(failed)} cells have no score, the first: {failed[0]}; {again}", file=sys.stderr)
    return 1 if failed else 0
