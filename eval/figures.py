"""The figures of the tables' notebooks. Each function draws what it is given and returns the matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from emkit.coefficients import Coefficients
from emkit.files import atomic_write
from eval import scale
from eval.places import Job
from eval.plan import Plan
from eval.render import AVERAGE, Entry, grid


def heatmap(plan: Plan, lines: Sequence[Entry]) -> Figure:
    """:func:`relative_heatmap` of a plan's table."""
    title = f"{plan.table.title}, profile {plan.profile.name}"
    return relative_heatmap(lines, column_references(plan, lines), plan.experts, title)


def column_references(plan: Plan, lines: Sequence[Entry]) -> dict[str, float]:
    """Benchmark → the score of that column's own expert, in percent (where that expert is a scored row)."""
    table = grid(lines)
    labels = {row.model: row.label for row in plan.rows.values() if row.method == "checkpoint"}
    found = {}
    for benchmark, expert in plan.experts.items():
        entry = table.get(labels.get(expert, ""), {}).get(benchmark)
        if entry is not None and entry.score:
            found[benchmark] = entry.score
    return found


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG, in the same bytes whenever it is the same figure."""
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def relative_heatmap(
    lines: Sequence[Entry], references: Mapping[str, float], experts: Mapping[str, str], title: str
) -> Figure:
    """Methods × benchmarks: each score as a percentage of the column's own expert (``experts`` says which; its score is
    in ``references``); the numbers are the scores."""
    table = {method: row for method, row in grid(lines).items() if any(e.score is not None for e in row.values())}
    columns = list(references)
    if not columns or not table:
        return _nothing(title, "no expert has a score above 0 in its own column")
    scores = np.array([[_or_nan(row[name].score) for name in columns] for row in table.values()])
    relative = 100 * scores / np.array([references[name] for name in columns])
    width = max(1.0 + 0.85 * (len(columns) + 3), 9.5)  # the methods' names and the bar's label need their room
    figure, axes = plt.subplots(figsize=(width, 0.36 * len(table) + 1.6))
    norm = TwoSlopeNorm(vcenter=100, vmin=0, vmax=max(130.0, float(np.nanmax(relative)) if relative.size else 0))
    image = axes.imshow(relative, cmap="RdBu", norm=norm, aspect="auto")
    for (i, j), score in np.ndenumerate(scores):
        text = "–" if np.isnan(score) else f"{score:.1f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color=_ink(relative[i, j]))
    axes.set_xticks(range(len(columns)), [f"{name}\n({experts[name]})" for name in columns], fontsize=7)
    axes.set_yticks(range(len(table)), [_with_average(method, row) for method, row in table.items()], fontsize=8)
    figure.colorbar(image, ax=axes, label="% of the column's own expert", pad=0.01)
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    return figure


def _nothing(title: str, reason: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure, axes = plt.subplots(figsize=(6, 1.2))
    axes.text(0.5, 0.5, reason, ha="center", va="center", fontsize=9)
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    return figure


def differences(comparisons: Sequence[Mapping], title: str) -> Figure:
    """Paired differences with 95 % intervals, one panel a pair of rows; the average is the lowest line."""
    comparisons = [comparison for comparison in comparisons if "delta" in comparison]
    if not comparisons:
        return _nothing(title, "the rows to compare are not run yet")
    pairs = list(dict.fromkeys(comparison["rows"] for comparison in comparisons))
    size = (3.0 * len(pairs) + 1.2, 4.2)
    figure, panels = plt.subplots(1, len(pairs), figsize=size, sharey=True, sharex=True, squeeze=False)
    for axes, pair in zip(panels[0], pairs):
        found = [comparison for comparison in comparisons if comparison["rows"] == pair]
        places = range(len(found))
        delta = np.array([comparison["delta"] for comparison in found])
        reach = np.array([[c["delta"] - c["low"], c["high"] - c["delta"]] for c in found]).T
        axes.errorbar(delta, places, xerr=reach, fmt="o", markersize=4, capsize=2, color="tab:blue")
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set_title(pair, fontsize=8)
        axes.set_xlabel("points", fontsize=8)
        axes.set_yticks(places, [comparison["benchmark"] for comparison in found], fontsize=8)
    panels[0][0].invert_yaxis()
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return figure


def scale_curve(choice: Mapping, title: str) -> Figure:
    """The mean validation score against the scale, with one standard error and the chosen value."""
    scales = [point["scale"] for point in choice["curve"]]
    means = np.array([point["mean"] for point in choice["curve"]])
    errors = np.array([point["stderr"] for point in choice["curve"]])
    figure, axes = plt.subplots(figsize=(5.2, 3.0))
    axes.fill_between(scales, means - errors, means + errors, alpha=0.2)
    axes.plot(scales, means, marker="o", markersize=4)
    axes.axvline(choice["scale"], color="0.4", linestyle="--", linewidth=1)
    axes.set_xlabel("λ")
    axes.set_ylabel("mean validation score, %")
    axes.set_title(f"{title} (chosen: λ = {choice['scale']:g})", fontsize=10)
    figure.tight_layout()
    return figure


def scale_curves(plan: Plan) -> list[Figure]:
    """:func:`scale_curve` of every row whose scale has been chosen."""
    chosen = [row for row in plan.scale_rows if plan.scale_file(row).is_file()]
    return [scale_curve(scale.read(plan, row), plan.entry(row).label) for row in chosen]


def learned(plan: Plan) -> Figure:
    """:func:`coefficient_map` of the first of the table's learned rows, with its first seed."""
    rows = [row for row in plan.table.learned if row in plan.rows]
    if not rows:
        return _nothing(plan.table.title, "no row of this table is learned")
    title = f"{plan.rows[rows[0]].label}, seed {plan.seeds(rows[0])[0]}"
    path = plan.cells(Job(rows[0], plan.seeds(rows[0])[0])) / "coefficients.json"
    return coefficient_map(Coefficients.load(path), title) if path.is_file() else _nothing(title, "not run yet")


def coefficient_map(coefficients: Coefficients, title: str) -> Figure:
    """Learned coefficients, experts × merged tensors in model order; a chunked tensor shows its mean."""
    names = list(coefficients.values)
    means = np.array([coefficients.values[name].mean(axis=1) for name in names]).T  # [K, L]
    figure, axes = plt.subplots(figsize=(9.5, 2.6))
    reach = float(np.abs(means).max()) or 1.0
    image = axes.imshow(means, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    axes.set_yticks(range(len(coefficients.experts)), coefficients.experts, fontsize=8)
    axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90, fontsize=5)
    figure.colorbar(image, ax=axes, label="α", pad=0.01)
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    return figure


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _ink(relative: float) -> str:
    return "white" if relative < 45 or relative > 125 else "black"


def _with_average(method: str, row: Mapping[str, Entry]) -> str:
    average = row[AVERAGE].score
    return method if average is None else f"{method}   Avg {average:.1f}"


def _short(name: str) -> str:
    parts = [part for part in name.split(".") if part not in ("language_model", "model", "layers", "weight")]
    return ".".join(part for part in parts if part not in ("self_attn", "mlp"))
