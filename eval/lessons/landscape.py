"""Loss and accuracy along one task vector and over the plane of two, and what merges lose."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import emkit
from emkit import Experts, Live, Merged, methods
from emkit.coefficients import Coefficients
from emkit.config import default
from emkit.job import Job
from emkit.merging import Context
from eval.lessons import probe
from eval.lessons.probe import Question, Zoo

Tasks = Mapping[str, Sequence[Question]]  # a name of an expert → questions of its columns
METHODS = ("weight_average", "task_arithmetic", "ties", "ta_dare", "tsv", "iso_c", "wudi", "wudi_v2")


def tasks(zoo: Zoo, n: int, seed: int = 0, names: Iterable[str] | None = None) -> dict[str, list[Question]]:
    """``n`` questions of each expert's columns, by expert (of ``names`` alone, where given)."""
    return {name: probe.questions(zoo, name, n, seed) for name in (zoo.names if names is None else names)}


def steps(low: float, high: float, step: float) -> np.ndarray:
    """The multiples of ``step`` from ``low`` to ``high``, 0 being one of them if it lies between."""
    return np.arange(round(low / step), round(high / step) + 1) * step


def walk(live: Live, expert: str, tasks: Tasks, alphas: Iterable[float], accuracy: bool = True) -> pd.DataFrame:
    """θ_base + α τ of one expert, for each α: ``alpha``, ``task``, ``loss`` (nats a token) and ``accuracy`` (0–1)."""
    rows = []
    for alpha in alphas:
        live.set({expert: float(alpha)})
        for task, questions in tasks.items():
            right = probe.accuracy(live, questions) if accuracy else np.nan
            rows.append((float(alpha), task, probe.loss(live, questions), right))
    return pd.DataFrame(rows, columns=["alpha", "task", "loss", "accuracy"])


def ends(live: Live, tasks: Tasks) -> pd.DataFrame:
    """The loss of the ``base`` and of each task's own ``expert`` (its merged tensors), by task."""
    base = scored(live, {"base": 0.0}, tasks).loc["base"]
    own = [scored(live, {task: {task: 1.0}}, {task: asked}).loc[task, task] for task, asked in tasks.items()]
    return pd.DataFrame({"base": base.loc[list(tasks)], "expert": own})


def left(losses: pd.DataFrame, ends: pd.DataFrame) -> pd.DataFrame:
    """How much of the way from the base to each task's expert is left: (L − L_expert) / (L_base − L_expert).

    1 is as the base, 0 as the expert, below 0 better than it. A column for each task of :func:`ends` that ``losses``
    has, NaN where the expert is no better than the base on these questions; and ``mean``, over the others.
    """
    known = [task for task in ends.index if task in losses]
    way = ends.loc[known, "base"] - ends.loc[known, "expert"]
    shares = (losses[known] - ends.loc[known, "expert"]) / way.where(way > 0)
    return shares.assign(mean=shares.mean(axis=1))


def plane(live: Live, pair: tuple[str, str], tasks: Tasks, alphas: Iterable[float]) -> pd.DataFrame:
    """Losses of θ_base + α₁ τ₁ + α₂ τ₂ over a grid: ``first`` (α₁), ``second`` (α₂), and a column a task."""
    grid, rows = [float(alpha) for alpha in alphas], []
    for one in grid:
        for two in grid:
            live.set({pair[0]: one, pair[1]: two})
            rows.append((one, two, *(probe.loss(live, questions) for questions in tasks.values())))
    return pd.DataFrame(rows, columns=["first", "second", *tasks])


def points(live: Live, pair: tuple[str, str], merges: Mapping[str, Any], tasks: Tasks) -> pd.DataFrame:
    """Merges of two experts by label: where each lies in their plane (``first`` and ``second``, its mean coefficients)
    and its own losses, a column a task. A merge is coefficients, of both or of every tensor."""
    found = scored(live, merges, tasks)
    places = [[_mean(merge, expert) for expert in pair] for merge in merges.values()]
    found.insert(0, "first", [first for first, _ in places])
    found.insert(1, "second", [second for _, second in places])
    return found


def _mean(merge: Coefficients | Mapping[str, float], expert: str) -> float:
    if isinstance(merge, Coefficients):
        return float(np.mean([value[merge.experts.index(expert)].mean() for value in merge.values.values()]))
    return float(merge.get(expert, 0.0))


def means(coefficients: Coefficients) -> dict[str, float]:
    """Each expert's coefficient, averaged over the tensors."""
    return {expert: _mean(coefficients, expert) for expert in coefficients.experts}


def scored(live: Live, merges: Mapping[str, Any], tasks: Tasks) -> pd.DataFrame:
    """The loss of every merge (whatever :meth:`emkit.Live.set` takes) on every task: a row a merge."""
    rows = []
    for merge in merges.values():
        live.set(merge)
        rows.append([probe.loss(live, questions) for questions in tasks.values()])
    return pd.DataFrame(rows, index=list(merges), columns=list(tasks))


