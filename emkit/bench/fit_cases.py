"""The passes that are compared: a bare one, the engine's step, and the plain ways that it replaces.

``python -m emkit.bench.fit_cases CASE WORKLOAD EXPERTS`` runs one in a process of its own and prints the peak of its
anonymous memory (RssAnon: pages of memory-mapped files are not in it).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch.func import functional_call

from emkit.alignment import fit as fitting
from emkit.alignment.fit import Penalty, Problem
from emkit.alignment.losses import Alignment
from emkit.alignment.merged_model import MergedModel
from emkit.alignment.options import EngineOptions
from emkit.alignment.placement import InHost, OnDevice, Placement
from emkit.alignment.sequences import collate
from emkit.alignment.variable import Optimiser
from emkit.bench.fit_toys import Workload
from emkit.coefficients import Coefficients
from emkit.task_vectors import TaskVectors

OBJECTIVE = Alignment(hidden_weight=0.1)
OPTIMISER = Optimiser(lr=1e-3, steps=100, schedule="constant")
ENGINE = EngineOptions(micro_tokens=10**9)  # a step is one micro-batch


def bare(workload: Workload, model: torch.nn.Module, free: bool = False) -> Callable[[], None]:
    """Forward and backward of the whole batch, weight gradients included, logits at the same positions.

    With ``free`` a hook frees each weight gradient at once, so that memory is the model's and its activations' only.
    """
    names = {workload.backbone.parameter_name(name) for name in workload.task_vectors().names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if free and name in names:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    tasks = workload.calibration.tasks.values()
    sequences = [s for task in tasks for s in task.sequences]
    features = torch.cat([f for task in tasks for f in task.features])
    batch, taken = collate(sequences)
    target = batch["input_ids"].roll(-1, dims=1)[taken]

    def run() -> None:
        logits = workload.backbone.forward(model, batch, features, None, taken).logits
        torch.nn.functional.cross_entropy(logits, target).backward()
        model.zero_grad(set_to_none=True)

    return run


def problem(workload: Workload, model: torch.nn.Module, task_vectors: TaskVectors | Placement) -> Problem:
    """What the engine's step minimises."""
    return Problem(
        backbone=workload.backbone,
        model=model,
        task_vectors=task_vectors,
        calibration=workload.calibration,
        objective=OBJECTIVE,
        penalty=Penalty(gamma=0.8, initial=dict.fromkeys(workload.tasks, 0.3), count=len(task_vectors.names)),
    )


def engine(workload: Workload, model: torch.nn.Module, placement: Placement) -> Callable[[], None]:
    """The engine's whole optimiser step: forward, backward, contraction, update of coefficients and weights."""
    start, minimised, steps = workload.start(), problem(workload, model, placement), iter(range(10**9))
    variable = minimised.variable(start, "plain", OPTIMISER)
    merged = MergedModel(model, placement, start, workload.backbone.parameter_name)

    def run() -> None:
        fitting._step(minimised, merged, variable, start, next(steps), 0, ENGINE)

    return run


class _Called(torch.nn.Module):
    """A backbone's forward as a module, for ``functional_call``."""

    def __init__(self, workload: Workload, model: torch.nn.Module):
        super().__init__()
        self.workload, self.inner = workload, model

    def forward(self, batch, features, taken):
        layer = self.workload.calibration.hidden_layer
        return self.workload.backbone.forward(self.inner, batch, features, layer, taken)


