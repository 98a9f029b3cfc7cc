"""What a table's rows answered, sorted: who lost the format, what every merge misses, what one row alone gets right.

An answer counts as *right* here when its score is at least one half (VQA's scores have steps), as *well-formed* when
the harness can read it (:mod:`eval.looking.reading`). Frames are those of :func:`eval.looking.items`; rows that a frame
has no answers of are passed over.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from emkit.pictures import COLOURS
from eval import desk, looking, style
from eval.looking.frame import FORM, SCORE, labels
from eval.plan import Plan

RIGHT = 0.5  # the least score of a right answer
_NOTHING = "Nothing to show: no row that is asked for has been run (the line above names the command)."


# ----------------------------------------------------------------------------------------------------- rows
def merges(plan: Plan) -> list[str]:
    """The rows that are merges and run."""
    return [row for row in plan.rows if plan.runs(row) and plan.method(row).merges]


def expert(plan: Plan, benchmark: str) -> str | None:
    """The row of the column's own expert; None where the plan shows none."""
    return _checkpoint(plan, plan.experts.get(benchmark))


def cast(plan: Plan, benchmark: str) -> list[str]:
    """Whose answers are worth a look: the base, the column's own expert, every merge."""
    return [row for row in (_checkpoint(plan, "base"), expert(plan, benchmark), *merges(plan)) if row]


def few(frame: pd.DataFrame, plan: Plan, *rows: str) -> list[str]:
    """Of the rows that a frame has answers of: the base, the column's own expert, and ``rows``; none twice."""
    wanted = (_checkpoint(plan, "base"), expert(plan, frame.attrs["benchmark"]), *rows)
    return _known(frame, dict.fromkeys(row for row in wanted if row))


def _checkpoint(plan: Plan, model: str | None) -> str | None:
    found = (row.id for row in plan.rows.values() if row.method == "checkpoint" and row.model == model)
    return next(found, None) if model is not None else None


def one_of_each(plan: Plan) -> pd.DataFrame:
    """The first item of every benchmark, without answers: what is asked, which needs no scores."""
    found = [looking.items(plan, name, []).head(1).assign(index=name) for name in plan.benchmarks]
    together = pd.concat(found, ignore_index=True)
    together.attrs = {"benchmark": f"{plan.table.title}, profile {plan.profile.name}"}
    return together


# --------------------------------------------------------------------------------------------- format and content
def readability(frame: pd.DataFrame) -> pd.DataFrame:
    """Row → its score, the share of its answers that are well-formed, and the score of those alone; all in percent.

    The first is the product of the other two wherever what the harness cannot read scores 0 (a judge may differ).
    """
    found = {}
    for row, label in labels(frame).items():
        scored = frame[frame[f"{row} {SCORE}"].notna()]
        readable = scored[f"{row} {FORM}"].astype(bool)
        values = (scored[f"{row} {SCORE}"].mean(), readable.mean(), scored[readable][f"{row} {SCORE}"].mean())
        found[label] = [100 * value for value in values]
    return pd.DataFrame.from_dict(found, orient="index", columns=["score", "well-formed", "score of the well-formed"])


def outcomes(frame: pd.DataFrame) -> Figure:
    """A bar a row: the share of answers that are right, well-formed and wrong, and not well-formed."""
    table = readability(frame)
    if table.empty:
        return _empty()
    figure, axes = plt.subplots(figsize=(style.WIDTH, 0.6 + 0.26 * len(table)))
    right, readable = table["score"], table["well-formed"]
    parts = {
        "right": (right, COLOURS[0], ""),
        "well-formed, wrong": ((readable - right).clip(lower=0), COLOURS[5], ""),
        "the harness cannot read it": (100 - readable, COLOURS[1], "////"),
    }
    left = pd.Series(0.0, index=table.index)
    for name, (width, colour, hatch) in parts.items():
        axes.barh(table.index, width, left=left, color=colour, hatch=hatch, edgecolor="white", label=name)
        left = left + width
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel=f"% of the answers on {frame.attrs['benchmark']}")
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def lost_format(frame: pd.DataFrame, below: float = 90.0) -> Markdown:
    """In words: whose answers are well-formed in less than ``below`` percent, and what the format alone costs them."""
    table = readability(frame)
    if table.empty:
        return Markdown(_NOTHING)
    found = table[table["well-formed"] < below]
    asked = f"{frame.attrs['benchmark']} asks for {frame.attrs['form']}"
    if found.empty:
        return Markdown(f"{asked}. Every row that was run keeps to that in at least {below:g} % of its answers.")
    said = [
        f"- **{label}**: {row['well-formed']:.0f} % well-formed, score {row['score']:.1f}; of what can be read, "
        f"{row['score of the well-formed']:.1f} % is right"
        for label, row in found.iterrows()
    ]
    rest = f"The other rows ({len(table) - len(found)}) keep to it in at least {below:g} %."
    first = f"{asked}. Less than {below:g} % of the answers are of that form from:"
    return Markdown("\n".join([first, "", *said, "", rest]))


def unreadable(frame: pd.DataFrame, row: str) -> pd.DataFrame:
    """The items where the harness can read nothing in the row's answer."""
    return _where(frame, [row], lambda: frame[f"{row} {FORM}"].eq(False))


