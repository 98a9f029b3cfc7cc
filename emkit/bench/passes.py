"""The passes that are compared: a bare one, the engine's step, and the plain way that it replaces.

``python -m emkit.bench.passes CASE WORKLOAD EXPERTS`` runs one, for its memory to be measured from outside, and prints
how many bytes of task vectors it keeps.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.func import functional_call

from emkit.alignment import fit as fitting
from emkit.alignment.calibration import Calibration
from emkit.alignment.fit import Penalty, Problem
from emkit.alignment.lean import recomputed
from emkit.alignment.losses import Alignment
from emkit.alignment.memory import held_bytes
from emkit.alignment.merged_model import MergedModel
from emkit.alignment.options import EngineOptions
from emkit.alignment.placement import OnDevice, Placement
from emkit.alignment.sequences import collate
from emkit.alignment.variable import Optimiser
from emkit.backbones.base import Backbone
from emkit.bench.workload import Workload, batched
from emkit.coefficients import Coefficients
from emkit.task_vectors import TaskVectors

OBJECTIVE = Alignment(hidden_weight=0.1)
OPTIMISER = Optimiser(lr=1e-3, steps=100, schedule="constant")


@dataclass(frozen=True)
class Case:
    """What a step is measured on; ``engine``: one micro-batch takes all samples."""

    backbone: Backbone
    model: torch.nn.Module
    vectors: TaskVectors
    calibration: Calibration
    engine: EngineOptions

    @classmethod
    def of(cls, workload: Workload) -> Case:
        """A workload with a model of its own, on the CPU."""
        engine = EngineOptions(micro_tokens=10**9)
        return cls(workload.backbone, workload.model(), workload.task_vectors(), workload.calibration, engine)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def problem(self, vectors: TaskVectors | Placement) -> Problem:
        """What the engine's step minimises."""
        return Problem(
            backbone=self.backbone,
            model=self.model,
            task_vectors=vectors,
            calibration=self.calibration,
            objective=OBJECTIVE,
            penalty=Penalty(gamma=0.8, initial=dict.fromkeys(vectors.experts, 0.3), count=len(vectors.names)),
        )


def bare(case: Case) -> Callable[[], None]:
    """Forward and backward of the whole batch, logits at the same positions; each weight gradient is freed as it comes,
    so that memory is the model's and its activations' only."""
    names = {case.backbone.parameter_name(name) for name in case.vectors.names}
    tasks = case.calibration.tasks.values()
    batch, taken = batched([s for task in tasks for s in task.sequences], case.device)
    seen = torch.cat([f for task in tasks for f in task.features]).to(case.device)
    target = batch["input_ids"].roll(-1, dims=1)[taken]

    def free(parameter: torch.Tensor) -> None:
        parameter.grad = None

    def run() -> None:
        for name, parameter in case.model.named_parameters():
            parameter.requires_grad_(name in names)
        handles = [p.register_post_accumulate_grad_hook(free) for p in case.model.parameters() if p.requires_grad]
        try:
            with recomputed(case.model, case.engine.checkpointing):
                logits = case.backbone.forward(case.model, batch, seen if seen.numel() else None, None, taken).logits
                torch.nn.functional.cross_entropy(logits, target).backward()
        finally:
            for handle in handles:
                handle.remove()

    return run


@contextlib.contextmanager
def step(case: Case, placement: Placement, start: Coefficients | None = None) -> Iterator[Callable[[], object]]:
    """The engine's whole optimiser step (forward, backward, contraction, update of coefficients and weights), one after
    another; the model is free of hooks afterwards."""
    problem = case.problem(placement)
    start = start or Coefficients.constant(placement.names, problem.penalty.initial)
    variable = problem.variable(start, "plain", OPTIMISER)
    merged = MergedModel(case.model, placement, start, case.backbone.parameter_name)
    steps = iter(range(10**9))
    try:
        yield lambda: fitting._step(problem, merged, variable, start, next(steps), 0, case.engine)
    finally:
        merged.close()


class _Called(torch.nn.Module):
    """A backbone's forward as a module, for ``functional_call``."""

    def __init__(self, case: Case):
        super().__init__()
        self.case, self.inner = case, case.model

    def forward(self, batch, features, taken):
        layer = self.case.calibration.hidden_layer
        return self.case.backbone.forward(self.inner, batch, features, layer, taken)


def plain(case: Case, teachers: dict | None = None, whole: bool = False, few: int | None = None) -> Callable:
    """The authors' procedure: for each sample the teacher's forward, weights rebuilt by autograd over all task vectors,
    backward. ``whole``: one pass for all samples; ``few``: only that many samples. Without ``teachers`` their cached
    states are used. The function takes coefficients, one of each tensor and expert, and returns {tensor: gradient [K]}.
    """
    case.model.requires_grad_(False)
    vectors, tasks = case.vectors, case.calibration.tasks.values()
    taus = {name: vectors.tau(name) for name in vectors.names}
    bases = {name: vectors.base.read(name).float() for name in vectors.names}
    called, pieces = _Called(case), [(task, i) for task in tasks for i in range(len(task.sequences))][:few]

    def run(start: Coefficients) -> dict:
        alpha = {n: torch.tensor(v[:, 0], dtype=torch.float32, requires_grad=True) for n, v in start.values.items()}
        for group in [pieces] if whole else [[piece] for piece in pieces]:
            weights = {
                f"inner.{case.backbone.parameter_name(name)}": sum(
                    (alpha[name][k] * tau for k, tau in enumerate(taus[name])), bases[name]
                )
                for name in vectors.names
            }
            batch, taken = collate([task.sequences[i] for task, i in group])
            features = torch.cat([task.features[i] for task, i in group])
            out = functional_call(called, weights, (batch, features, taken))
            targets = [_teach(case, teachers, task, i) for task, i in group]
            hidden, logits = (torch.cat(parts) for parts in zip(*targets, strict=True))
            loss = OBJECTIVE.hidden_weight * (out.hidden[taken] - hidden).square().mean(dim=-1)
            student, teacher = out.logits.log_softmax(dim=-1), logits.log_softmax(dim=-1)
            loss = loss + torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
            weight = torch.cat([torch.full((len(t.final[i]),), 1 / (len(t.final[i]) * t.samples)) for t, i in group])
            (weight * loss).sum().backward()
        return {name: value.grad for name, value in alpha.items()}

    return run


def _teach(case: Case, teachers: dict | None, task, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    if teachers is None:
        return task.hidden[i], task.logits(i)
    batch, taken = collate([task.sequences[i]])
    with torch.no_grad():
        layer = case.calibration.hidden_layer
        out = case.backbone.forward(teachers[task.name], batch, task.features[i], layer, taken)
    assert out.hidden is not None  # it was asked for
    return out.hidden[taken], out.logits


# ---- memory, in a process of its own
def main(name: str, folder: str, experts: str) -> None:
    """One pass of the case ``name``: bare, plain, device or files."""
    torch.set_num_threads(1)
    workload = Workload.open(Path(folder), int(experts))
    case, start = Case.of(workload), workload.start()
    placement = OnDevice(case.vectors, "cpu", torch.float32) if name == "device" else Placement(case.vectors, "cpu")
    numel = sum(case.vectors.numel(tensor) for tensor in case.vectors.names)
    resident = {"device": held_bytes(case.vectors, torch.float32), "plain": 4 * numel * (workload.experts + 1)}
    with step(case, placement, start) if name in ("device", "files") else contextlib.nullcontext() as engine:
        (engine or (bare(case) if name == "bare" else partial(plain(case, whole=True), start)))()
    print(resident.get(name, 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
