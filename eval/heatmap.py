"""The heat map of a table: how far each row has come from the base to the experts, benchmark by benchmark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

from eval import style
from eval.plan import Plan
from eval.render import AVERAGE, NOT_RUN, Entry, grid

Rows = Mapping[str, Mapping[str, Entry]]  # label → column → entry
LIMITS = (25.0, 50.0, 100.0)  # per cent of the way: where the colours of the merges may end
ROW = 0.235  # inches
# in steps that the bar shows, one of them around 0, without the darkest ends
COLOURS = ListedColormap(plt.get_cmap(style.DIVERGING)(np.linspace(0.1, 0.9, 21)))
GREY = "0.92"


@dataclass(frozen=True)
class Way:
    """A column's yardstick, in percent: the base's score and that of the column's own expert (for the average, the mean
    of the columns' own experts), and the standard error of their difference, as if of different items."""

    base: float
    expert: float
    error: float
    of: str  # whose column it is

    @property
    def measures(self) -> bool:
        """Whether the expert is ahead of the base by more than two standard errors; else nothing is measured by it."""
        return self.expert - self.base > 2 * self.error

    def share(self, score: float) -> float:
        """How far ``score`` has come, in per cent of the way from the base to the expert; below 0 it is behind the
        base, above 100 ahead of the expert."""
        return 100 * (score - self.base) / (self.expert - self.base)


def ways(plan: Plan, lines: Sequence[Entry]) -> dict[str, Way]:
    """The yardstick of every column whose base and own expert have a score; of the average, if every column has one."""
    table = grid(lines)
    labels = {row.model: row.label for row in plan.rows.values() if row.method == "checkpoint"}
    found = {}
    for benchmark, expert in plan.experts.items():
        base, own = (table.get(labels.get(model, ""), {}).get(benchmark) for model in ("base", expert))
        if base is None or own is None or base.score is None or own.score is None:
            continue
        found[benchmark] = Way(base.score, own.score, math.hypot(base.stderr or 0.0, own.stderr or 0.0), expert)
    if found and set(found) == set(plan.benchmarks):
        of, n = found.values(), len(found)
        error = math.sqrt(sum(way.error**2 for way in of)) / n
        found[AVERAGE] = Way(sum(way.base for way in of) / n, sum(way.expert for way in of) / n, error, "all")
    return found


def shares(row: Mapping[str, Entry], yardsticks: Mapping[str, Way], columns: Sequence[str]) -> np.ndarray:
    """A row's :meth:`Way.share` in each column, float64; NaN where there is no score or nothing to measure by."""
    return np.array(
        [
            yardsticks[name].share(score)
            if (score := row[name].score) is not None and name in yardsticks and yardsticks[name].measures
            else np.nan
            for name in columns
        ]
    )


def limit(found: np.ndarray, limits: Sequence[float] = LIMITS) -> float:
    """Where colours end: the smallest of ``limits`` within which four of five shares lie, else the largest."""
    finite = np.abs(found[np.isfinite(found)])
    return next((value for value in limits if finite.size and np.mean(finite <= value) >= 0.8), limits[-1])


class Panel(NamedTuple):
    """One of the two panels, and where its colours may end."""

    name: str
    rows: Rows
    limits: Sequence[float]


def draw(
    merges: Rows,
    others: Rows,
    yardsticks: Mapping[str, Way],
    groups: Mapping[str, str],
    title: str,
    beyond: Rows | None = None,
) -> style.Picture:
    """Two panels, the ``merges`` and what they are made of and judged by; rows × columns, the numbers are scores in
    percent, the colours :func:`shares`, each panel on its own scale. Merges ``beyond`` the paper, if there are any,
    have a panel of their own between them.

    ``groups`` says whose the columns are, in their order; the average stands last, apart.
    """
    columns = [*groups, AVERAGE]
    beside = Panel("Base, experts, training on all data together", others, LIMITS[-1:])
    apart = Panel("Merges beyond the paper", beyond or {}, LIMITS)
    panels = [panel for panel in (Panel("Merges", merges, LIMITS), apart, beside) if panel.rows]
    slanted = len(columns) > 7
    heights = [len(panel.rows) * ROW + (1.9 if slanted else 1.5) for panel in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(style.WIDTH, sum(heights)), height_ratios=heights, squeeze=False
    )
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        found = np.array([shares(row, yardsticks, columns) for row in panel.rows.values()])
        _cells(axis, panel.rows, columns, found / limit(found, panel.limits))
        _heads(axis, columns, list(groups.values()), slanted)
        axis.set_title(panel.name, loc="left", fontweight="bold")
        if np.isfinite(found).any():
            _bar(axis, limit(found, panel.limits), bool(np.isnan(found).any()))
    figure.suptitle(title, fontsize=10)
    return style.Picture(figure, described(merges, yardsticks, columns))


