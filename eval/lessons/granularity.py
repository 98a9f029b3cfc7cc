"""The granularity test (GRIM): can a printed mean be that of n whole-numbered items?

Brown and Heathers, "The GRIM Test", Social Psychological and Personality Science 8 (2017): a mean of n integers is a
multiple of 1/n, so where 1/n is coarser than the printed digits, most printed values are impossible. ``unit`` is what
one item adds at most: 1 for a mean, 100 for a percentage of items that are right or wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from emkit.pictures import COLOURS
from eval import style
from eval.lessons import published

LEARNED = (published.EM, published.EMPP)  # rows of the paper's own methods in its main tables
MAIN = published.MAIN


def counts(value: float, n: int, unit: float = 100, decimals: int = 2) -> dict[str, int]:
    """The rule (``rounded``, ``truncated``) → the sum of n items that is printed as ``value`` by it; {} for none."""
    step = 10**decimals
    printed, scale = round(value * step), round(unit * step)  # in whole units of the last digit
    found = {}
    for total in (printed * n // scale, printed * n // scale + 1):
        above = scale * total - printed * n  # n times (exact − printed)
        if 2 * abs(above) <= n:
            found["rounded"] = total
        if 0 <= above < n:
            found["truncated"] = total
    return found


def fits(value: float, n: int, unit: float = 100, decimals: int = 2) -> bool:
    """Whether ``value`` can be a mean of n items, rounded (a half either way) or truncated."""
    return bool(counts(value, n, unit, decimals))


@cache
def by_chance(n: int) -> float:
    """The share of all percentages of two decimals that :func:`fits` lets through: what the test cannot see."""
    return sum(fits(value / 100, n) for value in range(10_001)) / 10_001


@cache
def by_repeats(n: int, repeats: int) -> float:
    """The share of means of ``repeats`` runs that pass as one run's: over every total of right answers, each alike."""
    total = repeats * n
    return sum(fits(round(100 * right / total, 2), n) for right in range(total + 1)) / (total + 1)


def tested(cells: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """The cells of right-or-wrong columns with ``n`` and the ``rule`` by which they fit ('' for an impossible one)."""
    shares = cells[cells["column"].map(metrics["credit"]) == 1].copy()
    shares["n"] = shares["column"].map(metrics["items"]).astype(int)
    shares["rule"] = [" or ".join(counts(p, n)) for p, n in zip(shares["percent"], shares["n"])]
    return shares


def power(cells: pd.DataFrame) -> pd.DataFrame:
    """Per backbone and column: how many different values fit n, how many would by chance, and what that says.

    ``blind``: n is so large that all values fit. ``of n items``: far more fit than by chance (one-sided binomial
    p < 0.001). ``another n``: no more than that, so the values are not shares of these n items.
    """
    lines = []
    for (backbone, name), of in cells.groupby(["backbone", "column"], sort=False):
        of = of.drop_duplicates("percent")
        n, fit = int(of["n"].iloc[0]), int((of["rule"] != "").sum())
        chance = by_chance(n)
        surprise = stats.binom.sf(fit - 1, len(of), chance)
        verdict = "blind" if chance > 0.99 else "of n items" if surprise < 0.001 else "another n"
        line = {"backbone": backbone, "column": name, "n": n, "values": len(of), "fit": fit}
        truncated = int((of["rule"] == "truncated").sum())
        lines.append(line | {"only truncated": truncated, "by chance": chance * len(of), "values are": verdict})
    return pd.DataFrame(lines).sort_values("n", kind="stable").reset_index(drop=True)


def confirmed(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of those backbones and columns whose values are shares ``of n items``, by :func:`power`."""
    found = power(cells)
    sure = set(found[found["values are"] == "of n items"][["backbone", "column"]].itertuples(index=False, name=None))
    return cells[[pair in sure for pair in zip(cells["backbone"], cells["column"])]]


def impossible(cells: pd.DataFrame) -> pd.DataFrame:
    """Of :func:`confirmed` the cells that no whole number of right answers gives, with what is possible around each."""
    found = confirmed(cells)
    lines = []
    for _, cell in found[found["rule"] == ""].iterrows():
        below = int(cell["percent"] * cell["n"] // 100)
        around = [f"{right} → {100 * right / cell['n']:.3f}" for right in (below, below + 1)]
        line = {key: cell[key] for key in ("table", "row", "column", "percent", "n")}
        lines.append(line | {"right answers → percent": "; ".join(around)})
    return pd.DataFrame(lines)


def sizes(values: Iterable[float], most: int) -> list[int]:
    """Every n up to ``most`` of which all ``values`` can be shares: what the values alone say about n."""
    different = sorted(set(values), reverse=True)
    return [n for n in range(1, most + 1) if all(fits(value, n) for value in different)]


def repeated(cells: pd.DataFrame, repeats: int = 5) -> pd.DataFrame:
    """Can learned rows be means of ``repeats`` runs? Per column with a test that can tell.

    Of every row of the paper's own methods, each printed configuration once: how many fit one run's steps, and how
    many would if their ``repeats`` totals of right answers were spread evenly over all whole numbers.
    """
    sure = confirmed(cells)
    own = sure[(sure["kind"] != MAIN) | sure["row"].isin(LEARNED)]
    lines = {}
    for name, of in own.groupby("column", sort=False):
        n = int(of["n"].iloc[0])
        values = of.drop_duplicates(["backbone", "column", "percent"])
        share = by_repeats(n, repeats)
        if share < 0.75:
            fitting = int((values["rule"] != "").sum())
            lines[name] = {
                "n": n,
                "different values": len(values),
                "fit one run": fitting,
                f"expected of means of {repeats}": share * len(values),
                "probability that all fit": share ** len(values),
            }
    return pd.DataFrame.from_dict(lines, orient="index").sort_values("n")


def picture(cells: pd.DataFrame, columns: list[str]) -> Figure:
    """Where printed values lie between two possible ones, in steps of 1/n: −0.5 to 0.5, one line a column.

    The shaded band is what rounding or truncation to two decimals allows.
    """
    figure, axes = plt.subplots(len(columns), 1, figsize=(style.WIDTH, 0.62 * len(columns) + 0.8), sharex=True)
    for axis, name in zip(axes, columns, strict=True):
        of = cells[cells["column"] == name]
        n = int(of["n"].iloc[0])
        position = of["percent"] * n / 100
        fit = of["rule"] != ""
        apart = position - (position + 0.5).floordiv(1)
        axis.axvspan(-0.01 * n / 100, 0.005 * n / 100, color=COLOURS[5], alpha=0.35, lw=0)
        for chosen, colour, marker in ((fit, COLOURS[0], "|"), (~fit, COLOURS[1], "x")):
            axis.scatter(apart[chosen], [0] * int(chosen.sum()), color=colour, marker=marker, s=90)
        axis.set_yticks([0], [f"{name}\nn = {n:,}"])
        axis.set_ylim(-1, 1)
        axis.set_xlim(-0.52, 0.52)
    axes[-1].set_xlabel("distance of a printed value from the nearest whole number of right answers")
    return figure
