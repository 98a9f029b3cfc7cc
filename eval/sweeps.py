"""A table whose rows differ in one number: what each was run with, and its scores drawn over that number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from emkit.coefficients import Coefficients
from emkit.files import read_json
from eval import style
from eval.places import Job
from eval.plan import Plan
from eval.render import AVERAGE, NOT_RUN, Entry, as_written, grid
from eval.style import COLOURS, Picture
from eval.table import Row, published

TICKS = [0, *(digit * 10.0**power for power in range(-4, 5) for digit in (1, 2, 5))]
MOVED = "mean \\|α − ᾱ\\|"  # in a Markdown table
Z = 1.96  # of a normal 95 % interval


def _given(row: Row, key: str) -> float | None:
    """The number at ``options.KEY`` or ``calibration.KEY`` of a row, as the table has it; None where it has none."""
    group, _, name = key.partition(".")
    return getattr(row, group).get(name)


def values(plan: Plan) -> dict[str, float]:
    """Row → the number of the sweep, in the table's units."""
    assert plan.table.sweep is not None
    found = {name: _given(row, plan.table.sweep.key) for name, row in plan.rows.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


# ---- what the rows ran with
def ran_with(plan: Plan) -> list[dict[str, Any]]:
    """A line a row: its options that differ from those of the first row of its method, as they are run, and of a sweep
    over samples how many response tokens of each task there were; then how far its coefficients came from ᾱ."""
    lines = []
    for name, row in plan.rows.items():
        plain = plan.profile.options(str(row.method), {}).model_dump()
        own = {key: value for key, value in plan.settings(name).model_dump().items() if value != plain[key]}
        line: dict[str, Any] = {"row": row.label, "method": str(row.method), "options": _options(own, plain)}
        if plan.calibration(name) != plan.profile.calibration or "calibration" in _swept(plan):
            line |= {
                "samples of each task": _calibrated(plan, name, "samples"),
                "response tokens": _calibrated(plan, name, "response_tokens"),
            }
        if plan.method(name).learned:
            line[MOVED] = _moved(plan, name)
        if plan.scored(name) != name:
            line["options"] += f" (the row `{plan.scored(name)}` of other tables)"
        lines.append(line)
    return lines


def _moved(plan: Plan, row: str) -> str:
    """The mean |α − ᾱ| over all coefficients that were fitted last, and over the seeds that stand."""
    found = []
    for folder in (plan.cells(Job(row, seed)) for seed in plan.seeds(row)):
        if (folder / "coefficients.json").is_file() and (folder / "history.json").is_file():
            coefficients = Coefficients.load(folder / "coefficients.json")
            initial = read_json(folder / "history.json")["stages"][-1]["initial"]
            anchor = np.array([initial[name] for name in coefficients.experts])[coefficients.flat_experts()]
            found.append(float(np.abs(coefficients.flat() - anchor).mean()))
    return f"{np.mean(found):.3f}" if found else NOT_RUN


def _swept(plan: Plan) -> str:
    return plan.table.sweep.key if plan.table.sweep is not None else ""


def _options(own: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """The options in words; of a group those that differ."""
    said = []
    for key, value in own.items():
        if isinstance(value, Mapping) and isinstance(plain[key], Mapping):
            said += [f"{key}.{name} = {_short(each)}" for name, each in value.items() if each != plain[key].get(name)]
        else:
            said.append(f"{key} = {_short(value)}")
    return ", ".join(said) or "the profile's own"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _calibrated(plan: Plan, row: str, what: str) -> str:
    """``samples`` or ``response_tokens`` in the first seed's calibration set: what all tasks have, or their range."""
    path = plan.cells(Job(row, plan.seeds(row)[0])) / "merge.json"
    if not path.is_file():
        return NOT_RUN
    found = [task[what] for task in read_json(path)["calibration"].values()]
    return f"{min(found):,}" if min(found) == max(found) else f"{min(found):,} to {max(found):,}"


# ---- drawn
def picture(plan: Plan, lines: Sequence[Entry]) -> Picture:
    """The average and the mean of each expert's columns over the sweep's number: ours with 95 % bands on the left, the
    paper's on the right, each with axes of its own."""
    table, theirs, at = grid(as_written(lines)), published(plan.table), values(plan)
    rows = [name for name in at if table[plan.rows[name].label][AVERAGE].score is not None]
    title = f"{plan.table.title}, profile {plan.profile.name}"
    with plt.rc_context(style.SETTINGS):
        figure, axes = plt.subplots(2, 2, figsize=(style.WIDTH, 5.6), sharex=True)
        here = {
            at[name]: {column: entry.score for column, entry in table[plan.rows[name].label].items()} for name in rows
        }
        errors = np.array([table[plan.rows[name].label][AVERAGE].stderr or 0.0 for name in rows])
        there = {at[name]: theirs[plan.rows[name].label] for name in at if plan.rows[name].label in theirs}
        for column, (found, said) in enumerate(((here, f"here ({plan.profile.name})"), (there, "the paper"))):
            _line(axes[0, column], found, f"{said}: average")
            _groups(axes[1, column], found, plan, f"{said}: each expert's columns")
        if rows:
            mean = np.array([found[AVERAGE] for found in here.values()])
            axes[0, 0].fill_between(list(here), mean - Z * errors, mean + Z * errors, alpha=0.2, linewidth=0)
        _scale(axes, sorted(at.values()), plan, at)
        handles = axes[1, 1].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=6)
        figure.supylabel("score, %", fontsize=10)
        figure.suptitle(title, fontsize=10)
    return Picture(figure, _words(plan, here, there))


def _line(axes: Axes, found: Mapping[float, Mapping[str, float | None]], title: str) -> None:
    average = [row[AVERAGE] or 0.0 for row in found.values()]  # rows without one are not drawn
    axes.plot(list(found), average, "o-", color="black", markersize=4)
    axes.set_title(title)


def _groups(axes: Axes, found: Mapping[float, Mapping[str, float | None]], plan: Plan, title: str) -> None:
    """A line for each expert: the mean of its columns."""
    experts = list(dict.fromkeys(plan.experts.values()))
    for expert, colour in zip(experts, COLOURS):
        own = [name for name, of in plan.experts.items() if of == expert]
        mean = [np.mean([row[name] for name in own if row[name] is not None]) for row in found.values()]
        axes.plot(list(found), mean, "o-", color=colour, markersize=3, label=expert)
    axes.set_title(title)


def _scale(axes: np.ndarray, found: Sequence[float], plan: Plan, at: Mapping[str, float]) -> None:
    """A logarithmic axis of the sweep's number, on which 0 has a place; a line at the profile's own value."""
    assert plan.table.sweep is not None
    low, high = min(value for value in found if value > 0), max(found)
    usual = [value for name, value in at.items() if plan.scored(name) != name]
    for axis in axes.flat:
        if found[0] == 0:
            axis.set_xscale("symlog", linthresh=low, linscale=0.5)
        else:
            axis.set_xscale("log")
        axis.set_xticks([tick for tick in TICKS if (tick >= low or tick == found[0]) and tick <= high])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        for value in usual:
            axis.axvline(value, color=style.GREY, linestyle="--", linewidth=1, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel(f"{plan.table.sweep.of}, as in the paper" + (" (dashed: the profile's own)" if usual else ""))


def _words(plan: Plan, here: Mapping, there: Mapping) -> str:
    assert plan.table.sweep is not None
    said = [
        f"{who}: {', '.join(f'{value:g}: {row[AVERAGE]:.1f}' for value, row in found.items())}"
        for who, found in (("Here", here), ("In the paper", there))
        if found
    ]
    return f"Average score over {plan.table.sweep.of}. {'. '.join(said) or NOT_RUN}."