def described(merges: Rows, yardsticks: Mapping[str, Way], columns: Sequence[str]) -> str:
    """The picture of the merges in words."""
    cells = {label: shares(row, yardsticks, columns[:-1]) for label, row in merges.items()}
    counts = [
        f"{label} {np.sum(found > 0)} of {np.isfinite(found).sum()}"
        for label, found in cells.items()
        if np.isfinite(found).any()
    ]
    ahead = f" Columns in which a merge is ahead of the base: {', '.join(counts)}." if counts else ""
    return f"Heat map of {len(merges)} merges and what they are judged by, on {len(columns) - 1} benchmarks.{ahead}"


def _cells(axis: Axes, rows: Rows, columns: Sequence[str], shades: np.ndarray) -> None:
    """The coloured cells with their numbers; ``shades`` in [-1, 1], beyond it at the ends of the colours, NaN grey."""
    places = _places(columns)
    for (i, j), shade in np.ndenumerate(shades):
        colour = GREY if np.isnan(shade) else COLOURS(0.5 + 0.5 * np.clip(shade, -1, 1))
        axis.add_patch(Rectangle((places[j] - 0.5, i - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.5))
    for i, row in enumerate(rows.values()):
        said = [_said(row[column]) for column in columns]
        if set(said) == {"–"}:
            axis.text(sum(places) / len(places), i, NOT_RUN, ha="center", va="center", fontsize=9, style="italic")
            continue
        for j, text in enumerate(said):
            ink = "white" if abs(shades[i, j]) > 0.75 else "black"
            axis.text(places[j], i, text, ha="center", va="center", fontsize=9, color=ink)
    axis.set(xlim=(-0.5, places[-1] + 0.5), ylim=(len(rows) - 0.5, -0.5))
    axis.set_yticks(range(len(rows)), list(rows))
    axis.spines[:].set_visible(False)


def _places(columns: Sequence[str]) -> list[float]:
    """Where columns stand; the last, the average, a little apart."""
    return [*range(len(columns) - 1), len(columns) - 1 + 0.15]


def _said(entry: Entry) -> str:
    """A cell's score, else what is wrong with it."""
    if entry.score is not None:
        return f"{entry.score:.1f}"
    return "–" if entry.status == NOT_RUN else entry.status


def _heads(axis: Axes, columns: Sequence[str], groups: Sequence[str], slanted: bool) -> None:
    """The columns' names on top, and under them a line for every run of columns of one expert, with its name."""
    axis.xaxis.tick_top()
    axis.set_xticks(_places(columns), columns)
    if slanted:
        plt.setp(axis.get_xticklabels(), rotation=35, ha="left", rotation_mode="anchor")
    axis.tick_params(length=0, pad=17, axis="x")
    axis.tick_params(length=0, axis="y")
    place, at = axis.get_xaxis_transform(), 0
    for name, run in itertools.groupby(groups):
        stop = at + len(list(run))
        axis.plot([at - 0.4, stop - 0.6], [1, 1], transform=place, color="0.3", linewidth=1, clip_on=False)
        middle, above = ((at + stop - 1) / 2, 1), (0, 3)
        axis.annotate(name, middle, above, xycoords=place, textcoords="offset points", ha="center", fontsize=9)
        at = stop


def _bar(axis: Axes, reach: float, some_grey: bool) -> None:
    """What the colours say."""
    shown = plt.cm.ScalarMappable(plt.Normalize(-reach, reach), COLOURS)
    label = "colour: % of the way from the base (0) to the column's own expert (100)"
    if some_grey:
        label += "\ngrey: the expert is not 2 standard errors ahead of the base, or there is no score"
    ticks = np.linspace(-reach, reach, 5)
    bar = axis.figure.colorbar(shown, ax=axis, location="bottom", extend="both", aspect=50, pad=0.02, ticks=ticks)
    bar.set_label(label, fontsize=9)
