"""Mistral-7B's shape on a GPU: random bf16 weights, three experts, 15 samples of 512 tokens.

Kernels are deterministic, as in every fit. Without a GPU there is :func:`unmeasured` only.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import MistralConfig, MistralForCausalLM

from emkit import backbones
from emkit.alignment import fit as fitting
from emkit.alignment.calibration import Calibration
from emkit.alignment.options import EngineOptions
from emkit.alignment.placement import InHost, OnDevice, Placement, place
from emkit.alignment.variable import Optimiser
from emkit.bench import passes
from emkit.bench.models import Shape
from emkit.bench.passes import Case
from emkit.bench.report import Line
from emkit.bench.workload import recorded, sequence
from emkit.coefficients import Coefficients
from emkit.determinism import deterministic
from emkit.state_dicts import StateDict
from emkit.task_vectors import TaskVectors

MISTRAL_7B = Shape(4096, 14336, 32, 32000, 32, 8)
EXPERTS, SAMPLES, TOKENS, ROUNDS = 3, 15, 512, 5
BUDGET = 24 * 2**30
STEP = (
    "Mistral-7B, K = 3, 15 × 512 tokens in one micro-batch, bf16, activations computed again: a full step, task vectors"
)
# what is promised: the line's words, its limit and its unit
PROMISES = {
    "device": (f"{STEP} on the device / bare", 1.3, "×"),
    "host": (f"{STEP} streamed from host memory / bare", 2.0, "×"),
    "fit": ("a whole fit told --memory 24GiB: peak of device memory reserved and of the GPU's context", 24.0, " GiB"),
}
NOTE = (
    f"On a GPU a bare pass is timed {ROUNDS} times before and {ROUNDS} times after the {ROUNDS} steps of a case, and a "
    "ratio is of their medians. The whole fit runs with torch's allocator held to the budget less the context."
)


def drawn(shapes: dict[str, torch.Size], base: StateDict | None = None, seed: int = 0) -> StateDict:
    """Random bf16 tensors in pinned host memory: a base's, or those of an expert of ``base``."""
    generator, tensors = torch.Generator(device="cuda").manual_seed(seed), {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator, device="cuda") * (
            MISTRAL_7B.weight if base is None else MISTRAL_7B.step
        )
        values = values if base is None else values + base.read(name).cuda().float()
        tensors[name] = values.to(torch.bfloat16).cpu().pin_memory()
    return StateDict(tensors, f"drawn-{seed}")


def unmeasured(why: str) -> list[Line]:
    """Every promise, not run."""
    return [_line(key, None, not_run=why) for key in PROMISES]


def measure() -> list[Line]:
    """Every promise of :data:`PROMISES`; one that does not fit this GPU or its host is told as not run."""
    with deterministic(strict=True):
        try:
            case = _case()
            bare = _seconds(passes.bare(case))
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            return unmeasured(_too_little(error))
        lines: dict[str, Callable[[], Line]] = {
            "device": lambda: _step("device", case, bare, lambda: OnDevice(case.vectors, "cuda", None)),
            "host": lambda: _step("host", case, bare, lambda: InHost(case.vectors, "cuda")),
            "fit": lambda: _whole_fit(case),
        }
        return [_guarded(key, line) for key, line in lines.items()]


def _line(key: str, measured: float | None, **others) -> Line:
    what, limit, unit = PROMISES[key]
    return Line(what, limit, measured, unit=unit, **others)


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
    """Random tokens with losses at every second half; the base's own states stand for the teachers'."""
    torch.manual_seed(0)
    backbone = backbones.get("mistral")
    config = MistralConfig(**MISTRAL_7B.text(), sliding_window=None)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in MistralForCausalLM(config).named_parameters()}
    merged = {name: shapes[name] for name in sorted(backbone.merged_names(list(shapes)))}
    base = drawn(merged)
    experts = {f"task{k}": drawn(merged, base, k + 1) for k in range(EXPERTS)}
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # in fp32 first, it would take twice its room
    try:
        with torch.device("cuda"):
            model = MistralForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(usual)
    rng, found, count = np.random.default_rng(0), {}, SAMPLES // EXPERTS
    for task in experts:
        sequences = [sequence(rng, MISTRAL_7B.vocabulary, TOKENS, TOKENS // 2) for _ in range(count)]
        found[task] = recorded(backbone, model, task, sequences, [torch.zeros(0)] * count, MISTRAL_7B.middle)
    engine = EngineOptions(dtype="bfloat16", micro_tokens=SAMPLES * TOKENS, checkpointing=True)
    vectors = TaskVectors(base, experts, backbone.merged_names)
    return Case(backbone, model, vectors, Calibration(found, MISTRAL_7B.middle, {}), engine)


def _step(key: str, case: Case, before: list[float], build: Callable[[], Placement]) -> Line:
    with passes.step(case, build()) as step:
        found = statistics.median(_seconds(step))
    bare = statistics.median(before + _seconds(passes.bare(case)))
    return _line(key, found / bare, details=f"{found:.2f} s / {bare:.2f} s")


def _seconds(run: Callable[[], object]) -> list[float]:
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
        problem = case.problem(placement)
        start = Coefficients.constant(placement.names, problem.penalty.initial)
        fitting.fit(problem, start=start, optimiser=Optimiser(lr=1e-3, steps=3), engine=engine)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return _line("fit", (torch.cuda.max_memory_reserved() + context) / 2**30, details=placement.kind)
