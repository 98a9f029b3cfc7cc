"""What a run's display shows: how far each stage is, and how long the rest will take at the rate so far.

Work is counted in columns asked. A fit counts as much as asking all of a row's columns, which is near what it takes on
the `mini` profile (20 to 40 seconds each); on others the time left corrects itself as rows end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from eval import signs
from eval.places import EVALUATION, VALIDATION, Job
from eval.plan import Plan
from eval.progress import Stage
from eval.signs import Sign

SURE = 0.02  # of the work has to be done before a time is told


@dataclass(frozen=True)
class Work:
    """Columns asked, and to be asked in all; fits as the module says."""

    done: float
    total: float

    def __add__(self, other: Work) -> Work:
        return Work(self.done + other.done, self.total + other.total)

    @property
    def share(self) -> float:
        """The part that is done."""
        return self.done / self.total if self.total else 1.0


def work(plan: Plan, jobs: Iterable[Job], is_done: Callable[[Path], bool], fits: Mapping[str, float]) -> Work:
    """The work of ``jobs``; ``fits``: by a job's name, how much of its fit is done."""
    columns, found = len(plan.benchmarks), Work(0, 0)
    for job in jobs:
        asked = sum(is_done(plan.cell(job, name)) for name in plan.benchmarks)
        fit = columns if plan.method(job.row).learned else 0
        fitted = fit if asked else fit * fits.get(job.name, 0.0)
        found += Work(asked + fitted, columns + fit)
    return found


@dataclass
class Fits:
    """How much of each job's fit is done, by the signs of the running jobs; it never falls, as of two fits in a row the
    second would."""

    seen: dict[str, float] = field(default_factory=dict)

    def look(self, signs: Iterable[Sign]) -> Mapping[str, float]:
        """Take up what the signs say now."""
        for sign in signs:
            if sign.total and sign.text.endswith(f"fit step {sign.done}/{sign.total}"):
                self.seen[sign.job] = max(self.seen.get(sign.job, 0.0), sign.done / sign.total)
        return self.seen


@dataclass
class Clock:
    """The time left, from what was done since the first look."""

    first: Work | None = None

    def left(self, now: Work, elapsed: float) -> float | None:
        """Seconds left after ``elapsed`` seconds of work; None while too little was done to tell."""
        self.first = self.first or now
        won = now.done - self.first.done
        if won <= SURE * now.total or won <= 0:
            return None
        return elapsed * (now.total - now.done) / won


def said(seconds: float | None) -> str:
    """A time left in words; empty where nobody knows it."""
    if seconds is None:
        return ""
    return "under a minute left" if seconds < 60 else f"about {round(seconds / 60)} min left"


def stages(plan: Plan, is_done: Callable[[Path], bool], fits: Mapping[str, float]) -> tuple[list[Stage], Work]:
    """How far each stage is, and the work of those that take long; ``fits``: by a job's name, how much of its fit."""
    splits = ([VALIDATION] if plan.scale_rows else []) + [EVALUATION]
    jobs = {"scale": [point for row in plan.scale_rows for point in plan.points(row)], "rows": plan.jobs}
    found = [Stage("models", int(plan.zoo_stamp.is_file()), 1)]
    found.append(Stage("data", sum(plan.manifest(split).is_file() for split in splits), len(splits)))
    whole = Work(0, 0)
    for name, of in jobs.items():
        cells = [is_done(plan.cell(job, column)) for job in of for column in plan.benchmarks]
        ended, part = sum(plan.stamp(job).is_file() for job in of), work(plan, of, is_done, fits)
        if of:
            found.append(Stage(name, sum(cells), len(cells), f"cells, {ended}/{len(of)} rows", part.share))
        whole += part
    ends = [Stage("table", int(plan.csv.is_file()), 1), Stage("notebook", int(plan.notebook.is_file()), 1)]
    return found + ends, whole


class Watch:
    """What a run's display shows of its ``plans``; a cell counts if it stood before the run or is newer."""

    def __init__(self, plans: Sequence[tuple[Plan, set[Path]]], started: float):
        self.plans, self.started = plans, started
        self.fits = {plan.signs: Fits() for plan, _ in plans}  # a job's name is its own within a backbone
        self.clock, self.work = Clock(), Work(0, 0)

    def count(self) -> list[Stage]:
        """Every stage of every table."""
        found, self.work = [], Work(0, 0)
        for plan, standing in self.plans:
            fits = self.fits[plan.signs].look(signs.running(plan.signs))
            each, part = stages(plan, partial(self._is_done, standing), fits)
            prefix = f"{plan.name} " if len(self.plans) > 1 else ""
            found += [stage._replace(name=prefix + stage.name) for stage in each]
            self.work += part
        return found

    def running(self) -> list[str]:
        """What each running job is at."""
        return [sign.line(time.time()) for folder in self.fits for sign in signs.running(folder)]

    def left(self) -> str:
        """How long the rest will take."""
        return said(self.clock.left(self.work, time.time() - self.started))

    def _is_done(self, standing: set[Path], path: Path) -> bool:
        return path in standing or (path.is_file() and path.stat().st_mtime >= self.started)
