"""Fits of Expert Merging for a notebook: short, kept, measured on samples that no fit has seen.

A *sample* is a pack of unlabeled questions with the expert's own answers, as everywhere in emkit
(:mod:`emkit.alignment.calibration`). Of the samples that are drawn for each task, fits take the first N and the last
few are held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emkit.alignment.calibration import Calibration
from emkit.alignment.learner import Learner
from emkit.alignment.samples import TaskSamples
from emkit.coefficients import Coefficients
from emkit.errors import UserError
from emkit.files import read_json
from emkit.methods.expert_merging import ExpertMerging, aligned
from emkit.results import History
from eval.lessons import alignment, probe
from eval.places import Job


@dataclass(frozen=True)
class Fitted:
    """A fit that ran: its ``coefficients``, the ``options`` it ran with, its ``history``."""

    coefficients: Coefficients
    options: ExpertMerging
    history: History

    @property
    def moved(self) -> float:
        """Mean |α − ᾱ|, the R(α) of Eq. 3, at the end of the fit."""
        start = np.array(self.history.stages[0]["history"][0]["alpha"])  # α before the first step, which is ᾱ
        return float(np.abs(self.coefficients.flat() - start).mean())


@dataclass(frozen=True)
class Setup:
    """Where every fit of a notebook starts: models, N samples of each task, options; :func:`setup` makes it.

    ``options`` differ from the method's defaults and the profile's in what a notebook asks for. ``most`` samples of
    each task may be fitted on, ``held`` more are only looked at.
    """

    zoo: probe.Zoo
    learner: Learner
    given: Mapping[str, Any]
    most: int
    held: int

    @cached_property
    def options(self) -> ExpertMerging:
        """Every option of the method."""
        found = self.zoo.profile.options("expert_merging", self.given, where="notebook: ")
        assert isinstance(found, ExpertMerging)
        return found

    @cached_property
    def start(self) -> Coefficients:
        """α = ᾱ for every expert and tensor: Task Arithmetic."""
        return self.learner.constant(self.options.initial)

    @cached_property
    def calibration(self) -> Calibration:
        """The N samples of each task that fits are made on, with the experts' states."""
        return self.learner.calibration(self.options.hidden_layer, self.options.tokens)

    @cached_property
    def unseen(self) -> Calibration:
        """The samples of each task that no fit has seen."""
        drawn = self.with_samples(self.most + self.held).calibration
        tasks = {name: _last(samples, self.held) for name, samples in drawn.tasks.items()}
        return Calibration(tasks, drawn.hidden_layer, {name: f"{key}, held out" for name, key in drawn.keys.items()})

    def with_samples(self, n: int) -> Setup:
        """The same with ``n`` samples of each task."""
        return replace(self, learner=replace(self.learner, samples=_samples(self.learner.samples, n)))

    def fit(self, **options: Any) -> Fitted:
        """A fit with these options of Expert Merging in place of the setup's; the same one is made once and kept."""
        given = {**self.given, **options}
        given["optimiser"] = {**self.given.get("optimiser", {}), **options.get("optimiser", {})}
        asked = replace(self, given=given)
        start = self.start
        found, stage = aligned(self.learner, asked.options, self.calibration, start, len(start.values))
        return Fitted(found, asked.options, History([stage]))

    def losses(
        self, merge: Coefficients | Mapping[str, float] | float, calibration: Calibration | None = None
    ) -> pd.DataFrame:
        """Eq. 1 and 2 of a merge on the unseen samples (or those given): a row a task, columns ``hidden``, ``logit``.

        Unweighted: no β, and Eq. 1 without the weight w_h.
        """
        live = self.zoo.live.set(merge)
        found = alignment.seen(live, calibration or self.unseen)
        temperature, kind = self.options.temperature, self.options.hidden_loss
        return pd.DataFrame({task: alignment.terms(part, temperature, kind) for task, part in found.items()}).T


def setup(
    zoo: probe.Zoo,
    *,
    samples: int = 5,
    tokens: int = 48,
    most: int = 20,
    held: int = 3,
    initial: float = 0.3,
    steps: int = 20,
    lr: float = 0.05,
    seed: int = 0,
) -> Setup:
    """What a notebook's fits share: ``samples`` N of each task, of ``tokens`` response tokens or more, one a step.

    ``initial`` is ᾱ; every β and the weight of Eq. 1 are 1, as in Eq. 3; what else the profile gives Expert Merging (γ,
    the scale of R) holds. Calibration sets and fits are kept below ``results``, so that the second run takes seconds.
    ``UserError`` where more samples are asked for than ``most``.
    """
    if samples > most:
        raise UserError(f"{samples} samples are to be fitted on, but only {most} are drawn: raise `most`")
    given: dict[str, Any] = {"initial": initial, "beta": dict.fromkeys(zoo.names, 1.0), "hidden_weight": 1.0}
    given["optimiser"] = {"steps": steps, "lr": lr, "batch": 1}
    drawn = zoo.profile.calibration.model_copy(update={"response_tokens": tokens})
    experts = zoo.experts
    assert experts.models is not None, "a zoo is of folders"
    learner = Learner(
        backbone=experts.models.backbone,
        task_vectors=experts.vectors,
        samples=_samples(drawn, samples),
        device=zoo.profile.device,
        seed=seed,
        cache=Path(zoo.results) / zoo.profile.name / ".run" / zoo.backbone / "lessons",
        scale=initial,
    )
    return Setup(zoo, learner, given, most, held)


