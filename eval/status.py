"""``make status``: what stands of each table, what a run is at now, and what to type for the rest."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Sequence
from pathlib import Path

from eval import signs
from eval.places import Job
from eval.plan import Plan
from eval.summary import Summary


class Standing:
    """Which cells stand; a row that several tables of the same columns show is looked at once."""

    def __init__(self) -> None:
        self.seen: dict[tuple[Path, str], bool] = {}  # whether one stands depends on the table's own benchmark files

    def cells(self, plan: Plan, job: Job) -> int:
        """How many of a job's cells hold what this code and these files would give."""
        return sum(self._stands(plan, job, name) for name in plan.benchmarks)

    def _stands(self, plan: Plan, job: Job, benchmark: str) -> bool:
        key = plan.cell(job, benchmark), plan.drawn
        if key not in self.seen:
            self.seen[key] = plan.is_valid(job, benchmark)
        return self.seen[key]


def text(plans: Sequence[Plan], summaries: Sequence[Summary]) -> str:
    """A line for each table, then what runs now."""
    standing = Standing()
    lines = [_line(plan, standing) for plan in plans]
    lines += [
        f"{summary.table.title:<9} averages of {', '.join(summary.table.averages.values())}" for summary in summaries
    ]
    folders = dict.fromkeys(plan.run for plan in plans)
    for folder in folders:
        lines += [f"running   {sign.line(time.time())}" for sign in signs.running(folder / "signs")]
        if _held(folder / "lock"):
            lines.append(f"a run of {folder.parent.parent.name}/{folder.name} is under way")
    return "\n".join(lines) + "\n"


def _line(plan: Plan, standing: Standing) -> str:
    counts = [standing.cells(plan, job) for job in plan.jobs]
    cells, columns = sum(counts), len(plan.benchmarks)
    rows = sum(count == columns for count in counts)
    whole = rows == len(counts) and plan.notebook.is_file()
    rest = "complete" if whole else f"`{plan.command}` makes the rest"
    return f"{plan.table.title:<9} {cells}/{len(counts) * columns} cells, {rows}/{len(counts)} rows stand; {rest}"


def _held(path: Path) -> bool:
    """Whether a run holds its lock."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
