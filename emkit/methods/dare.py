"""TA w/ DARE: θ_base + λ Σ_k DARE(τ_k), one λ for all (Yu et al., 2024).

DARE drops every entry of τ_k with probability p and rescales what is kept by 1 / (1 − p), so that E[DARE(τ)] = τ.
Tensors of every number of dimensions are treated alike: entries of a vector are dropped too. λ is chosen with the first
seed and holds for all. (mergekit's ``dare_linear`` has weights where λ is here, not normalised by default.)
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from emkit.blocks import Block
from emkit.coefficients import merge_tensor
from emkit.config import Settings, option
from emkit.merging import Context, Merge, scaled
from emkit.methods import method
from emkit.methods.task_arithmetic import SCALE
from emkit.task_vectors import TaskVectors, Transformed


def dare(tau: torch.Tensor, drop: float, uniform: torch.Tensor | None = None) -> torch.Tensor:
    """m ⊙ τ / (1 − p), m an entry's 0 with probability p = ``drop`` and else 1: [*shape] → [*shape].

    ``uniform`` [*shape] are the random numbers of [0, 1) that decide, drawn here unless given.
    """
    uniform = torch.rand_like(tau) if uniform is None else uniform
    return torch.where(uniform < drop, 0.0, tau / (1 - drop))


class Dropped(Transformed):
    """DARE's transform of every τ_k: :func:`drop_and_rescale`."""

    def __init__(self, inner: TaskVectors, drop: float, seed: int):
        super().__init__(inner, {"drop": drop, "seed": seed})
        self.drop, self.seed = drop, seed

    def transform(self, name: str, block: Block) -> Block:
        def dropped(start: int, stop: int) -> torch.Tensor:
            tau = block(start, stop)
            for expert, row in zip(self.experts, tau, strict=True):
                row.copy_(drop_and_rescale(row, self.drop, self.seed, expert, name, start))
            return tau

        return dropped


def drop_and_rescale(tau: torch.Tensor, drop: float, seed: int, expert: str, name: str, start: int = 0) -> torch.Tensor:
    """DARE (Yu et al., 2024): τ̂ = m ⊙ τ / (1 − p) with every entry of m 0 with probability p, else 1; E[τ̂] = τ (fp32).

    Entry i is dropped where the i-th 32-bit number of a counter-based generator (Philox) is below p · 2³². Its key is
    a hash of (``seed``, ``expert``, ``name``), so the draw depends neither on the order in which tensors are read nor
    on threads, shards or blocks (``tau`` may be the entries from ``start`` on). p = 0 returns τ itself.

    (mergekit 0.1.5 defines another thing: it rescales by ‖τ‖₁ / ‖m ⊙ τ‖₁, tensor by tensor, and draws from torch's
    global generator, so that its result depends on the order of the tensors.)
    """
    if drop == 0:
        return tau
    bits = random_bits(tau.numel(), seed, expert, name, start=start)
    kept = torch.from_numpy(bits >= np.uint32(min(round(drop * 2.0**32), 2**32 - 1))).to(tau.device)
    mask = kept.view(torch.int8).neg().to(torch.int32).reshape(tau.shape)  # all bits or none
    return (tau / (1 - drop)).view(torch.int32).bitwise_and_(mask).view(torch.float32)


def random_bits(count: int, seed: int, *names: str, start: int = 0) -> np.ndarray:
    """The ``count`` random uint32 from the ``start``-th on of a stream that depends on ``seed`` and ``names`` alone."""
    text = "\0".join([str(seed), *names])
    key = np.frombuffer(hashlib.sha256(text.encode("utf-8")).digest()[:16], dtype="<u8")
    steps, skipped = divmod(start, 8)  # a step of the counter makes eight of them
    raw = np.random.Philox(key=key).advance(steps).random_raw((skipped + count + 1) // 2)
    return raw.astype("<u8", copy=False).view("<u4")[skipped : skipped + count]


class Dare(Settings):
    """Options of TA w/ DARE."""

    drop: float = option(
        0.2,
        "probability p that an entry is dropped. DARE's own authors go up to 0.9 and beyond, which suits language "
        "models that were fine-tuned lightly",
        "paper's code and that of the multimodal experts' authors",
        ge=0,
        le=0.9999,
    )


@method("ta_dare", "seed", options=Dare, scale=SCALE, parts=(dare, drop_and_rescale, merge_tensor))
def merge(ctx: Context[Dare]) -> Merge:
    return scaled(ctx, Dropped(ctx.task_vectors, ctx.options.drop, ctx.seed))
