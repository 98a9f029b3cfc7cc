"""What the learned methods share: their calibration set, where they start, and fits kept under their content's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from emkit.alignment.calibration import Calibration, calibrate
from emkit.alignment.fit import Penalty, Problem, fit
from emkit.alignment.inputs import Inputs, inputs
from emkit.alignment.losses import Alignment, Entropy
from emkit.alignment.options import EngineOptions
from emkit.alignment.order import authors_order
from emkit.alignment.placement import Placement, place
from emkit.alignment.sources import JsonlSource, Samples
from emkit.alignment.teacher import Recording
from emkit.alignment.variable import Optimiser
from emkit.alignment.weighting import Rule, Weighting, subtasks
from emkit.backbones.base import Backbone
from emkit.coefficients import Coefficients
from emkit.config import Settings
from emkit.content import surroundings
from emkit.errors import UserError
from emkit.files import read_json, sha256_json, write_json
from emkit.locks import lock
from emkit.progress import report
from emkit.sealed import read_dir, sealed_dir
from emkit.task_vectors import TaskVectors

FORMAT = 4  # of the kept fits; part of their keys
SCALE = "scale of task_arithmetic"  # the initial value "validated by Task Arithmetic" (Section 3.2)


@dataclass(frozen=True)
class Learned:
    """Coefficients, and how they came about.

    ``stages``: one entry a fit, with all ``options`` of its method, its ``history`` (losses per task and coefficients
    before each step) and, for chunks, ``importance`` and ``chunks`` of every merged tensor. ``calibration``: samples
    and response tokens of each task, so that what was learned from is told.
    """

    coefficients: Coefficients
    stages: list[dict]
    calibration: dict


@dataclass(frozen=True)
class Learner:
    """Fits coefficients. ``samples`` says which samples; ``cache`` keeps calibration sets and fits; ``scale`` is the
    chosen λ; ``engine`` says what the machine may give. Options are what runs: of a fit that is ``like`` the authors'
    code they are theirs already.

    ``task_vectors`` may be a transformed view; the calibration set is that of the experts themselves.
    """

    backbone: Backbone
    task_vectors: TaskVectors
    samples: Samples
    device: str
    seed: int
    cache: Path
    scale: float | None = None
    progress: bool = False
    engine: EngineOptions = field(default_factory=EngineOptions)

    def on(self, task_vectors: TaskVectors) -> Learner:
        """A learner for another view of the same models."""
        return self._with(task_vectors=task_vectors)

    def _with(self, **changes: Any) -> Learner:
        """This learner with ``changes``; the base is loaded once for both."""
        other = replace(self, **changes)
        other.__dict__["_model"] = self._model
        return other

    @property
    def head_rows(self) -> int:
        """Rows of queries, keys and values in an attention head."""
        return self.backbone.head_rows(self._model)

    def initial(self, given: float | Mapping[str, float] | str) -> dict[str, float]:
        """ᾱ_k of each expert, in the experts' order: the chosen λ (:data:`SCALE`), a number, or a number for each."""
        if given == SCALE:
            if self.scale is None:
                raise UserError(f"initial '{SCALE}' needs that scale: choose it on the validation items first")
            given = self.scale
        if isinstance(given, Mapping):
            return {name: float(given[name]) for name in self.task_vectors.experts}
        return dict.fromkeys(self.task_vectors.experts, float(given))

    def constant(self, given: float | Mapping[str, float] | str) -> Coefficients:
        """One coefficient per merged tensor and expert, all at :meth:`initial`."""
        return Coefficients.constant(self.task_vectors.names, self.initial(given))

    def calibration(self, hidden_layer: int | str, tokens: str) -> Calibration:
        """The samples of every task, their states after the block ``hidden_layer``, losses over ``tokens``."""
        blocks = self.backbone.blocks(self._model)
        layer = blocks // 2 if isinstance(hidden_layer, str) else hidden_layer  # "middle"
        if not 1 <= layer <= blocks:
            raise UserError(f"hidden_layer is block {layer}, the model has blocks 1 to {blocks}")
        asked = self.samples.model_dump(include={"samples", "response_tokens", "max_new_tokens", "fewer"})
        return calibrate(
            self.backbone,
            self._model,
            self.task_vectors,
            self.samples.drawn_from(self.backbone.name),
            Recording(hidden_layer=layer, tokens=tokens, **asked),
            self.seed,
            self.cache,
            self.progress,
        )

    def held_out(self, calibration: Calibration, hidden_layer: int | str, tokens: str) -> Calibration | None:
        """One more sample of every task than ``calibration`` has; None where a task's prompts are used up."""
        source = self.samples.drawn_from(self.backbone.name)
        used = {task: len(samples.sequences) for task, samples in calibration.tasks.items()}
        if isinstance(source, JsonlSource) and any(len(source.lines(task)) <= n for task, n in used.items()):
            return None
        asked = self.samples.model_copy(update={"samples": self.samples.samples + 1, "fewer": True})
        more = self._with(samples=asked).calibration(hidden_layer, tokens)
        if any(task.samples != asked.samples for task in more.tasks.values()):
            return None
        return replace(more, tasks={name: task.only(asked.samples - 1) for name, task in more.tasks.items()})

    def inputs(self, calibration: Calibration) -> Inputs:
        """What goes into the merged matrices of each expert on its own samples."""
        return inputs(self.backbone, self._model, self.task_vectors, calibration, self.cache, self.progress)

    def fit(
        self,
        options: Settings,
        optimiser: Optimiser,
        objective: Alignment | Entropy,
        penalty: Penalty,
        calibration: Calibration,
        start: Coefficients,
        parameterisation: str,
        held_out: Calibration | None = None,
    ) -> tuple[Coefficients, dict]:
        """A fit's coefficients and its stage's entry, which tells the ``options`` of its method; from the cache if the
        same fit was finished before. Where β goes by a rule, the entry tells of it, and of the loss on ``held_out``."""
        order = "tasks" if self.engine.like is None else authors_order(self.backbone.name)
        given = [repr(part) for part in (objective, penalty, optimiser, parameterisation, order)]
        folder = self.cache / "fits" / self._key(calibration, start, given)
        state = folder.with_suffix(".state.json")
        with lock(folder.with_suffix(".lock")):
            found = read_dir(folder, _read_fit)
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
                if objective.rule is not None:
                    problem = self._weighed(problem, objective.rule, start)
                result = fit(
                    problem,
                    start=start,
                    optimiser=optimiser,
                    parameterisation=parameterisation,
                    seed=self.seed,
                    engine=self.engine,
                    state=state,
                    progress=self.progress,
                )
                with sealed_dir(folder) as part:
                    result.coefficients.save(part / "coefficients.json")
                    write_json(part / "history.json", result.history)
                    if problem.weighting is not None:
                        told = self._told(problem, problem.weighting, start, result.coefficients, held_out)
                        write_json(part / "beta.json", told)
                found = _read_fit(folder)
            state.unlink(missing_ok=True)
        coefficients, history, beta = found
        stated = {**options.model_dump(), "order": order}
        return coefficients, {"initial": dict(penalty.initial), "options": stated, "history": history, **beta}

    def _weighed(self, problem: Problem, rule: Rule, start: Coefficients) -> Problem:
        """The problem with β by ``rule``."""
        nothing = self.constant(0.0)
        return replace(
            problem,
            weighting=Weighting(
                rule=rule,
                counts={name: subtasks(task) for name, task in problem.calibration.tasks.items()},
                base=_sums(problem.measured(nothing, self.engine)),
                start=_sums(problem.measured(start, self.engine)),
            ),
        )

    def _told(
        self,
        problem: Problem,
        weighting: Weighting,
        start: Coefficients,
        end: Coefficients,
        held_out: Calibration | None,
    ) -> dict:
        """What a history tells of β by a rule: the losses that it was made of, those at the end, and the logit term,
        T² KL in nats, on samples that nothing was fitted to."""
        measured = {"base": weighting.base, "start": weighting.start}
        losses = {**measured, "end": _sums(problem.measured(end, self.engine))}
        kept: dict[str, dict] = {}
        if held_out is not None:
            for name, coefficients in {"base": self.constant(0.0), "start": start, "end": end}.items():
                found = problem.measured(coefficients, self.engine, held_out)
                kept[name] = {task: terms.get("logit") for task, terms in found.items()}
        return {"rule": weighting.rule, "counts": dict(weighting.counts), "losses": losses, "held_out": kept}

    def _key(self, calibration: Calibration, start: Coefficients, given: list[str]) -> str:
        """What a fit depends on, as a hash; ``given`` says what of its settings."""
        checkpoints = {"base": self.task_vectors.base, **self.task_vectors.checkpoints}
        return sha256_json(
            {
                "format": FORMAT,
                "backbone": self.backbone.name,
                "models": {name: checkpoint.sha256() for name, checkpoint in checkpoints.items()},
                "surroundings": surroundings(self.device, __name__, f"emkit.backbones.{self.backbone.name}"),
                "transforms": list(self.task_vectors.identity),
                "calibration": calibration.keys,
                "start": start.to_json(),
                "given": given,
                "seed": self.seed,
                "engine": self.engine.identity,
            }
        )

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


def _read_fit(folder: Path) -> tuple[Coefficients, list[dict], dict]:
    """Coefficients and history of a finished fit, and what is told of its β where a rule chose it."""
    beta = folder / "beta.json"
    told = {"beta": read_json(beta)} if beta.is_file() else {}
    return Coefficients.load(folder / "coefficients.json"), read_json(folder / "history.json"), told


def _sums(losses: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Each task's terms added up."""
    return {task: sum(terms.values()) for task, terms in losses.items()}


def _check_finite(task_vectors: TaskVectors) -> None:
    """``UserError`` where a tensor of the base or an expert is not finite."""
    for number, name in enumerate(task_vectors.names):
        report("task vectors read", number, len(task_vectors.names))
        task_vectors.read(name)
