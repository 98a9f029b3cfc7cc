"""The figures of the tables' notebook: each is drawn as wide as a page and comes with what it shows in words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emkit import pictures
from emkit.coefficients import Coefficients
from emkit.files import atomic_write
from eval import comparisons, scale, style, sweeps
from eval import heatmap as heat
from eval.places import Job
from eval.plan import Plan
from eval.render import AVERAGE, NOT_RUN, Entry, as_written, grid
from eval.style import COLOURS, Picture

AHEAD, BEHIND, OPEN = COLOURS[0], COLOURS[1], "0.45"


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG, in the same bytes whenever it is the same figure."""
    with atomic_write(path) as part:
        part.write_bytes(pictures.png(figure))
    plt.close(figure)


def _nothing(title: str, reason: str) -> Picture:
    """A figure that says why there is nothing to draw."""
    with plt.rc_context(style.SETTINGS):
        figure, axes = plt.subplots(figsize=(style.WIDTH, 1.0))
        axes.text(0.5, 0.5, reason, ha="center", va="center")
        axes.set_axis_off()
        axes.set_title(title)
    return Picture(figure, f"{title}: {reason}.")


# ---- the table
def heatmap(plan: Plan, lines: Sequence[Entry], rows: Sequence[str] = (), columns: Sequence[str] = ()) -> Picture:
    """:func:`eval.heatmap.draw` of a plan's table as written: of ``rows`` (ids) and ``columns``, of all where none are
    given."""
    lines = as_written(lines)
    with plt.rc_context(style.SETTINGS):
        table, title = grid(lines), f"{plan.table.title}, profile {plan.profile.name}: scores in percent"
        kept = [plan.rows[row] for row in rows or plan.rows]
        beside = [row.label for row in kept if row.method is not None and not row.merges]
        beyond = {row.label: table[row.label] for row in kept if row.beyond}
        merges = {row.label: table[row.label] for row in kept if row.label not in (*beside, *beyond)}
        groups = {name: plan.experts.get(name, "") for name in columns or plan.benchmarks}
        others = {label: table[label] for label in beside}
        return heat.draw(merges, others, heat.ways(plan, lines), groups, title, beyond)


def of_table(plan: Plan, lines: Sequence[Entry]) -> Picture:
    """The figure that stands beside a table: scores over a sweep's number; else rows coloured by what base and experts
    reach, where the table has them; else what each row is ahead of the one that all are compared with."""
    if plan.table.sweep is not None:
        return sweeps.picture(plan, lines)
    if any(row.method == "checkpoint" for row in plan.rows.values()):
        return heatmap(plan, lines)
    against = plan.table.against
    shown = [comparisons.named(plan, pair) for pair in plan.table.pairs if against in (None, pair[1])]
    found = [each for each in comparisons.compare(plan, plan.table.pairs) if each["rows"] in shown]
    return differences(found, f"{plan.table.title}, profile {plan.profile.name}")