def merges(zoo: Zoo, scale: float, names: Iterable[str] = METHODS, seed: int = 0) -> dict[str, Merged]:
    """All experts merged by each method: options are the profile's; λ is ``scale`` where Task Arithmetic's is meant,
    else the method's default, for no λ is searched here."""
    found = {}
    for name in names:
        method = methods.get(name)
        given = zoo.profile.options(name, {}).model_dump()
        if method.scale is not None and "scale" not in given:
            summed = method.scale is methods.get("task_arithmetic").scale
            given["scale"] = scale if summed else default(method.scale, zoo.profile.backbone)[0]
        found[name] = emkit.merge(zoo.experts, method=name, seed=seed, **given)
    return found


def short_fit(zoo: Zoo, pair: tuple[str, str], scale: float, steps: int, samples: int, seed: int = 0) -> Coefficients:
    """Expert Merging of two experts from λ = ``scale``: the profile's options, fewer steps and calibration samples.

    Answers of the experts and states are made in a temporary folder, so nothing of it is kept.
    """
    method = methods.get("expert_merging")
    experts = Experts(zoo.named["base"], {name: zoo.named[name] for name in pair}, backbone=zoo.backbone)
    given = dict(zoo.profile.methods.get(method.name, {}))
    given["optimiser"] = {**given.get("optimiser", {}), "steps": steps}
    if isinstance(given.get("beta"), Mapping):
        given["beta"] = {name: given["beta"][name] for name in pair}
    assert experts.models is not None  # which folders always have
    with tempfile.TemporaryDirectory() as cache:
        context: Context[Any] = Context(
            task_vectors=experts.vectors,
            options=methods.resolved(method, given, backbone=zoo.backbone),
            scale=scale,
            seed=seed,
            device=zoo.profile.device,
            backbone=experts.models.backbone,
            calibration=zoo.profile.calibration.model_copy(update={"samples": samples}),
            cache=Path(cache),
            progress=False,
        )
        learned = Job(method, context).run().coefficients
    assert learned is not None  # a linear method
    return learned


# ----------------------------------------------------------------------------------------------------------- sentences
def say_walk(frame: pd.DataFrame, expert: str) -> str:
    """What a walk along τ of ``expert`` does to its own loss and to the others', as Markdown."""
    losses = frame.pivot(index="alpha", columns="task", values="loss")
    own, others = losses[expert], losses.drop(columns=expert)
    best = own.idxmin()
    falls = (
        "falls all the way from" if own.loc[0:best].is_monotonic_decreasing else "is lower, not all the way, than at"
    )
    said = f"The loss on the questions of {expert} {falls} the base to α = {best:g} ({own[0]:.3f} → {own[best]:.3f})"
    if {0, 0.5, 1} <= set(own.index) and own[1] < own[0]:
        half = (own[0] - own[0.5]) / (own[0] - own[1])
        said += f"; half of the way brings {100 * half:.0f} % of what α = 1 does"
    helped = [str(task) for task in others if others.loc[0:, task].idxmin() > 0]
    but = f"Some way along it also lowers the loss on the questions of {' and '.join(helped)}."
    return f"{said}. {but if helped else 'No step along it lowers the loss on the questions of another expert.'}"


def say_plane(frame: pd.DataFrame, points: pd.DataFrame, ends: pd.DataFrame, pair: tuple[str, str]) -> str:
    """Where in the plane the least is left, on its diagonal, and of the experts themselves, as Markdown."""
    mean, alone = 100 * left(frame, ends)["mean"], 100 * left(points, ends)["mean"]
    if mean.isna().any() or alone.isna().any():
        return "Neither expert is better than the base on these few questions, so there is no way to measure on."
    best, line = frame.loc[mean.idxmin()], mean[frame["first"] == frame["second"]].idxmin()
    return (
        f"On average over both tasks, {pair[0]} alone leaves {alone[pair[0]]:.0f} % of the way to the two experts, "
        f"{pair[1]} alone {alone[pair[1]]:.0f} %. One λ for both leaves {mean[line]:.0f} % at best (of this grid, at "
        f"λ = {frame.loc[line, 'first']:g}), a coefficient for each {mean.min():.0f} % (at {best['first']:g} and "
        f"{best['second']:g})."
    )


def say_off_plane(points: pd.DataFrame, ends: pd.DataFrame, fit: str, mean: str) -> str:
    """What a coefficient for every tensor is worth against its mean, as Markdown; empty where nothing was fitted."""
    found = 100 * left(points, ends)["mean"]
    if fit not in found or found.isna().any():
        return ""
    better = "less than" if found[fit] < found[mean] else "no less than"
    return (
        f"{fit} leaves {found[fit]:.0f} % of the way, {better} the {found[mean]:.0f} % of {mean}, its own point on "
        "the plane."
    )
