"""How long merges and columns took on this machine, kept so that the rest can be reckoned. No score depends on it."""

from __future__ import annotations

import contextlib
import json
import platform
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from eval.places import EVALUATION, Job
from eval.plan import Plan

_CPUS = Path("/proc/cpuinfo")
MERGE = "merge"  # what a row's merge, its fit included, is called among the times


@dataclass
class Times:
    """Seconds measured on this machine: of a merge by method, and an item by column."""

    found: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> Times:
        """What the runs of the plan's profile left."""
        times, here = cls(), machine(plan.profile.device)
        for line in _lines(_file(plan)):
            if line.get("machine") == here and line.get("seconds", 0) > 0:
                times.found.setdefault(str(line["what"]), []).append(line["seconds"] / max(line["items"], 1))
        return times

    def seconds(self, plan: Plan, jobs: Iterable[Job]) -> tuple[float, list[str]]:
        """Seconds that what is missing of ``jobs`` takes, one after the other; and what nobody has measured."""
        total, unknown = 0.0, []
        for job in jobs:
            missing = [name for name in plan.benchmarks if not plan.is_valid(job, name)]
            asked = {name: _count(plan, job, name) for name in missing}
            for what, items in {**({_merge(plan, job): 1} if missing else {}), **asked}.items():
                if what in self.found:
                    total += items * statistics.median(self.found[what])
                elif what not in unknown:
                    unknown.append(what)
        return total, unknown


def note(plan: Plan, job: Job, what: str, seconds: float) -> None:
    """Keep how long a column of a job took, or its merge (:data:`MERGE`)."""
    items = 1 if what == MERGE else _count(plan, job, what)
    said = {"what": _merge(plan, job) if what == MERGE else what, "items": items, "seconds": round(seconds, 3)}
    with contextlib.suppress(OSError):  # a score is worth more than its time
        path = _file(plan)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:  # one write a line: jobs run side by side
            file.write(json.dumps({**said, "machine": machine(plan.profile.device)}) + "\n")


def machine(device: str) -> str:
    """The processor or GPU that times hold for."""
    if device.startswith("cuda"):
        import torch  # whoever only plans on a CPU need not wait for it

        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "GPU"
    lines = _CPUS.read_text(encoding="utf-8").splitlines() if _CPUS.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def said(plan: Plan) -> str:
    """How long what is missing takes on this machine, at the rates that were measured here."""
    jobs = [*plan.jobs, *(point for row in plan.scale_rows for point in plan.points(row))]
    seconds, unknown = Times.of(plan).seconds(plan, jobs)
    where = machine(plan.profile.device)
    if not seconds and unknown:
        return f"no row was timed on this machine's {where} yet: `{plan.command}` times them as it goes"
    rest = f"; not timed yet: {', '.join(unknown)}" if unknown else ""
    return f"about {_hours(seconds)} of one {where}, at the rates measured here{rest}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"


def _merge(plan: Plan, job: Job) -> str:
    return f"{MERGE} by {plan.method(job.row).name}"


def _count(plan: Plan, job: Job, name: str) -> int:
    column = plan.protocol.columns[name]
    return column.n if job.split == EVALUATION else column.validation_n


def _file(plan: Plan) -> Path:
    return plan.run / "times.jsonl"


def _lines(path: Path) -> list[dict]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            if {"what", "items", "seconds", "machine"} <= set(entry):
                found.append(entry)
        except (ValueError, TypeError):  # cut off: it tells nothing
            continue
    return found
