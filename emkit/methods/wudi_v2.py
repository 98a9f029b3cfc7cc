"""WUDI v2: θ_base + λ M of every matrix, M minimising the interference on leading directions (Wei et al., 2025).

WUDI's objective on the leading singular directions of the task vectors. Other tensors than matrices:
θ_base + λ · mean τ_k.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from emkit.config import Settings, option
from emkit.merging import Context, Matrices, Merge, added, matrices
from emkit.methods import method
from emkit.methods.wudi import FIXED_SCALE, ITERATIONS, Quadratic, descend

Form = Literal["internvl", "qwen2_vl"]
RATES: dict[Form, float] = {"internvl": 1e-5, "qwen2_vl": 1e-4}  # of the authors' two programs


def wudi_v2(taus: torch.Tensor, form: Form = "internvl", lr: float = 1e-5, iterations: int = 300) -> torch.Tensor:
    """min_M Σ_i ‖(M − T_i) L_iᵀ‖² / ‖τ_i‖² as :func:`wudi_v2_matrix` has it, term by term: [K, m, n] → [m, n]."""
    r, mean = min(taus.shape[1:]) // len(taus), taus.mean(dim=0)
    centre = mean if form == "internvl" else torch.zeros_like(mean)
    merged = torch.nn.Parameter(taus.sum(dim=0) if form == "internvl" else mean)
    taus = taus[taus.flatten(1).any(dim=1)]  # of an expert that is the base the term is 0/0
    u, s, vh = torch.linalg.svd(taus - centre, full_matrices=False)
    targets = centre + (u[:, :, :r] * s[:, None, :r]) @ vh[:, :r]  # [K, m, n]
    _, s, vh = torch.linalg.svd(taus, full_matrices=False)
    adam, sgd = torch.optim.Adam([merged], lr=lr), torch.optim.SGD([merged], lr=lr, momentum=0.9)
    optimiser = adam if form == "internvl" else sgd
    return descend(merged, targets, s[:, :r, None] * vh[:, :r], taus, optimiser, iterations)


def wudi_v2_matrix(taus: Matrices, form: Form = "internvl", lr: float = 1e-5, iterations: int = 300) -> torch.Tensor:
    """argmin_M Σ_i ‖(M − T_i) L_iᵀ‖² / ‖τ_i‖² (Wei et al., 2025), with r = ⌊min(m, n) / K⌋.

    L_i = diag(s_r) V_rᵀ of τ_i's first r singular triplets. The two forms are the authors' two programs:

    ``internvl``
        T_i = mean τ + the rank-r part of (τ_i − mean τ); from M = Σ τ_i; Adam.
    ``qwen2_vl``
        T_i = the rank-r part of τ_i; from M = mean τ; SGD with momentum 0.9. (They compute in fp16; here the dtype of
        ``taus``, fp32, is used: at a rate of 1e-4 many fp16 steps would round to nothing.)

    ``taus`` holds K matrices [m, n] and is gone through more than once; returns [m, n]. An all-zero τ_i, whose term
    is 0/0, is left out of the objective, but it counts for K and the mean. Where r is 0 there is nothing to
    minimise and the start is returned.
    """
    mean = added(taus) / len(taus)
    start = mean * len(taus) if form == "internvl" else mean
    centre = mean if form == "internvl" else torch.zeros_like(mean)
    c = torch.zeros(mean.shape[1], mean.shape[1], dtype=mean.dtype, device=mean.device)
    d = torch.zeros_like(mean)
    for tau in taus:
        square = tau.square().sum()
        if square == 0:
            continue
        r = min(tau.shape) // len(taus)
        _, s, vh = torch.linalg.svd(tau, full_matrices=False)
        l = s[:r, None] * vh[:r]  # noqa: E741 - L_i, without its zero rows
        gram = l.T @ l / square
        u, s, vh = torch.linalg.svd(tau - centre, full_matrices=False)
        c += gram
        d += (centre + (u[:, :r] * s[:r]) @ vh[:r]) @ gram
    return Quadratic(c, d).minimise(start, "adam" if form == "internvl" else "sgd", lr, iterations)


class WudiV2(Settings):
    """Options of WUDI v2."""

    form: Form = option(
        "internvl",
        "which of its authors' two programs: internvl (centred, from Σ τ, Adam) or qwen2_vl (not centred, from mean τ, "
        "SGD), which they ran on experts trained as adapters",
        "ours: their experts whose weights were all trained, internvl's, are the more general case",
    )
    lr: Annotated[float, Field(ge=0)] | Literal["authors"] = option(
        "authors",
        "the rate: a number, or that of the authors' code for the form, 1e-5 for internvl (the paper's code has 1e-6) "
        "and 1e-4 for qwen2_vl",
        "its authors' code",
    )
    iterations: int = ITERATIONS
    scale: float = FIXED_SCALE


@method("wudi_v2", options=WudiV2, parts=(wudi_v2, wudi_v2_matrix))
def merge(ctx: Context[WudiV2]) -> Merge:
    form, lr, iterations = ctx.options.form, ctx.options.lr, ctx.options.iterations
    rate = RATES[form] if lr == "authors" else lr
    return matrices(ctx, lambda taus: wudi_v2_matrix(taus, form, rate, iterations), ctx.options.scale)
