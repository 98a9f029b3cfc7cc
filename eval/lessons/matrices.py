"""What merging methods make of one real matrix: which entries, which directions, how much of each expert."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from emkit.methods.ties import trim
from emkit.pictures import COLOURS
from eval import style


def signs(taus: torch.Tensor, density: float) -> pd.DataFrame:
    """How many entries of a tensor are kept by how many experts when each keeps its largest ``density``, and what part
    of these has both signs: ``kept by`` 0…K, ``share`` and ``conflict`` (shares of all entries)."""
    kept = trim(taus, density)
    count = (kept != 0).sum(dim=0)
    both = (kept > 0).any(dim=0) & (kept < 0).any(dim=0)
    rows = [(n, float((count == n).float().mean()), float((both & (count == n)).float().mean())) for n in _upto(taus)]
    return pd.DataFrame(rows, columns=["kept by", "share", "conflict"]).set_index("kept by")


def _upto(taus: torch.Tensor) -> range:
    return range(len(taus) + 1)


def described(made: Mapping[str, torch.Tensor], taus: torch.Tensor) -> pd.DataFrame:
    """Merged task matrices in numbers, one row each; ``taus`` [K, m, n] are what they were made of.

    ``size``: ‖M‖ / ‖Σ τ‖. ``entries``: the share that is not 0. ``rank``: the effective rank exp(−Σ p ln p), p the
    singular values over their sum (Roy and Vetterli, 2007). ``smallest`` and ``largest share``: the range over the
    experts of ⟨M, τ_k⟩ / ‖τ_k‖², 1 where M has τ_k as it is. ``interference``: Σ_k ‖(M − τ_k) τ_kᵀ‖² / ‖τ_k‖², what
    WUDI minimises, over the same of Σ τ.
    """
    total, squares = taus.sum(dim=0), taus.square().sum(dim=(1, 2))
    rows = {}
    for label, matrix in made.items():
        s = torch.linalg.svdvals(matrix.double())
        p = s[s > 0] / s.sum()
        shares = (matrix * taus).sum(dim=(1, 2)) / squares
        rows[label] = {
            "size": float(matrix.norm() / total.norm()),
            "entries": float((matrix != 0).float().mean()),
            "rank": float(torch.exp(-(p * p.log()).sum())),
            "smallest share": float(shares.min()),
            "largest share": float(shares.max()),
            "interference": interference(matrix, taus) / interference(total, taus),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def interference(matrix: torch.Tensor, taus: torch.Tensor) -> float:
    """Σ_k ‖(M − τ_k) τ_kᵀ‖² / ‖τ_k‖² of a matrix M [m, n] and K task matrices (Cheng et al., 2025)."""
    residuals = (matrix - taus) @ taus.transpose(1, 2)
    return float((residuals.square().sum(dim=(1, 2)) / taus.square().sum(dim=(1, 2))).sum())


# ------------------------------------------------------------------------------------------------------------- figures
def signs_figure(parts: Mapping[str, pd.DataFrame]) -> Figure:
    """Entries by how many experts keep them, conflicts of signs marked, from :func:`signs`: a panel each."""
    figure, axes = plt.subplots(1, len(parts), figsize=(style.WIDTH, 2.9), sharey=True, squeeze=False)
    for axis, (title, frame) in zip(axes[0], parts.items()):
        agree = 100 * (frame["share"] - frame["conflict"])
        axis.bar(frame.index, agree, color=COLOURS[0], label="one sign, or 0")
        bars = axis.bar(
            frame.index, 100 * frame["conflict"], bottom=agree, color=COLOURS[1], hatch="//", label="both signs"
        )
        axis.bar_label(bars, [f"{100 * value:.0f} %" if value > 0 else "" for value in frame["conflict"]], fontsize=9)
        axis.set(title=title, xlabel="experts that keep the entry", xticks=list(frame.index))
    axes[0, 0].set_ylabel("% of the entries")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def heat(made: Mapping[str, torch.Tensor], side: int = 40) -> Figure:
    """The first ``side`` × ``side`` entries of each matrix; exact zeros are grey. Each map has its own scale, up to the
    98th percentile of its magnitudes, since sizes are compared elsewhere."""
    columns = 4
    lines = -(-len(made) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(style.WIDTH, 2.35 * lines + 0.2), squeeze=False)
    colours = plt.get_cmap(style.DIVERGING).with_extremes(bad="0.75")
    for axis in axes.flat[len(made) :]:
        axis.axis("off")
    for axis, (label, matrix) in zip(axes.flat, made.items()):
        corner = matrix[:side, :side].numpy()
        limit = float(matrix[matrix != 0].abs().quantile(0.98))
        shown = np.ma.masked_where(corner == 0, corner)
        axis.imshow(shown, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set(title=label, xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure


def spectra(made: Mapping[str, torch.Tensor], taus: Mapping[str, torch.Tensor]) -> Figure:
    """Singular values of the experts' matrices (left) and of the merged ones (right), largest first; a step of the
    vertical axis is a factor."""
    figure, axes = plt.subplots(1, 2, figsize=(style.WIDTH, 3.4), sharey=True)
    largest = 0.0
    for axis, title, each in ((axes[0], "experts' τ_k", taus), (axes[1], "merged", made)):
        for number, (label, matrix) in enumerate(each.items()):
            values = torch.linalg.svdvals(matrix.double()).numpy()
            dashes, largest = ("-", "--")[number >= len(COLOURS) - 1], max(largest, values[0])
            axis.plot(np.arange(1, len(values) + 1), values, dashes, color=COLOURS[number % len(COLOURS)], label=label)
        axis.set(title=title, xlabel="number of the singular value")
        axis.legend(ncols=1 + (len(each) > 4), loc="lower left")
    axes[0].set(ylabel="singular value", yscale="log", ylim=(largest / 300, largest * 1.2))
    return figure


# ----------------------------------------------------------------------------------------------------------- sentences
def say_signs(kept: pd.DataFrame, every: pd.DataFrame) -> str:
    """How often signs conflict where the largest entries are kept, and where all are, as Markdown."""
    some, every_place = kept[kept.index > 0].sum(), 100 * every["conflict"].sum()
    alone, both = float(kept["share"].get(1, 0.0)) / some["share"], some["conflict"] / some["share"]
    coins = 1 - 2.0 ** (1 - every.index.max())
    return (
        f"With all entries kept, both signs occur in {every_place:.0f} % of the places; of coins tossed for signs it "
        f"would be {100 * coins:.0f} %. After trimming, {100 * some['share']:.0f} % of the places have anything left; "
        f"of these, {100 * alone:.0f} % have it from one expert alone, and {100 * both:.0f} % have both signs."
    )
