"""The figures of the notebook on the published tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from emkit.pictures import COLOURS
from eval import style
from eval.lessons import precision, published
from eval.lessons.published import AVERAGE, BACKBONES, GAMMA, NUMBERS, SAMPLES

_COLOUR = dict(zip(BACKBONES, COLOURS))


def averages(found: pd.DataFrame) -> Figure:
    """Printed average minus the mean of its cells, in hundredths, one line a table; outliers at the edge by name."""
    figure, axis = plt.subplots(figsize=(style.WIDTH, 3.9))
    numbers = sorted(found["table"].unique())
    backbone = {number: name for name, of in NUMBERS.items() for number in of.values()}
    axis.axvspan(-0.5, 0.5, color=COLOURS[5], alpha=0.3, lw=0, label="rounded")
    axis.axvspan(-1, 0, facecolor="none", edgecolor="0.3", lw=1.2, ls="--", label="truncated")
    for place, number in enumerate(numbers):
        off = 100 * found[found["table"] == number]["off"]
        inside = off[off.abs() <= 1.2]
        axis.scatter(inside, np.full(len(inside), place), s=22, color=_COLOUR[backbone[number]], zorder=3)
        for row in off[off.abs() > 1.2].index:
            axis.annotate(
                f"{found.loc[row, 'row']}: {found.loc[row, 'off']:+.2f} points",
                (-1.25, place),
                xytext=(-1.2, place),
                va="center",
                fontsize=9,
                arrowprops={"arrowstyle": "->"},
            )
    axis.set_yticks(range(len(numbers)), [f"Table {n}, {BACKBONES[backbone[n]]}" for n in numbers])
    axis.set(xlim=(-1.27, 1.05), xlabel="printed average − mean of the printed cells (hundredths of a point)")
    axis.invert_yaxis()
    axis.legend(loc="center right")
    return figure


def disagreements(tables: published.Tables, found: pd.DataFrame) -> Figure:
    """One configuration printed twice: the difference of every column, a panel where several columns differ."""
    odd = found[[bool(count) and count > 1 for count in found["columns that differ"]]]
    figure, axes = plt.subplots(1, len(odd), figsize=(style.WIDTH, 3.4), sharey=False)
    shown: list[str] = []
    for axis, (_, line) in zip(np.atleast_1d(axes), odd.iterrows()):
        first = found[(found["backbone"] == line["backbone"]) & (found["configuration"] == line["configuration"])].iloc[
            0
        ]
        apart = (tables[line["table"]].loc[line["row"]] - tables[first["table"]].loc[first["row"]])[::-1]
        colours = [COLOURS[1] if name == AVERAGE else COLOURS[0] for name in apart.index]
        axis.barh(range(len(apart)), apart, color=colours)
        _names(axis, apart.index, shown)
        shown = list(apart.index)
        axis.axvline(0, color=style.GREY, lw=0.8)
        axis.set_title(
            f"{BACKBONES[line['backbone']]}, {line['configuration']}\nTable {line['table']} − Table {first['table']}"
        )
        axis.set_xlabel("points")
    return figure


def _names(axis: Axes, names: Iterable[str], before: list[str]) -> None:
    """Names of bars, where the panel before has not the same ones."""
    names = list(names)
    axis.set_yticks(range(len(names)), [""] * len(names) if names == before else names)


def errors(rows: Mapping[str, pd.DataFrame]) -> Figure:
    """Per backbone one standard error of every column, with the share of the average's variance written beside."""
    figure, axes = plt.subplots(1, len(rows), figsize=(style.WIDTH, 3.4))
    shown: list[str] = []
    for axis, (title, found) in zip(axes, rows.items(), strict=True):
        found = found[::-1]
        axis.barh(range(len(found)), found["stderr"], color=COLOURS[0])
        for place, (error, share) in enumerate(zip(found["stderr"], found["share of the average's variance"])):
            axis.text(error + 0.1, place, f"{100 * share:.0f} %", va="center", fontsize=9)
        _names(axis, found.index, shown)
        shown = list(found.index)
        axis.set(title=title, xlabel="standard error (points)", xlim=(0, 1.3 * found["stderr"].max()))
    return figure


def gains(found: pd.DataFrame, level: float = 0.05) -> Figure:
    """Every headline gain with its unpaired interval, a panel a backbone; colour says what a test can conclude."""
    reach = stats.norm.isf(level / 2)
    colours = dict(zip(("ahead even unpaired", "depends on the items", "cannot be shown"), COLOURS))
    groups = [of.reset_index(drop=True) for _, of in found.groupby("backbone", sort=False)]
    sizes = [len(of) for of in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(style.WIDTH, 0.24 * sum(sizes) + 1.6), sharex=True, height_ratios=sizes
    )
    for axis, of in zip(axes, groups):
        for verdict, colour in colours.items():
            some = of[of["verdict"] == verdict]
            axis.errorbar(some["gain"], some.index, xerr=reach * some["stderr"], fmt="none", color=colour)
            axis.scatter(some["gain"], some.index, color=colour, s=22, label=verdict)
        labels = [text.replace("Expert Merging", "EM").replace("coefficient ", "") for text in of["comparison"]]
        axis.set_yticks(range(len(of)), labels)
        axis.set(title=BACKBONES[of["backbone"].iloc[0]], ylim=(len(of) - 0.4, -0.6))
        axis.axvline(0, color=style.GREY, lw=0.8)
    axes[0].legend(loc="upper right")
    axes[-1].set_xlabel("difference of the averages (points), with its unpaired interval")
    return figure


def sweeps(tables: published.Tables, metrics: pd.DataFrame) -> Figure:
    """Averages over γ and N, each backbone in a column, around them one standard error of the average over items."""
    figure, axes = plt.subplots(2, len(NUMBERS), figsize=(style.WIDTH, 4.6), sharey="col")
    for column, (backbone, number) in enumerate(NUMBERS.items()):
        for line, (kind, value) in enumerate(zip((GAMMA, SAMPLES), published.defaults(backbone))):
            frame, axis = tables[number[kind]], axes[line, column]
            error = [precision.average_stderr(scores, metrics) for _, scores in frame.iterrows()]
            places, chosen = range(len(frame)), [float(row) == value for row in frame.index].index(True)
            axis.fill_between(
                places, frame[AVERAGE] - error, frame[AVERAGE] + error, color=COLOURS[5], alpha=0.35, lw=0
            )
            axis.plot(places, frame[AVERAGE], marker=".", color=COLOURS[0])
            axis.plot(chosen, frame[AVERAGE].iloc[chosen], "o", ms=9, mfc="none", color=COLOURS[1], label="the default")
            shown = list(places)[:: 3 if len(frame) > 10 else 1]
            axis.set_xticks(shown, [frame.index[place] for place in shown], rotation=90)
            axis.set_xlabel({GAMMA: "γ", SAMPLES: "N"}[kind])
            if line == 0:
                axis.set_title(BACKBONES[backbone])
    axes[0, 0].set_ylabel("average")
    axes[1, 0].set_ylabel("average")
    axes[0, 0].legend(loc="lower right")
    return figure