# ------------------------------------------------------------------------------------------------ sets of items
def missed_by_all(frame: pd.DataFrame, rows: Iterable[str]) -> pd.DataFrame:
    """The items that no row of ``rows`` gets right."""
    known = _known(frame, rows)
    return _where(frame, known, lambda: ~_right(frame, known).any(axis=1))


def only(frame: pd.DataFrame, row: str | None, others: Iterable[str]) -> pd.DataFrame:
    """The items that ``row`` gets right and none of ``others``."""
    rest = [other for other in _known(frame, others) if other != row]
    if not rest:
        return frame.head(0)
    return _where(frame, [str(row)], lambda: _right(frame, [str(row)])[row] & ~_right(frame, rest).any(axis=1))


def right_where_wrong(frame: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """The items that ``first`` gets right and ``second`` does not."""
    pair = [first, second]
    return _where(frame, pair, lambda: _right(frame, [first])[first] & ~_right(frame, [second])[second])


def counts(plan: Plan, first: str, second: str, benchmarks: Sequence[str] | None = None) -> pd.DataFrame:
    """Benchmark → items: all, missed by every merge, right from the column's own expert alone, and right from one of
    ``first`` and ``second`` and wrong from the other; missing where such a row was not
    run. Merges are those that were."""
    found = {}
    for name in plan.benchmarks if benchmarks is None else benchmarks:
        with contextlib.redirect_stdout(io.StringIO()):  # what is left out was said of the benchmark that is looked at
            frame = looking.items(plan, name, cast(plan, name))
        run = _known(frame, merges(plan))
        own, pair = expert(plan, name), [first, second]
        both = len(_known(frame, pair)) == 2
        found[name] = [
            len(frame),
            len(missed_by_all(frame, run)) if run else pd.NA,
            len(only(frame, own, run)) if run and own and _known(frame, [own]) else pd.NA,
            len(right_where_wrong(frame, first, second)) if both else pd.NA,
            len(right_where_wrong(frame, second, first)) if both else pd.NA,
        ]
    names = {row: plan.entry(row).label for row in (first, second)}
    columns = ["items", "every merge misses", "only the own expert gets"]
    columns += [f"only {names[first]}, not {names[second]}", f"only {names[second]}, not {names[first]}"]
    return pd.DataFrame.from_dict(found, orient="index", columns=columns).astype("Int64")


def balance(table: pd.DataFrame) -> Figure:
    """Of :func:`counts`: to the right, the share of items that the first row alone of two gets; to the left, the
    second's. The dot is the difference."""
    table = table.dropna(subset=table.columns[-2:])
    ours, theirs = (100 * table[name].astype(float) / table["items"].astype(float) for name in table.columns[-2:])
    if not (ours.any() or theirs.any()):
        return _empty()
    figure, axes = plt.subplots(figsize=(style.WIDTH, 0.9 + 0.34 * len(table)))
    axes.barh(table.index, ours, color=COLOURS[0], label=table.columns[-2])
    axes.barh(table.index, -theirs, color=COLOURS[4], hatch="////", edgecolor="white", label=table.columns[-1])
    axes.plot(ours - theirs, table.index, "o", color="black", label="difference")
    axes.axvline(0, color=style.GREY)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.set(xlabel="% of the benchmark's items")
    figure.legend(loc="outside upper left", ncols=1)
    return figure


# ---------------------------------------------------------------------------------------------------- shown
def see(frame: pd.DataFrame, rows: Sequence[str], n: int = 8) -> looking.Gallery | None:
    """Boxes drawn on the pictures where the benchmark asks for boxes, else a gallery of the answers."""
    shown = _known(frame, rows)
    if "box" not in frame or frame.empty:
        return looking.show(frame, shown, n)
    said = ", ".join(labels(frame)[row] for row in shown) or "no row"
    alt = f"{min(n, len(frame))} pictures of {frame.attrs['benchmark']} with the gold box and those of {said}."
    desk.show(looking.boxes(frame, shown, n), alt=f"{alt} The text below each picture says how far they overlap.")
    return None


def told(*frames: tuple[str, pd.DataFrame]) -> None:
    """Show how many items each named frame holds, in one sentence."""
    display(Markdown("; ".join(f"{name}: {len(frame)}" for name, frame in frames) + "."))


def _right(frame: pd.DataFrame, rows: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame({row: frame[f"{row} {SCORE}"] >= RIGHT for row in rows}, index=frame.index)


def _known(frame: pd.DataFrame, rows: Iterable[str]) -> list[str]:
    return [row for row in rows if row in labels(frame)]


def _where(frame: pd.DataFrame, needed: Sequence[str], mask) -> pd.DataFrame:
    """The lines where ``mask()`` holds; none where a row that it needs has no answers."""
    if not needed or any(row not in labels(frame) for row in needed):
        return frame.head(0)
    return frame[mask()]


def _empty() -> Figure:
    figure, axes = plt.subplots(figsize=(style.WIDTH, 0.6))
    axes.text(0, 0.5, _NOTHING, va="center")
    axes.set_axis_off()
    return figure
