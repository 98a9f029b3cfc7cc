"""Why the exact minimum of WUDI's objective ruins a model: the eigenvalues of its quadratic form, and where to stop.

WUDI asks for an M with small Σ_k ‖(M − τ_k) τ_kᵀ‖² / ‖τ_k‖². Along an eigenvector of C = Σ_k n τ_kᵀτ_k / ‖τ_k‖² with
eigenvalue c the objective is a parabola of curvature c: where c is small, M costs nothing, whatever it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import emkit
from emkit import Experts, Live, Merged
from emkit.methods.ridge import WeightMoments
from emkit.pictures import COLOURS
from emkit.task_vectors import TaskVectors
from eval import style
from eval.lessons import probe
from eval.lessons.importance import placed

DECADES, LENGTH, OBJECTIVE, LOSS = "decades", "‖M‖ / ‖Σ τ‖", "objective / that of Σ τ", "loss (nats)"


def spectra(vectors: TaskVectors, backbone: str) -> pd.DataFrame:
    """By matrix the eigenvalues of C, largest first (``eigenvalues``; C is n × n, its mean eigenvalue at most K), and
    over how many ``decades`` those go that are not rounding."""
    names = [name for name in vectors.names if len(vectors.base.info(name).shape) == 2]
    frame = placed(names, backbone).set_index("tensor")
    lines = {}
    for name in frame.index:
        total = sum(WeightMoments(vectors.tau(name).double()))
        values = np.linalg.eigvalsh(np.asarray(total))[::-1]
        lines[name] = {"eigenvalues": values, DECADES: decades(values)}
    return frame.join(pd.DataFrame.from_dict(lines, orient="index"))


def decades(values: np.ndarray) -> float:
    """log₁₀ of the largest eigenvalue over the smallest that is more than float64's rounding of it."""
    real = values[values > values.max() * len(values) * np.finfo(np.float64).eps]
    return float(np.log10(real.max() / real.min()))


def falling(frame: pd.DataFrame) -> Figure:
    """The eigenvalues of every matrix, a panel a kind of matrix, a line a block."""
    kinds = list(dict.fromkeys(frame["submodule"].dropna()))
    made, axes = plt.subplots(1, len(kinds), figsize=(style.WIDTH, 2.9), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds):
        own = frame[frame["submodule"] == kind]
        for values, shade in zip(own["eigenvalues"], np.linspace(0.35, 1.0, len(own))):
            values = values[values > values.max() * 1e-9]
            axis.plot(np.arange(1, len(values) + 1) / len(values), values, color=COLOURS[0], alpha=shade, lw=1.2)
        axis.axhline(1, color=style.GREY, lw=1, zorder=0)
        axis.set_title(kind, fontsize=9)
        axis.set(yscale="log", xlim=(0, 1))
        axis.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    axes[0, 0].set_ylabel("eigenvalue of C")
    made.supxlabel("place among the eigenvalues, as a share (a line a block, the last the darkest)", fontsize=10)
    return made


def ways(experts: Experts, lr: float, steps: Sequence[int], rhos: Sequence[float]) -> dict[str, Merged]:
    """Merges by WUDI's objective: Adam after some ``steps`` at rate ``lr``, its minimum, and that with ridges."""
    found = {f"Adam, {n} steps": emkit.wudi(experts, lr=lr, iterations=n) for n in steps}
    found["its minimum"] = emkit.wudi(experts, solver="closed_form")
    return found | {f"ridge, ρ = {rho:g}": emkit.ridge(experts, rho=rho) for rho in rhos}


def stopped(live: Live, merges: Mapping[str, Merged], questions: Sequence[probe.Question]) -> pd.DataFrame:
    """By merge: the length of what it adds to the base, as a share of Σ τ; what is left of the objective that Σ τ has;
    and the loss of gold answers to ``questions``. Over all matrices together."""
    vectors = live.vectors
    names = [name for name in vectors.names if len(vectors.base.info(name).shape) == 2]
    lines = {}
    for label, merge in merges.items():
        live.set(merge)
        length = whole = left = at_sum = 0.0
        for name in names:
            taus = vectors.tau(name).double()
            added = merge[name].double() - vectors.base.read(name).double()
            length, whole = length + float(added.square().sum()), whole + float(taus.sum(0).square().sum())
            left, at_sum = left + objective(added, taus), at_sum + objective(taus.sum(0), taus)
        lines[label] = [(length / whole) ** 0.5, left / at_sum, probe.loss(live, questions)]
    return pd.DataFrame.from_dict(lines, orient="index", columns=[LENGTH, OBJECTIVE, LOSS])


def objective(m, taus) -> float:
    """Σ_k ‖(M − τ_k) τ_kᵀ‖² / ‖τ_k‖² (Cheng et al., 2025), of M [m, n] and τ [K, m, n]; an all-zero τ_k counts 0."""
    return sum(float(((m - tau) @ tau.T).square().sum() / tau.square().sum()) for tau in taus if tau.any())


def verdict(frame: pd.DataFrame, spectrum: pd.DataFrame) -> str:
    """What both tables come to, in Markdown."""
    best, minimum = frame[LOSS].idxmin(), frame.loc["its minimum"]
    low, high = spectrum[DECADES].min(), spectrum[DECADES].max()
    return (
        f"The eigenvalues of C run over {low:.1f} to {high:.1f} decades. At its minimum, with "
        f"{minimum[OBJECTIVE]:.2f} of the objective that Σ τ has, the loss is {minimum[LOSS]:.2f} nats; the lowest "
        f"loss, {frame[LOSS].min():.2f}, is that of *{best}*, with {frame.loc[best, OBJECTIVE]:.2f} of the objective."
    )
