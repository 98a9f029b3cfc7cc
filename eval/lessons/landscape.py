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
    and its own losses, a column a task and ``mean``. A merge is coefficients, of both or of every tensor."""
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
    """The loss of every merge (whatever :meth:`emkit.Live.set` takes) on every task, and their mean."""
    rows = []
    for merge in merges.values():
        live.set(merge)
        rows.append([probe.loss(live, questions) for questions in tasks.values()])
    frame = pd.DataFrame(rows, index=list(merges), columns=list(tasks))
    return frame.assign(mean=frame.mean(axis=1))


def merges(zoo: Zoo, scale: float, names: Iterable[str] = METHODS, seed: int = 0) -> dict[str, Merged]:
    """All experts merged by each method: options are the profile's; λ is ``scale`` where Task Arithmetic's is meant,
    else the method's default, for no λ is searched here."""
    found = {}
    for name in names:
        method = methods.get(name)
        given = zoo.profile.options(name, {}).model_dump()
        if "scale" in method.needs and "scale" not in given:
            summed = method.scale is methods.get("task_arithmetic").scale
            given["scale"] = scale if summed else default(method.scale, zoo.profile.backbone)[0]
        found[name] = emkit.merge(zoo.experts, method=name, seed=seed, **given)
    return found


def short_fit(zoo: Zoo, pair: tuple[str, str], scale: float, steps: int, samples: int, seed: int = 0) -> Coefficients:
    """Expert Merging of two experts from λ = ``scale``: the profile's options, fewer steps and calibration samples.

    Answers of the experts and states are made in a temporary folder, so nothing of it is kept.
    """
    models, method = zoo.profile.models, methods.get("expert_merging")
    experts = Experts(models.base, {name: models.experts[name] for name in pair}, backbone=zoo.backbone)
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
    """Where along τ of ``expert`` each task's loss is lowest, as Markdown."""
    lowest = frame.loc[frame.groupby("task", sort=False)["loss"].idxmin()].set_index("task")
    parts = [f"{task}: α = {row.alpha:g} ({row.loss:.3f})" for task, row in lowest.iterrows()]
    base = frame[frame["alpha"] == 0].set_index("task")["loss"]
    others = [task for task in lowest.index if task != expert]
    helped = [task for task in others if lowest.loc[task, "loss"] < base[task] and lowest.loc[task, "alpha"] > 0]
    said = f"some way along τ of {expert} also lowers the loss on {' and '.join(helped)}" if helped else ""
    none = f"no step along τ of {expert} lowers the loss on another task"
    return f"Lowest loss along τ of {expert}: {'; '.join(parts)}. Here {said or none}."


def say_plane(frame: pd.DataFrame, pair: tuple[str, str]) -> str:
    """Where the mean loss is lowest in the plane and on its diagonal, as Markdown."""
    mean = frame[list(pair)].mean(axis=1)
    best, equal = frame.loc[mean.idxmin()], frame["first"] == frame["second"]
    line = mean[equal].idxmin()
    return (
        f"On this grid the mean of both losses is lowest, {mean.min():.3f}, at α = {best['first']:g} ({pair[0]}) and "
        f"{best['second']:g} ({pair[1]}); with one λ for both, {mean[line]:.3f} at λ = {frame.loc[line, 'first']:g}."
    )