def plain(
    workload: Workload, model: torch.nn.Module, teachers: dict | None, whole: bool = False, few: int | None = None
) -> Callable:
    """The authors' procedure: for each sample the teacher's forward, weights rebuilt by autograd over all task vectors,
    backward. ``whole``: one pass for all samples; ``few``: only that many samples. Without ``teachers`` their cached
    states are used. The function returns {tensor: gradient [K, chunks]}.
    """
    model.requires_grad_(False)
    vectors = workload.task_vectors()
    taus = {name: vectors.tau(name) for name in vectors.names}
    bases = {name: vectors.base.read(name).float() for name in vectors.names}
    called = _Called(workload, model)

    def run(start: Coefficients) -> dict:
        alpha = {name: torch.tensor(v, dtype=torch.float32, requires_grad=True) for name, v in start.values.items()}
        pieces = [(task, i) for task in workload.calibration.tasks.values() for i in range(len(task.sequences))]
        pieces = pieces[:few]
        for group in [pieces] if whole else [[piece] for piece in pieces]:
            weights = {name: _merged(bases[name], taus[name], alpha[name]) for name in vectors.names}
            weights = {f"inner.{workload.backbone.parameter_name(n)}": w for n, w in weights.items()}
            batch, taken = collate([task.sequences[i] for task, i in group])
            features = torch.cat([task.features[i] for task, i in group])
            out = functional_call(called, weights, (batch, features, taken))
            targets = [_teach(workload, teachers, task, i) for task, i in group]
            hidden, logits = (torch.cat(parts) for parts in zip(*targets, strict=True))
            loss = OBJECTIVE.hidden_weight * (out.hidden[taken] - hidden).square().mean(dim=-1)
            loss = loss + _divergence(out.logits, logits)
            weight = torch.cat([torch.full((len(t.final[i]),), 1 / (len(t.final[i]) * t.samples)) for t, i in group])
            (weight * loss).sum().backward()
        return {name: value.grad for name, value in alpha.items()}

    return run


def _divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student) of logits [N, V], by torch: [N]."""
    student, teacher = (logits.log_softmax(dim=-1) for logits in (student, teacher))
    return torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)


def _merged(base: torch.Tensor, tau: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    chunks = alpha.shape[1]
    if chunks == 1:
        total = base
        for k in range(len(tau)):
            total = total + alpha[k, 0] * tau[k]
        return total
    bounds = torch.tensor([s * base.numel() // chunks for s in range(chunks + 1)])
    spread = alpha.repeat_interleave(bounds.diff(), dim=1)
    return base + (spread * tau.flatten(1)).sum(dim=0).reshape(base.shape)


def _teach(workload: Workload, teachers: dict | None, task, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    if teachers is None:
        return task.hidden[i], task.logits(i)
    batch, taken = collate([task.sequences[i]])
    with torch.no_grad():
        layer = workload.calibration.hidden_layer
        out = workload.backbone.forward(teachers[task.name], batch, task.features[i], layer, taken)
    return out.hidden[taken], out.logits


def placed(workload: Workload, where: str) -> Placement:
    """A placement on the CPU: ``device`` (fp32 task vectors), ``host`` (as stored) or ``files``."""
    vectors = workload.task_vectors()
    if where == "device":
        return OnDevice(vectors, "cpu", torch.float32)
    return InHost(vectors, "cpu") if where == "host" else Placement(vectors, "cpu")


# ---- memory, in a process of its own
@contextmanager
def peak_memory(found: dict):
    """Puts the peak of this process's anonymous memory while inside, in bytes, into ``found['peak']``."""
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            found["peak"] = max(found.get("peak", 0), anonymous())
            time.sleep(0.001)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def anonymous() -> int:
    """RssAnon of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def held(placement: Placement) -> int:
    """Bytes that a placement keeps in memory."""
    if type(placement) is Placement:
        return 0
    rows = [placement.stored(name) for name in placement.names]
    return sum(row.base.nbytes + sum(vector.nbytes for vector in row.vectors) for row in rows)


def main(case: str, folder: str, experts: str) -> None:
    torch.set_num_threads(1)
    workload = Workload.open(Path(folder), int(experts))
    model, found = workload.model(), {}
    if case == "bare":
        run, resident = bare(workload, model, free=True), 0
    elif case == "plain":
        step, start = plain(workload, model, None, whole=True), workload.start()
        run = partial(step, start)
        sizes = [workload.task_vectors().numel(name) for name in workload.task_vectors().names]
        resident = sum(sizes) * 4 * (workload.experts + 1)
    else:
        placement = placed(workload, case)
        run, resident = engine(workload, model, placement), held(placement)
    with peak_memory(found):
        run()
    print(json.dumps({"peak": found["peak"], "resident": resident}))


if __name__ == "__main__":
    main(*sys.argv[1:])
