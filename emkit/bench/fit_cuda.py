"""Mistral-7B's shape on a GPU: random bf16 weights, three experts, 15 samples of 512 tokens.

Kernels are deterministic, as in every fit. Without a GPU there is :func:`unmeasured` only.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import MistralConfig, MistralForCausalLM

from emkit import backbones
from emkit.alignment import fit as fitting
from emkit.alignment.arithmetic import Arithmetic, Rows
from emkit.alignment.calibration import Calibration, TaskSamples
from emkit.alignment.fit import Penalty, Problem
from emkit.alignment.heads import Head, headless
from emkit.alignment.lean import recomputed
from emkit.alignment.losses import Alignment
from emkit.alignment.merged_model import MergedModel
from emkit.alignment.options import EngineOptions
from emkit.alignment.placement import InHost, OnDevice, Placement, place
from emkit.alignment.sequences import Folded, collate
from emkit.alignment.variable import Optimiser
from emkit.backbones.base import Backbone
from emkit.bench.fit_toys import MISTRAL_7B
from emkit.bench.report import Line
from emkit.checkpoints import TensorInfo
from emkit.coefficients import Coefficients
from emkit.determinism import deterministic
from emkit.task_vectors import TaskVectors

EXPERTS, SAMPLES, TOKENS, ROUNDS = 3, 15, 512, 5
BUDGET = 24 * 2**30
OPTIMISER = Optimiser(lr=1e-3, steps=100, schedule="constant")
STEP = (
    "Mistral-7B, K = 3, 15 × 512 tokens in one micro-batch, bf16, activations computed again: a full step, task vectors"
)
PROMISES = {
    "device": (f"{STEP} on the device / bare", 1.3),
    "host": (f"{STEP} streamed from host memory / bare", 2.0),
    "fit": ("a whole fit told --memory 24GiB: peak of device memory reserved and of the GPU's context, GiB", 24.0),
    "flops": ("bare pass: share of a matrix product's FLOP/s", None),
    "bandwidth": ("contraction: share of a copy's bandwidth", None),
}
NOTES = [
    "On a GPU a bare pass is forward, backward and the gradients of all merged weights, each freed as it comes; it is "
    f"timed {ROUNDS} times before and {ROUNDS} times after the {ROUNDS} steps of a case, and a ratio is of their "
    "medians. The whole fit runs with torch's allocator held to the budget less the context."
]


class Drawn:
    """A checkpoint of random bf16 tensors in pinned host memory: what merging uses of a :class:`Checkpoint`."""

    def __init__(self, names: list[str], shapes: dict, base: Drawn | None = None, seed: int = 0):
        self.path, self.names = Path(f"drawn-{seed}"), sorted(names)
        generator = torch.Generator(device="cuda").manual_seed(seed)
        self.tensors = {}
        for name in self.names:
            values = torch.randn(shapes[name], generator=generator, device="cuda") * (0.02 if base is None else 5e-4)
            values = values if base is None else values + base.tensors[name].cuda().float()
            self.tensors[name] = values.to(torch.bfloat16).cpu().pin_memory()

    def info(self, name: str) -> TensorInfo:
        return TensorInfo(self.tensors[name].dtype, tuple(self.tensors[name].shape))

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


@dataclass(frozen=True)
class Case:
    """What every line is measured on."""

    backbone: Backbone
    model: torch.nn.Module
    vectors: TaskVectors
    calibration: Calibration
    engine: EngineOptions

    @property
    def numel(self) -> int:
        return sum(self.vectors.numel(name) for name in self.vectors.names)


def unmeasured(why: str) -> list[Line]:
    """Every promise, not run."""
    return [_line(key, None, not_run=why) for key in PROMISES]


def measure() -> list[Line]:
    """Every promise of :data:`PROMISES`; one that does not fit this GPU or its host is told as not run."""
    with deterministic(strict=True):
        try:
            case = _case()
            bare = _times(_bare(case))
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            return unmeasured(_too_little(error))
        lines = [
            _guarded("device", lambda: _step_line(case, "device", bare, lambda: OnDevice(case.vectors, "cuda", None))),
            _guarded("host", lambda: _step_line(case, "host", bare, lambda: InHost(case.vectors, "cuda"))),
            _guarded("fit", lambda: _whole_fit(case)),
            _guarded("flops", lambda: _flops(case, statistics.median(bare))),
            _guarded("bandwidth", _bandwidth),
        ]
    return lines


def _line(key: str, measured: float | None, **others) -> Line:
    what, limit = PROMISES[key]
    return Line(what, limit, measured, unit=" GiB" if key == "fit" else "×", **others)


def _guarded(key: str, line: Callable[[], Line]) -> Line:
    torch.cuda.empty_cache()
    try:
        return line()
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        return _line(key, None, not_run=_too_little(error))


def _too_little(error: RuntimeError) -> str:
    """Which memory an error speaks of; any other error of the GPU's is raised again."""
    if isinstance(error, torch.OutOfMemoryError):
        return "too little device memory"
    if "out of memory" not in str(error):
        raise error
    return "too little host memory to pin"


def _case() -> Case:
    torch.manual_seed(0)
    backbone = backbones.get("mistral")
    config = MistralConfig(**MISTRAL_7B.text(), sliding_window=None)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in MistralForCausalLM(config).named_parameters()}
    names = backbone.merged_names(shapes)
    base = Drawn(names, shapes)
    experts = {f"task{k}": Drawn(names, shapes, base, k + 1) for k in range(EXPERTS)}
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # in fp32 first, it would take twice its room
    try:
        with torch.device("cuda"):
            model = MistralForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(usual)
    engine = EngineOptions(dtype="bfloat16", micro_tokens=SAMPLES * TOKENS, checkpointing=True)
    vectors = TaskVectors(base, experts, backbone.merged_names)
    return Case(backbone, model, vectors, _calibration(backbone, model, list(experts)), engine)


