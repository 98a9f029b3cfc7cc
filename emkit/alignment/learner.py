"""The learned methods from recipe to coefficients, with every finished fit kept under its content key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from emkit.alignment.calibration import Calibration, Settings, calibrate
from emkit.alignment.fit import FitOptions, Optimiser, fit
from emkit.alignment.importance import allocate_chunks, chunked_start, layer_importance
from emkit.alignment.options import EngineOptions
from emkit.alignment.order import authors_order
from emkit.alignment.placement import Placement, place
from emkit.alignment.sources import source
from emkit.backbones.base import Backbone
from emkit.coefficients import Coefficients
from emkit.content import surroundings
from emkit.errors import UserError
from emkit.files import atomic_dir, lock, read_json, read_kept, sha256_json, write_json
from emkit.progress import report
from emkit.task_vectors import TaskVectors

FORMAT = 3  # of the kept fits; part of their keys
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
    """Fits coefficients. ``calibration`` says which samples; ``cache`` keeps calibration sets and fits; ``scale`` is
    the chosen λ; ``engine`` says what the machine may give. Options are what runs: of a fit that is ``like`` the
    authors' code they are theirs already.

    ``task_vectors`` may be a transformed view; the calibration set is that of the experts themselves.
    """

    backbone: Backbone
    task_vectors: TaskVectors
    calibration: Mapping[str, Any]
    device: str
    seed: int
    cache: Path
    scale: float | None = None
    progress: bool = False
    engine: EngineOptions = field(default_factory=EngineOptions)

    def expert_merging(self, settings: Any) -> Learned:
        """Expert Merging: one coefficient per merged tensor and expert (Section 3.2)."""
        start = Coefficients.constant(self.task_vectors.names, self._initial(settings))
        calibration = self._calibration(settings.hidden_layer, settings.tokens)
        coefficients, stage = self._fit(
            self._options(settings), self._initial(settings), calibration, start, len(start.values)
        )
        return Learned(coefficients, [stage], _described(calibration))

    def adamerging(self, settings: Any) -> Learned:
        """AdaMerging: one coefficient per merged tensor and expert, by the entropy of the merged model's predictions.

        The calibration set is Expert Merging's (the same key, so it is made once); its teachers are not looked at.
        """
        initial = self._initial(settings)
        start = Coefficients.constant(self.task_vectors.names, initial)
        calibration = self._calibration("middle", settings.tokens)
        optimiser = Optimiser(**settings.optimiser.model_dump())
        options = FitOptions(objective="entropy", gamma=0.0, clamp=settings.clamp, optimiser=optimiser)
        coefficients, stage = self._fit(options, initial, calibration, start, len(start.values))
        return Learned(coefficients, [stage], _described(calibration))

    def expert_merging_pp(self, first: Any, settings: Any) -> Learned:
        """Expert Merging with the settings ``first``, importance, chunks, and a second fit (Section 3.3)."""
        stage1 = self.expert_merging(first)
        names = self.task_vectors.names
        importance = layer_importance(stage1.coefficients, self.task_vectors, settings.normalise)
        chunks = allocate_chunks(importance, settings.budget, settings.kappa)
        start = chunked_start(
            stage1.coefficients,
            Coefficients.constant(names, self._initial(settings)),
            chunks,
            settings.fixed,
            settings.start,
            {name: self.task_vectors.numel(name) for name in names},
        )
        calibration = self._calibration(settings.hidden_layer, settings.tokens)
        coefficients, stage = self._fit(
            self._options(settings),
            self._initial(settings),
            calibration,
            start,
            settings.budget * len(names),
        )
        stage |= {"importance": importance, "chunks": chunks}
        return Learned(coefficients, [*stage1.stages, stage], _described(calibration))

    def _options(self, settings: Any) -> FitOptions:
        names = [part.name for part in fields(FitOptions) if hasattr(settings, part.name)]
        given = {name: getattr(settings, name) for name in names}
        if self.engine.like is not None:
            given["order"] = authors_order(self.backbone.name)
        return FitOptions(**{**given, "optimiser": Optimiser(**settings.optimiser.model_dump())})

    @cached_property
    def _model(self) -> torch.nn.Module:
        """The base, whose merged weights the fits overwrite (and nothing else of it).

        Every tensor is read before, so that NaN and infinity are found before anything long starts.
        """
        _check_finite(self.task_vectors)
        return self.backbone.load(self.task_vectors.base.path, self.engine.torch_dtype, self.device)[0]

    @cached_property
    def _placement(self) -> Placement:
        """Where the fits read θ_base and the task vectors; made when the experts have had their turn on the device."""
        return place(self.task_vectors, self._model, self.engine)

    def _initial(self, settings: Any) -> dict[str, float]:
        """ᾱ_k of each expert, in the experts' order: the chosen λ, a number, or a number for each."""
        initial = settings.initial
        if initial == SCALE:
            if self.scale is None:
                raise UserError(f"initial '{SCALE}' needs that scale: choose it on the validation items first")
            initial = self.scale
        if isinstance(initial, Mapping):
            return {name: float(initial[name]) for name in self.task_vectors.experts}
        return dict.fromkeys(self.task_vectors.experts, float(initial))

    def _calibration(self, hidden_layer: int | str, tokens: str) -> Calibration:
        given = self.calibration
        blocks = self.backbone.blocks(self._model)
        layer = blocks // 2 if hidden_layer == "middle" else hidden_layer
        if not 1 <= layer <= blocks:
            raise UserError(f"hidden_layer is block {layer}, the model has blocks 1 to {blocks}")
        wanted = {key: given[key] for key in ("samples", "response_tokens", "max_new_tokens") if key in given}
        return calibrate(
            self.backbone,
            self._model,
            self.task_vectors,
            source(given, self.backbone.name),
            Settings(hidden_layer=layer, tokens=tokens, **wanted),
            self.seed,
            self.cache,
            self.progress,
        )

    def _fit(
        self,
        options: FitOptions,
        initial: Mapping[str, float],
        calibration: Calibration,
        start: Coefficients,
        count: float,
    ) -> tuple[Coefficients, dict]:
        """A fit's coefficients and stage entry; from the cache if the same fit was finished before."""
        checkpoints = {"base": self.task_vectors.base, **self.task_vectors.checkpoints}
        key = sha256_json(
            {
                "format": FORMAT,
                "backbone": self.backbone.name,
                "models": {name: checkpoint.sha256() for name, checkpoint in checkpoints.items()},
                "surroundings": surroundings(self.device, __name__, f"emkit.backbones.{self.backbone.name}"),
                "transforms": list(self.task_vectors.identity),
                "calibration": calibration.keys,
                "start": start.to_json(),
                "initial": initial,
                "options": repr(options),
                "count": count,
                "seed": self.seed,
                "engine": self.engine.identity,
            }
        )
        folder = self.cache / "fits" / key
        state = folder.with_suffix(".state.json")
        with lock(folder.with_suffix(".lock")):
            found = read_kept(folder, _read_fit)
            if found is None:
                result = fit(
                    self.backbone,
                    self._model,
                    self._placement,
                    start,
                    initial,
                    calibration,
                    options,
                    count,
                    self.seed,
                    state,
                    self.progress,
                    self.engine,
                )
                with atomic_dir(folder) as part:
                    result.coefficients.save(part / "coefficients.json")
                    write_json(part / "history.json", result.history)
                found = _read_fit(folder)
            state.unlink(missing_ok=True)
        coefficients, history = found
        return coefficients, {"initial": initial, "options": asdict(options), "history": history}


def _read_fit(folder: Path) -> tuple[Coefficients, list[dict]]:
    """Coefficients and history of a finished fit."""
    return Coefficients.load(folder / "coefficients.json"), read_json(folder / "history.json")


def _described(calibration: Calibration) -> dict:
    return {
        name: {"samples": task.samples, "response_tokens": task.response_tokens, "images": len(task.sequences)}
        for name, task in calibration.tasks.items()
    }


def _check_finite(task_vectors: TaskVectors) -> None:
    """``UserError`` where a tensor of the base or an expert is not finite."""
    for number, name in enumerate(task_vectors.names):
        report("task vectors read", number, len(task_vectors.names))
        task_vectors.read(name)