# ---------------------------------------------------------------------------------------------------- fits side by side
VARIANTS: dict[str, dict[str, Any]] = {
    "both terms": {},
    "hidden states only": {"logit_weight": 0.0},
    "logits only": {"hidden_weight": 0.0},
    "no regulariser": {"gamma": 0.0},
}


def variants(setup: Setup, given: Mapping[str, Mapping[str, Any]]) -> dict[str, Fitted]:
    """A fit for each of some options, by name."""
    return {name: setup.fit(**options) for name, options in given.items()}


def measured(
    setup: Setup, merges: Mapping[str, Fitted | Coefficients], questions: Mapping[str, Sequence[probe.Question]]
) -> pd.DataFrame:
    """What merges do on what no fit has seen: a row a merge and task.

    ``hidden`` and ``logit`` are Eq. 1 and 2 on the unseen samples; ``loss`` (−ln p a token of the gold answers) and
    ``accuracy`` are :mod:`eval.lessons.probe`'s on the ``questions`` of each task.
    """
    lines = []
    for name, merge in merges.items():
        alpha = merge.coefficients if isinstance(merge, Fitted) else merge
        terms = setup.losses(alpha)
        live = setup.zoo.live.set(alpha)
        for task, asked in questions.items():
            line = {"merge": name, "task": task, **terms.loc[task]}
            lines.append({**line, "loss": probe.loss(live, asked), "accuracy": probe.accuracy(live, asked)})
    return pd.DataFrame(lines)


def sweep(setup: Setup, key: str, values: Sequence[float], task: str = "") -> dict[float, Fitted]:
    """A fit for each value of ``gamma``, of ``samples`` (N), or of ``beta``: that of ``task``, all others being 1."""
    if key == "samples":
        return {n: setup.with_samples(int(n)).fit() for n in values}
    if key != "beta":
        return {value: setup.fit(**{key: value}) for value in values}
    if task not in setup.zoo.names:
        raise UserError(f"there is no expert '{task}' whose β could be turned: {', '.join(setup.zoo.names)}")
    return {b: setup.fit(beta={**dict.fromkeys(setup.zoo.names, 1.0), task: b}) for b in values}


def swept(setup: Setup, fits: Mapping[float, Fitted]) -> pd.DataFrame:
    """Of a sweep's fits, on unseen samples, a row a value and task: ``hidden``, ``logit``, and of the fit ``moved``."""
    found = [setup.losses(fit.coefficients).assign(value=value, moved=fit.moved) for value, fit in fits.items()]
    return pd.concat(found).rename_axis("task").reset_index()


def counted(setup: Setup, fits: Mapping[float, Fitted]) -> pd.DataFrame:
    """Of fits on N samples each: Eq. 1 and 2 on those N (``samples`` "fitted") and on the unseen ones ("unseen"), a row
    a value of N, task and kind of samples."""
    found = []
    for n, fit in fits.items():
        for name, calibration in (("fitted", setup.with_samples(int(n)).calibration), ("unseen", setup.unseen)):
            found.append(setup.losses(fit.coefficients, calibration).assign(value=n, samples=name, moved=fit.moved))
    return pd.concat(found).rename_axis("task").reset_index()


def numbers(text: str) -> list[float]:
    """The numbers of a parameter such as ``"0.1, 1, 10"``; ``UserError`` for anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"'{text}' is no list of numbers: write it like 0.1, 1, 10") from error


# -------------------------------------------------------------------------------------------------- of a table's row
def recorded(zoo: probe.Zoo, row: str = "expert_merging") -> History | None:
    """The fit of a table's row as its run left it; None where the row has not been run."""
    plan = zoo.plan
    file = plan.cells(Job(row, plan.seeds(row)[0])) / "history.json"
    return History(read_json(file)["stages"]) if file.is_file() else None


def _samples(drawn: Any, n: int) -> Any:
    return drawn.model_copy(update={"samples": n})


def _last(task: TaskSamples, n: int) -> TaskSamples:
    """The last ``n`` samples of a task alone, counted from 0."""
    first = task.samples - n
    keep = [i for i, sample in enumerate(task.sample_of) if sample >= first]
    lists = {
        name: [getattr(task, name)[i] for i in keep] for name in ("sequences", "features", "final", "hidden", "rows")
    }
    return TaskSamples(name=task.name, sample_of=[task.sample_of[i] - first for i in keep], head=task.head, **lists)
