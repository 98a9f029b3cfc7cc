"""The learned methods from recipe to coefficients, with every finished fit kept under its content key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from emkit.alignment import importance
from emkit.alignment.calibration import Calibration, Settings, calibrate
from emkit.alignment.fit import Penalty, Problem, fit
from emkit.alignment.losses import Alignment, Entropy
from emkit.alignment.options import EngineOptions
from emkit.alignment.order import authors_order
from emkit.alignment.placement import Placement, place
from emkit.alignment.sources import source
from emkit.alignment.variable import Optimiser
from emkit.coefficients import Coefficients
from emkit.content import surroundings
from emkit.errors import UserError
from emkit.files import atomic_dir, lock, read_json, read_kept, sha256_json, write_json
from emkit.progress import report
from emkit.task_vectors import TaskVectors
from emkit.transforms import View

if TYPE_CHECKING:
    from emkit.recipe import Recipe

FORMAT = 4  # of the kept fits; part of their keys
SCALE = "scale of task_arithmetic"  # the initial value "validated by Task Arithmetic" (Section 3.2)


@dataclass(frozen=True)
class Learned:
    """Coefficients, and how they came about.

    ``stages``: one entry a fit, with the ``options`` that ran, its ``history`` (losses per task and coefficients before
    each step) and, for chunks, ``importance`` and ``chunks`` of every merged tensor. ``calibration``: samples and
    response tokens of each task, so that what was learned from is told.
    """

    coefficients: Coefficients
    stages: list[dict]
    calibration: dict


@dataclass(frozen=True)
class Learner:
    """Fits coefficients for a recipe's models. ``cache`` keeps calibration sets and fits; ``scale`` is the chosen λ;
    ``engine`` says what the machine may give. Settings are what runs: a recipe that is ``like`` the authors' code has
    theirs in it already.

    ``task_vectors`` may be a transformed view; the calibration set is that of the experts themselves.
    """

    backbone: ModuleType
    task_vectors: TaskVectors | View
    recipe: Recipe
    seed: int
    cache: Path
    scale: float | None = None
    progress: bool = False
    engine: EngineOptions = field(default_factory=EngineOptions)

    def expert_merging(self, settings: Mapping) -> Learned:
        """Expert Merging: one coefficient per merged tensor and expert (Section 3.2)."""
        start = Coefficients.constant(self.task_vectors.names, self._initial(settings))
        calibration = self._calibration(settings)
        coefficients, stage = self._aligned(settings, calibration, start, len(start.values))
        return Learned(coefficients, [stage], _described(calibration))

    def adamerging(self, settings: Mapping) -> Learned:
        """AdaMerging: one coefficient per merged tensor and expert, by the entropy of the merged model's predictions.

        The calibration set is Expert Merging's (the same key, so it is made once); its teachers are not looked at.
        """
        initial = self._initial(settings)
        start = Coefficients.constant(self.task_vectors.names, initial)
        calibration = self._calibration({"hidden_layer": "middle", **settings})
        penalty = Penalty(gamma=0.0, initial=initial, count=len(start.values))
        trained = "clamped" if settings["clamp"] else "plain"
        coefficients, stage = self._fit(settings, Entropy(), penalty, calibration, start, trained)
        return Learned(coefficients, [stage], _described(calibration))

    def expert_merging_pp(self, first: Mapping, settings: Mapping) -> Learned:
        """Expert Merging with the settings ``first``, importance, chunks, and a second fit (Section 3.3)."""
        stage1 = self.expert_merging(first)
        names, vectors = self.task_vectors.names, self.task_vectors
        of_layers = importance.layer_importance(stage1.coefficients, vectors, settings.get("normalise", "per_expert"))
        chunks = importance.allocate_chunks(of_layers, settings["budget"], settings["kappa"])
        start = importance.chunked_start(
            stage1.coefficients,
            Coefficients.constant(names, self._initial(settings)),
            chunks,
            settings["fixed"],
            settings["start"],
            {name: vectors.numel(name) for name in names},
        )
        calibration = self._calibration(settings)
        coefficients, stage = self._aligned(settings, calibration, start, settings["budget"] * len(names))
        stage |= {"importance": of_layers, "chunks": chunks}
        return Learned(coefficients, [*stage1.stages, stage], _described(calibration))

    def _aligned(
        self, settings: Mapping, calibration: Calibration, start: Coefficients, count: float
    ) -> tuple[Coefficients, dict]:
        """A fit to the experts: Eq. 3, ``count`` being its L or B."""
        terms = ("beta", "temperature", "hidden_loss", "hidden_weight", "logit_weight")
        objective = Alignment(**{key: settings[key] for key in terms})
        penalty = Penalty(
            gamma=settings["gamma"], initial=self._initial(settings), count=count, kind=settings["regulariser"]
        )
        return self._fit(settings, objective, penalty, calibration, start, settings["parameterisation"])

    @cached_property
    def _model(self) -> torch.nn.Module:
        """The base, whose merged weights the fits overwrite (and nothing else of it).

        Every tensor is read before, so that NaN and infinity are found before anything long starts.
        """
        _check_finite(self.task_vectors)
        return self.backbone.load(self.task_vectors.base.path, self.engine.torch_dtype, self.recipe.device)[0]

    @cached_property
    def _placement(self) -> Placement:
        """Where the fits read θ_base and the task vectors; made when the experts have had their turn on the device."""
        return place(self.task_vectors, self._model, self.engine)

    def _initial(self, settings: Mapping) -> dict[str, float]:
        """ᾱ_k of each expert, in the experts' order: the chosen λ, a number, or a number for each."""
        initial = settings["initial"]
        if initial == SCALE:
            if self.scale is None:
                raise UserError(f"initial '{SCALE}' needs that scale: choose it on the validation items first")
            initial = self.scale
        if isinstance(initial, Mapping):
            return {name: float(initial[name]) for name in self.task_vectors.experts}
        return dict.fromkeys(self.task_vectors.experts, float(initial))

    def _calibration(self, settings: Mapping) -> Calibration:
        given = self.recipe.data["calibration"]
        blocks = self.backbone.blocks(self._model)
        layer = blocks // 2 if settings["hidden_layer"] == "middle" else settings["hidden_layer"]
        if not 1 <= layer <= blocks:
            raise UserError(f"hidden_layer is block {layer}, the model has blocks 1 to {blocks}")
        wanted = {key: given[key] for key in ("samples", "response_tokens", "max_new_tokens") if key in given}
        return calibrate(
            self.backbone,
            self._model,
            self.task_vectors,
            source(given, self.recipe.backbone),
            Settings(hidden_layer=layer, tokens=settings["tokens"], **wanted),
            self.seed,
            self.cache,
            self.progress,
        )

    def _fit(
        self,
        settings: Mapping,
        objective: Alignment | Entropy,
        penalty: Penalty,
        calibration: Calibration,
        start: Coefficients,
        trained: str,
    ) -> tuple[Coefficients, dict]:
        """A fit's coefficients and stage entry; from the cache if the same fit was finished before."""
        order = "tasks" if self.recipe.like is None else authors_order(self.recipe.backbone)
        optimiser = Optimiser(**settings["optimiser"])
        checkpoints = {"base": self.task_vectors.base, **self.task_vectors.checkpoints}
        key = sha256_json(
            {
                "format": FORMAT,
                "backbone": self.backbone.__name__,
                "models": {name: checkpoint.sha256() for name, checkpoint in checkpoints.items()},
                "surroundings": surroundings(self.recipe.device),
                "transforms": list(self.task_vectors.identity),
                "calibration": calibration.keys,
                "start": start.to_json(),
                "problem": [repr(part) for part in (objective, penalty, optimiser, trained, order)],
                "seed": self.seed,
                "engine": self.engine.identity,
            }
        )
        folder = self.cache / "fits" / key
        state = folder.with_suffix(".state.json")
        with lock(folder.with_suffix(".lock")):
            found = read_kept(folder, _read_fit)
            if found is None:
                problem = Problem(
                    backbone=self.backbone,
                    model=self._model,
                    task_vectors=self._placement,
                    calibration=calibration,
                    objective=objective,
                    penalty=penalty,
                    order=order,
                )
                result = fit(
                    problem,
                    start=start,
                    optimiser=optimiser,
                    parameterisation=trained,
                    seed=self.seed,
                    engine=self.engine,
                    state=state,
                    progress=self.progress,
                )
                with atomic_dir(folder) as part:
                    result.coefficients.save(part / "coefficients.json")
                    write_json(part / "history.json", result.history)
                found = _read_fit(folder)
            state.unlink(missing_ok=True)
        coefficients, history = found
        stated = {**settings, "optimiser": optimiser.model_dump(), "order": order}
        return coefficients, {"initial": dict(penalty.initial), "options": stated, "history": history}


def _read_fit(folder: Path) -> tuple[Coefficients, list[dict]]:
    """Coefficients and history of a finished fit."""
    return Coefficients.load(folder / "coefficients.json"), read_json(folder / "history.json")


def _described(calibration: Calibration) -> dict:
    return {
        name: {"samples": task.samples, "response_tokens": task.response_tokens, "images": len(task.sequences)}
        for name, task in calibration.tasks.items()
    }


def _check_finite(task_vectors: TaskVectors | View) -> None:
    """``UserError`` where a tensor of the base or an expert is not finite."""
    while isinstance(task_vectors, View):
        task_vectors = task_vectors.inner
    for number, name in enumerate(task_vectors.names):
        report("task vectors read", number, len(task_vectors.names))
        task_vectors.read(name)
