"""Pictures of a walk along one task vector, and of the plane of two with merges as points on it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emkit.pictures import COLOURS
from eval import style

MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")


def walk(frame: pd.DataFrame, expert: str) -> Figure:
    """Loss and accuracy of every task over α, from :func:`eval.lessons.landscape.walk`."""
    figure, axes = plt.subplots(1, 2, figsize=(style.WIDTH, 3.3), sharex=True)
    panels = (("loss", "loss (nats a token)", 1), ("accuracy", "right answers (%)", 100))
    for axis, (key, label, factor) in zip(axes, panels):
        for number, (task, part) in enumerate(frame.groupby("task", sort=False)):
            wide = 2.5 if task == expert else 1.2
            colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
            shown = part.dropna(subset=[key])
            axis.plot(
                shown["alpha"], factor * shown[key], color=colour, marker=mark, ms=4, linewidth=wide, label=str(task)
            )
        for place, name in ((0, "base"), (1, "expert")):
            axis.axvline(place, color=style.GREY, linewidth=0.8, zorder=0)
            axis.text(place, 1.0, name, transform=axis.get_xaxis_transform(), ha="center", va="bottom", fontsize=9)
        axis.set(xlabel=f"α: θ_base + α τ of {expert}", ylabel=label, ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, title="questions of")
    return figure


def plane(frame: pd.DataFrame, points: pd.DataFrame, pair: tuple[str, str]) -> Figure:
    """Loss of both tasks and their mean over (α₁, α₂), and the merges where they lie.

    Bands are of equal ratio, not of equal difference: losses differ by more than ten times.
    """
    figure, axes = plt.subplots(1, 3, figsize=(style.WIDTH, 4.0), sharex=True, sharey=True)
    grids = {f"loss on {task}": _grid(frame, frame[task]) for task in pair}
    grids["mean of both"] = _grid(frame, frame[list(pair)].mean(axis=1))
    for axis, (title, values) in zip(axes, grids.items()):
        _contours(axis, values)
        for number, (label, row) in enumerate(points.iterrows()):
            colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
            axis.plot(
                row["first"], row["second"], mark, color=colour, ms=8, mec="w", mew=1.2, label=str(label), clip_on=False
            )
        axis.set(title=title, xlabel=f"α of {pair[0]}", aspect="equal")
    axes[0].set_ylabel(f"α of {pair[1]}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _grid(frame: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """The values as a table, one row for each α₂ and one column for each α₁."""
    return frame.assign(value=values).pivot(index="second", columns="first", values="value")


def _contours(axis: Axes, values: pd.DataFrame) -> None:
    low, high = float(values.min().min()), float(values.max().max())
    levels = np.geomspace(low, high * 1.001, 11)
    axis.contourf(values.columns, values.index, values, levels=levels, cmap=f"{style.SEQUENTIAL}_r", norm="log")
    lines = axis.contour(values.columns, values.index, values, levels=levels[1:-1:2], colors="k", linewidths=0.6)
    axis.clabel(lines, fmt="%.2g", fontsize=9)
