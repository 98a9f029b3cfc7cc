"""``make notebooks``: every notebook executed, some at once, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emkit.errors import UserError
from eval import committed, notebooks
from eval import table as tables
from eval.plan import Plan
from eval.threads import ONE_THREAD


def execute(profile: str, results: str, jobs: int) -> int:
    """Execute all of them, ``jobs`` at once, and say what came of each; returns the exit status (1: some failed).

    The notebook of a table that was not run to its end is left as it is: its committed copy shows more.
    """
    plans = {name: plan for name in tables.names() if (plan := plan_of(name, profile, results)) is not None}
    shown = {plan.table.notebook for plan in plans.values()}
    alone = sorted(path.stem for path in notebooks.FOLDER.glob("*.ipynb") if path.stem not in shown)
    ready = [name for name, plan in plans.items() if plan.csv.is_file()]
    for name, plan in plans.items():
        if name not in ready:
            print(f"{name}: left as it is: {plan.table.title} has not been run to its end (`{plan.command}`)")
    names, start = alone + ready, time.monotonic()
    print(f"{len(names)} notebooks, {jobs} at once", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        failed = sum(pool.map(lambda name: _execute(name, profile, results), names))
    print(f"{len(names) - failed} of {len(names)} notebooks executed in {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


def plan_of(name: str, profile: str, results: str) -> Plan | None:
    """The plan of a table that has rows of its own under this profile."""
    try:
        return Plan(name, profile, results)
    except UserError:
        return None


def _execute(name: str, profile: str, results: str) -> bool:
    """Execute one; returns whether it failed."""
    command = [sys.executable, "-m", "eval", "notebook", name, "--profile", profile, "--results", results]
    print(f"{name}: started", flush=True)
    start = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD)
    took = f"{time.monotonic() - start:.0f} s"
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")] or run.stderr.splitlines()[-1:]
        print(f"{name}: failed after {took}: {' '.join(lines)}", flush=True)
        return True
    path = Path(results) / Path(profile).stem / "notebooks" / f"{name}.ipynb"
    print(f"{name}: {took}: {path}{committed.said([path])}", flush=True)
    return False
