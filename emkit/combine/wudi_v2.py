"""WUDI v2: WUDI's objective on the leading singular directions of the task vectors."""

from __future__ import annotations

from collections.abc import Collection

import torch

from emkit.combine.wudi import Quadratic

FORMS = ("internvl", "qwen2_vl")


def wudi_v2_matrix(
    taus: Collection[torch.Tensor], form: str = "internvl", lr: float = 1e-5, iterations: int = 300
) -> torch.Tensor:
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
    mean = _sum(taus) / len(taus)
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


def _sum(taus: Collection[torch.Tensor]) -> torch.Tensor:
    total = None
    for tau in taus:
        total = tau.clone() if total is None else total.add_(tau)
    return total