# ---- comparisons
def differences(compared: Sequence[Mapping], title: str) -> Picture:
    """Paired differences with 95 % intervals, one panel a pair of rows, one line a benchmark; the average is lowest.

    The axis holds nine of ten intervals whole; what lies beyond is an arrow at the edge with its number. Filled: shown
    to differ, by Holm's p.
    """
    found = [comparison for comparison in compared if "delta" in comparison]
    if not found:
        return _nothing(title, "the rows to compare are not run yet")
    pairs = list(dict.fromkeys(comparison["rows"] for comparison in found))
    names = list(dict.fromkeys(comparison["benchmark"] for comparison in found))
    reach, beside = _reach(found), min(len(pairs), 5)
    lines = math.ceil(len(pairs) / beside)
    size = (style.WIDTH, lines * (0.24 * len(names) + 1.0) + 0.5)
    with plt.rc_context(style.SETTINGS):
        figure, panels = plt.subplots(lines, beside, figsize=size, sharey=True, sharex=True, squeeze=False)
        for axes, pair in zip(panels.flat, pairs, strict=False):
            _forest(axes, [comparison for comparison in found if comparison["rows"] == pair], reach)
            axes.set_title(_lines(pair, 120 // beside), fontsize=9)
        for axes in panels.flat[len(pairs) :]:
            axes.set_axis_off()
        panels[0, 0].set(xlim=(-1.12 * reach, 1.12 * reach), ylim=(len(names) - 0.3, -0.6))
        panels[0, 0].set_yticks([*range(len(names) - 1), len(names) - 0.8], names)
        figure.supxlabel("percentage points by which the first row is ahead; filled: shown to differ", fontsize=10)
        figure.suptitle(title, fontsize=10)
    return Picture(figure, _in_words(found))


def _lines(pair: str, width: int) -> str:
    """The two rows below each other, in lines of so many letters at most."""
    first, _, second = pair.partition(" − ")
    return "\n".join([*textwrap.wrap(first, width), *textwrap.wrap(f"− {second}", width)])


def _reach(found: Sequence[Mapping]) -> float:
    """Half the width of the axis, in points: nine of ten intervals lie within; a whole number."""
    ends = [max(abs(comparison["low"]), abs(comparison["high"])) for comparison in found]
    ends = [end for end in ends if math.isfinite(end)] or [abs(comparison["delta"]) for comparison in found]
    return max(1.0, float(np.ceil(np.quantile(ends, 0.9))))


def _forest(axes: Axes, found: Sequence[Mapping], reach: float) -> None:
    """The lines of one pair of rows; what is beyond ``reach`` becomes an arrow with its number."""
    axes.axvline(0, color=style.GREY, linewidth=0.8)
    for place, comparison in enumerate(found):
        average = comparison["benchmark"] == AVERAGE
        at, delta, shown = place + 0.2 * average, comparison["delta"], comparison["holm"] < 0.05
        colour = (AHEAD if delta > 0 else BEHIND) if shown else OPEN
        low, high = np.clip([comparison["low"], comparison["high"]], -1.1 * reach, 1.1 * reach)
        axes.plot([low, high], [at, at], color=colour, linewidth=2.4 if average else 1.4)
        if abs(delta) <= reach:
            face = colour if shown else "white"
            axes.plot(delta, at, marker="D" if average else "o", color=colour, markerfacecolor=face, markersize=5)
        else:
            side = math.copysign(1.0, delta)
            axes.plot(side * 1.06 * reach, at, marker=">" if side > 0 else "<", color=colour, markersize=6)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # for the interval runs under the number
            ha = "right" if side > 0 else "left"
            axes.text(side * 0.95 * reach, at, f"{delta:+.0f}", ha=ha, va="center", fontsize=9, bbox=box)


def _in_words(found: Sequence[Mapping]) -> str:
    """The averages' differences as a text."""
    said = [
        f"{comparison['rows']}: {comparison['delta']:+.1f} points ({comparison['low']:.1f} to {comparison['high']:.1f})"
        for comparison in found
        if comparison["benchmark"] == AVERAGE
    ]
    return f"Paired differences with 95 % intervals, a panel for each pair of rows. On average, {'; '.join(said)}."


# ---- the free scale
def scale_curves(plan: Plan, rows: Sequence[str] = ()) -> Picture:
    """The mean validation score against λ for every row whose λ is searched (those of ``rows``, if any are given), with
    one standard error, the chosen value and the same axes; a row without a choice says so."""
    asked = [row for row in [*plan.rows, *plan.scale_rows] if row in plan.scale_rows and (not rows or row in rows)]
    asked = list(dict.fromkeys(asked))  # in the table's order; a row that it does not show comes last
    title = f"{plan.table.title}, profile {plan.profile.name}"
    if not asked:
        return _nothing(title, "no row's scale is searched for here")
    choices = {row: scale.read(plan, row) if plan.scale_file(row).is_file() else None for row in asked}
    labels = {row: plan.entry(row).label for row in asked}
    beside = min(len(asked), 3)
    lines = math.ceil(len(asked) / beside)
    with plt.rc_context(style.SETTINGS):
        size = (style.WIDTH, 1.9 * lines + 0.5)
        figure, panels = plt.subplots(lines, beside, figsize=size, sharex=True, sharey=True, squeeze=False)
        for axes, row in zip(panels.flat, asked, strict=False):
            _curve(axes, labels[row], choices[row])
        for axes in panels.flat[len(asked) :]:
            axes.set_axis_off()
        figure.supxlabel("λ", fontsize=10)
        figure.supylabel("mean validation score, %", fontsize=10)
    said = [f"{labels[row]} {_chosen(choice)}" for row, choice in choices.items()]
    return Picture(figure, f"Mean validation score against λ, a panel for each method. Chosen: {', '.join(said)}.")


def _chosen(choice: Mapping | None) -> str:
    return NOT_RUN if choice is None else f"λ = {choice['scale']:g}"


def _curve(axes: Axes, label: str, choice: Mapping | None) -> None:
    """One method's validation curve."""
    axes.set_title(f"{label}: {_chosen(choice)}")
    axes.tick_params(labelbottom=True)
    if choice is None:
        axes.text(0.5, 0.5, NOT_RUN, ha="center", va="center", transform=axes.transAxes)
        return
    scales, means, errors = (np.array([point[key] for point in choice["curve"]]) for key in ("scale", "mean", "stderr"))
    axes.fill_between(scales, means - errors, means + errors, alpha=0.2, linewidth=0)
    axes.plot(scales, means, marker="o", markersize=4)
    axes.axvline(choice["scale"], color=style.GREY, linestyle="--", linewidth=1)


# ---- what was learned
def learned(plan: Plan) -> Picture:
    """The coefficients of the first of the table's learned rows, with its first seed."""
    rows = [row for row in plan.table.learned if row in plan.rows]
    if not rows:
        return _nothing(plan.table.title, "no row of this table is learned")
    title = f"{plan.rows[rows[0]].label}, seed {plan.seeds(rows[0])[0]}"
    path = plan.cells(Job(rows[0], plan.seeds(rows[0])[0])) / "coefficients.json"
    return coefficient_map(Coefficients.load(path), title) if path.is_file() else _nothing(title, NOT_RUN)


def coefficient_map(coefficients: Coefficients, title: str) -> Picture:
    """:meth:`Coefficients.plot`, with each expert's mean and reach in words."""
    figure = coefficients.plot()
    figure.suptitle(title, fontsize=10)
    means = {
        name: np.array([value[k].mean() for value in coefficients.values.values()])
        for k, name in enumerate(coefficients.experts)
    }
    said = [f"{name} {each.mean():.2f} ({each.min():.2f} to {each.max():.2f})" for name, each in means.items()]
    return Picture(figure, f"Learned coefficients by block and kind of tensor. Mean and range: {', '.join(said)}.")