def _calibration(backbone: Backbone, model: torch.nn.Module, tasks: list[str]) -> Calibration:
    """Random tokens with losses at every second half; the base's own states stand for the teachers'.

    A head lies in host memory, as a kept teacher's does.
    """
    rng, found = np.random.default_rng(0), {}
    for task in tasks:
        sequences, final, hidden = [], [], []
        for _ in range(SAMPLES // len(tasks)):
            at = np.arange(TOKENS)
            ids = rng.integers(4, MISTRAL_7B.words, TOKENS)
            sequences.append(Folded(ids, at, np.zeros(TOKENS, np.int64), (at >= TOKENS // 2).astype(float)))
            batch, taken = (_moved(part) for part in collate(sequences[-1:]))
            with torch.no_grad(), headless(model) as head:
                out = backbone.forward(model, batch, None, MISTRAL_7B.blocks // 2, taken)
            final.append(out.logits.float().cpu())
            hidden.append(out.hidden[taken].float().cpu())
        features, samples = [torch.zeros(0)] * len(sequences), list(range(len(sequences)))
        rows, kept = [[]] * len(sequences), Head(head.weight.cpu())
        found[task] = TaskSamples(task, sequences, samples, features, final, hidden, rows, kept)
    return Calibration(found, MISTRAL_7B.blocks // 2, {})


def _moved(part):
    return {name: value.cuda() for name, value in part.items()} if isinstance(part, dict) else part.cuda()


def _bare(case: Case) -> Callable:
    merged = set(case.vectors.names)
    sequences = [sequence for task in case.calibration.tasks.values() for sequence in task.sequences]
    batch, taken = (_moved(part) for part in collate(sequences))
    target = batch["input_ids"].roll(-1, dims=1)[taken]

    def free(parameter: torch.nn.Parameter) -> None:
        parameter.grad = None

    def run() -> None:
        for name, parameter in case.model.named_parameters():
            parameter.requires_grad_(name in merged)
        handles = [p.register_post_accumulate_grad_hook(free) for p in case.model.parameters() if p.requires_grad]
        try:
            with recomputed(case.model, case.engine.checkpointing):
                logits = case.backbone.forward(case.model, batch, None, None, taken).logits
                torch.nn.functional.cross_entropy(logits, target).backward()
        finally:
            for handle in handles:
                handle.remove()

    return run


@contextlib.contextmanager
def _step(case: Case, placement: Placement) -> Iterator[Callable]:
    """A function that takes one step after another; the model is free of hooks afterwards, whatever happens."""
    problem = _problem(case, placement)
    start = Coefficients.constant(placement.names, problem.penalty.initial)
    variable = problem.variable(start, "plain", OPTIMISER)
    merged = MergedModel(case.model, placement, start, case.backbone.parameter_name)
    steps = iter(range(10**9))
    try:
        yield lambda: fitting._step(problem, merged, variable, start, next(steps), 0, case.engine)
    finally:
        merged.close()


def _problem(case: Case, placement: Placement) -> Problem:
    penalty = Penalty(gamma=0.8, initial=dict.fromkeys(placement.experts, 0.3), count=len(placement.names))
    return Problem(
        backbone=case.backbone,
        model=case.model,
        task_vectors=placement,
        calibration=case.calibration,
        objective=Alignment(hidden_weight=0.1),
        penalty=penalty,
    )


def _step_line(case: Case, key: str, before: list[float], build: Callable[[], Placement]) -> Line:
    with _step(case, build()) as step:
        found = statistics.median(_times(step))
    bare = statistics.median(before + _times(_bare(case)))
    return _line(key, found / bare, details=f"{found:.2f} s / {bare:.2f} s")


def _times(run: Callable) -> list[float]:
    """Seconds of each of some calls after a first one, the device's work included."""
    found = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found[1:]


def _whole_fit(case: Case) -> Line:
    """Three steps of a fit under the budget, placement chosen by it, with an allocator that gives no more."""
    engine = EngineOptions(BUDGET, None, "bfloat16", SAMPLES * TOKENS, True)
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (BUDGET - context) / total))
    torch.cuda.reset_peak_memory_stats()
    try:
        placement = place(case.vectors, case.model, engine)
        problem = _problem(case, placement)
        start = Coefficients.constant(placement.names, problem.penalty.initial)
        fitting.fit(problem, start=start, optimiser=Optimiser(lr=1e-3, steps=3), engine=engine)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return _line("fit", (torch.cuda.max_memory_reserved() + context) / 2**30, details=placement.kind)


def _flops(case: Case, bare: float) -> Line:
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    peak = 2 * 8192**3 / statistics.median(_times(lambda: a @ a))
    # forward, backward, and forward again up to the input of each block's last matrix
    again = sum(case.vectors.numel(name) for name in case.vectors.names if "down_proj" not in name)
    reached = (6 * case.numel + 2 * again) * SAMPLES * TOKENS / bare
    return _line("flops", reached / peak, details=f"{reached / 1e12:.0f} of {peak / 1e12:.0f} TFLOP/s")


def _bandwidth() -> Line:
    source = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / statistics.median(_times(lambda: target.copy_(source)))
    n = 2**26
    base, gradient, *vectors = (torch.randn(n, device="cuda").to(torch.bfloat16) for _ in range(EXPERTS + 2))
    rows, sums = Rows(base, vectors, False), Arithmetic("cuda", torch.float32)
    read = 2 * (EXPERTS + 2) * n / statistics.median(_times(lambda: sums.contract(rows, gradient, [0, n])))
    return _line("bandwidth", read / copy, details=f"{read / 1e9:.0f} of {copy / 1e9:.0f} GB/s")
