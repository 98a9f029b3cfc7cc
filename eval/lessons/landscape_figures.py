"""Pictures of a walk along one task vector, and of the plane of two with merges as points on it."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emkit.pictures import COLOURS
from eval import style
from eval.lessons.landscape import left

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


def plane(frame: pd.DataFrame, points: pd.DataFrame, ends: pd.DataFrame, pair: tuple[str, str]) -> Figure:
    """Loss of both tasks over (α₁, α₂), how much of the way to both experts is left, and the merges where they lie.

    Bands of a loss are of equal ratio, not of equal difference: losses differ by more than ten times.
    """
    figure, axes = plt.subplots(1, 3, figsize=(style.WIDTH, 4.0), sharex=True, sharey=True)
    for axis, task in zip(axes, pair):
        low, high = frame[task].min(), frame[task].max()
        _contours(axis, _grid(frame, frame[task]), np.geomspace(low, high * 1.001, 11), "log", "{:.2g}".format)
        axis.set_title(f"loss on {task}")
    rest = left(frame, ends)["mean"].clip(-0.5, 1.0)
    if rest.notna().all():
        low = min(np.floor(10 * rest.min()) / 10, 0.8)
        _contours(axes[2], _grid(frame, rest), np.arange(low, 1.05, 0.1), "linear", "{:.0%}".format)
    axes[2].set_title("left of the way to both")
    seen = points.drop_duplicates(["first", "second"])  # a model off the plane and the mean of its coefficients
    for axis in axes:
        for number, (label, row) in enumerate(seen.iterrows()):
            look = {"color": COLOURS[number % len(COLOURS)], "ms": 8, "mec": "w", "mew": 1.2, "label": str(label)}
            axis.plot(row["first"], row["second"], MARKS[number % len(MARKS)], **look)
        axis.set(xlabel=f"α of {pair[0]}", aspect="equal")
    axes[0].set_ylabel(f"α of {pair[1]}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _grid(frame: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """The values as a table, one row for each α₂ and one column for each α₁."""
    return frame.assign(value=values).pivot(index="second", columns="first", values="value")


def _contours(axis: Axes, values: pd.DataFrame, levels: np.ndarray, norm: str, text: Callable[[float], str]) -> None:
    places = values.columns, values.index, values
    axis.contourf(*places, levels=levels, cmap=f"{style.SEQUENTIAL}_r", norm=norm, extend="both")
    lines = axis.contour(*places, levels=levels[1:-1:2], colors="k", linewidths=0.6)
    axis.clabel(lines, fmt=text, fontsize=9)


def rest(frame: pd.DataFrame) -> Figure:
    """What every merge leaves of the way to each expert, from :func:`eval.lessons.landscape.left`, in percent."""
    figure, axis = plt.subplots(figsize=(style.WIDTH, 0.9 + 0.3 * len(frame)))
    image = axis.imshow(100 * frame, aspect="auto", cmap=f"{style.SEQUENTIAL}_r", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(100 * frame.to_numpy()):
        said = "–" if np.isnan(value) else f"{value:.0f}"
        axis.text(j, i, said, ha="center", va="center", color="w" if value > 55 else "k")
    axis.set_xticks(range(len(frame.columns)), frame.columns)
    axis.set_yticks(range(len(frame)), frame.index)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, label="% of the way left", extend="both")
    return figure
