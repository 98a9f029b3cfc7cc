"""How exact a printed percentage can be, and what that leaves of a difference between two of them.

Only the printed percentages are known, not which items were right. So every standard error here is the binomial one,
an upper bound for items that score between 0 and 1 with this mean; a difference of two rows is tested as if they had
answered different items (unpaired), and then bounded by the best case of the same items (paired). Percentages in, and
percentage points out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import integrate, optimize, stats

from eval.lessons import published
from eval.lessons.published import ABLATION, AVERAGE, EM, EMPP, MAIN, NUMBERS
from eval.stats import holm

NOT_MERGES = ("Expert", "Mixture Training", EM, EMPP)  # rows of a main table that are no earlier method of merging


def stderr(percent, n):
    """The standard error √(p(1 − p)/n) of a share of n independent items, in percentage points."""
    share = np.asarray(percent, dtype=float) / 100
    return 100 * np.sqrt(share * (1 - share) / n)


def columns_of(row: pd.Series, metrics: pd.DataFrame) -> pd.DataFrame:
    """Per column of a row: ``percent``, ``items``, ``stderr``, points of the average that one item is worth, and the
    column's share of the average's variance."""
    scores = row.drop(AVERAGE).dropna()
    items = metrics["items"].reindex(scores.index).astype(int)
    errors = stderr(scores, items)
    return pd.DataFrame(
        {
            "percent": scores,
            "items": items,
            "stderr": errors,
            "one item moves the average by": 100 / items / len(scores),
            "share of the average's variance": errors**2 / (errors**2).sum(),
        }
    )


def average_stderr(row: pd.Series, metrics: pd.DataFrame) -> float:
    """Standard error of a row's average, its columns taken for independent samples."""
    errors = columns_of(row, metrics)["stderr"]
    return math.sqrt((errors**2).sum()) / len(errors)


def main_rows(tables: published.Tables, row: str) -> dict[str, pd.Series]:
    """A row of the three main tables, by backbone."""
    return {published.BACKBONES[name]: tables[of[MAIN]].loc[row] for name, of in NUMBERS.items()}


def averages_of(rows: Mapping[str, pd.Series], metrics: pd.DataFrame) -> pd.DataFrame:
    """Each row's average with its standard error and how many items it rests on, in all and in its smallest column."""
    lines = {}
    for title, row in rows.items():
        items = columns_of(row, metrics)["items"]
        line = {"average": row[AVERAGE], "stderr": average_stderr(row, metrics), "items": items.sum()}
        lines[title] = line | {"in the smallest column": items.min()}
    return pd.DataFrame.from_dict(lines, orient="index").round(2)


def two_proportions(first: float, second: float, n: int) -> float:
    """Two-sided p of the pooled z test of two shares of n items each (unpaired): √ of the 2 × 2 table's χ²."""
    a, b = first / 100, second / 100
    pooled = (a + b) / 2
    if pooled in (0, 1):
        return 1.0
    return float(2 * stats.norm.sf(abs(a - b) / math.sqrt(2 * pooled * (1 - pooled) / n)))


def best_case(gained: int) -> float:
    """Exact McNemar p where all of the ``gained`` items, and no other, changed: two rows on the same items can do no
    better."""
    return min(1.0, 2 * 0.5 ** abs(gained))


def most_discordant(gained: int, n: int, level: float = 0.05) -> float | None:
    """The largest share of n items on which two rows may disagree for a net gain to be significant; None: never.

    With b items won and c lost, b − c = ``gained``; McNemar's exact test asks whether b of b + c can be a fair coin's.
    """
    gained = abs(gained)
    changed = np.arange(gained, n + 1, 2)
    p = np.minimum(1, 2 * stats.binom.sf((changed + gained) // 2 - 1, changed, 0.5))
    passing = changed[p <= level] if gained else []
    return float(max(passing)) / n if len(passing) else None


def by_column(first: pd.Series, second: pd.Series, metrics: pd.DataFrame, level: float = 0.05) -> pd.DataFrame:
    """Two rows column by column: difference in points and items, unpaired p (and Holm's), and the paired bounds."""
    scores = pd.DataFrame({"a": first, "b": second}).drop(AVERAGE).dropna()
    items = metrics["items"].reindex(scores.index).astype(int)
    found = pd.DataFrame({"difference": scores["a"] - scores["b"], "n": items})
    found["items"] = (found["difference"] * items / 100).round().astype(int)
    found["unpaired p"] = [two_proportions(a, b, n) for a, b, n in zip(scores["a"], scores["b"], items)]
    found["Holm"] = holm(list(found["unpaired p"]))
    whole = metrics["credit"].reindex(scores.index) == 1
    found["best paired p"] = [best_case(gained) if w else math.nan for gained, w in zip(found["items"], whole)]
    found["passes if at most … % differ"] = [
        100 * (most_discordant(gained, n, level) or 0.0) for gained, n in zip(found["items"], items)
    ]
    found["verdict"] = [
        _verdict(d, h, b, level) for d, h, b in zip(found["difference"], found["Holm"], found["best paired p"])
    ]
    return found


def _verdict(difference: float, adjusted: float, best: float, level: float) -> str:
    if adjusted < level:
        return "ahead even unpaired" if difference > 0 else "behind even unpaired"
    return "cannot be shown" if best > level else "depends on the items"


def of_averages(first: pd.Series, second: pd.Series, metrics: pd.DataFrame, level: float = 0.05) -> dict[str, float]:
    """Two rows' averages: difference, unpaired standard error and p, and what a paired test would need.

    Paired over the same items with a share δ_c of disagreement, the average's variance is Σ (δ_c − d_c²)/n_c / C²,
    where δ_c ≥ |d_c|. ``best paired p`` has δ_c = |d_c| and the smallest steps that an item can make; ``passes if``:
    the largest common δ, in percent of every column's items, at which p is below ``level`` for sure (0: none).
    """
    scores = pd.DataFrame({"a": first, "b": second}).drop(AVERAGE).dropna() / 100
    n, finest = (metrics[key].reindex(scores.index).to_numpy(dtype=float) for key in ("items", "finest"))
    apart = (scores["a"] - scores["b"]).to_numpy()
    unpaired = ((scores["a"] * (1 - scores["a"]) + scores["b"] * (1 - scores["b"])) / n).sum()

    def paired(delta: float) -> float:
        return float(((np.maximum(delta, abs(apart)) - apart**2) / n).sum())

    total = abs(apart.sum())
    allowed = (total / stats.norm.isf(level / 2)) ** 2
    needs = 0.0
    if paired(0) < allowed:
        needs = 1.0 if paired(1) <= allowed else optimize.brentq(lambda d: paired(d) - allowed, 0, 1)
    best = (abs(apart) * (1 - abs(apart)) / finest).sum()
    return {
        "gain": 100 * apart.sum() / len(apart),
        "stderr": 100 * math.sqrt(unpaired) / len(apart),
        "unpaired p": float(2 * stats.norm.sf(total / math.sqrt(unpaired))),
        "best paired p": float(2 * stats.norm.sf(total / math.sqrt(best))) if best else 1.0,
        "passes if at most … % differ": 100 * needs,
    }


def best_earlier(frame: pd.DataFrame) -> str:
    """The row with the highest average among a main table's earlier methods of merging."""
    rows = [row for row in frame.index[1:] if row not in NOT_MERGES and not row.endswith(" Expert")]
    return str(frame.loc[rows, AVERAGE].idxmax())


def headlines(tables: published.Tables) -> list[tuple[str, int, str, str]]:
    """What the paper claims in words, as (backbone, table, first row, second row); the best earlier method is looked
    up in the printed averages, and in those that follow from the cells."""
    found = []
    for backbone, number in NUMBERS.items():
        main, ablation = number[MAIN], number[ABLATION]
        frame = tables[main]
        rivals = list(dict.fromkeys([best_earlier(frame), best_earlier(published.corrected(frame))]))
        mixture = [row for row in frame.index if row == "Mixture Training"]
        found += [(backbone, main, EMPP, rival) for rival in rivals + mixture]
        found += [*((backbone, main, EM, rival) for rival in rivals), (backbone, main, EMPP, EM)]
        without = [row for row in tables[ablation].index if row.startswith("w/o")]
        found += [(backbone, ablation, EM, row) for row in without]
    return found


def gains(tables: published.Tables, metrics: pd.DataFrame, level: float = 0.05) -> pd.DataFrame:
    """The headline gains tested: see :func:`of_averages`; Holm over all of them, and the verdict in words."""
    pairs = headlines(tables)
    lines = [
        {"backbone": backbone, "table": number, "comparison": f"{a} − {b}"}
        | of_averages(tables[number].loc[a], tables[number].loc[b], metrics, level)
        for backbone, number, a, b in pairs
    ]
    found = pd.DataFrame(lines)
    found["Holm"] = holm(list(found["unpaired p"]))
    found["verdict"] = [
        _verdict(g, h, b, level) for g, h, b in zip(found["gain"], found["Holm"], found["best paired p"])
    ]
    return found


def one_item(tables: published.Tables, metrics: pd.DataFrame) -> pd.DataFrame:
    """Expert Merging++ over Expert Merging: the gain of the average, the column that gives most, and in its items."""
    lines = []
    for backbone, number in NUMBERS.items():
        frame = tables[number[MAIN]]
        compared = by_column(frame.loc[EMPP], frame.loc[EM], metrics)
        gain = compared["difference"].sum() / len(compared)
        parts = compared["difference"] / len(compared)
        most = parts.idxmax()
        line = {"backbone": backbone, "gain of the average": gain, "most from": most, "its part": parts[most]}
        lines.append(line | {"in items": compared.loc[most, "items"], "gain without it": gain - parts[most]})
    return pd.DataFrame(lines)


def without(tables: published.Tables, number: int, left_out: Sequence[str]) -> pd.Series:
    """A table's averages over the other columns, highest first."""
    return tables[number].drop(columns=[AVERAGE, *left_out]).dropna().mean(axis=1).sort_values(ascending=False)


def expected_best(rows: int) -> float:
    """Mean of the largest of ``rows`` independent standard normal values: what choosing the best gains by luck."""

    def density(x):
        return x * rows * stats.norm.pdf(x) * stats.norm.cdf(x) ** (rows - 1)

    return float(integrate.quad(density, -8, 8)[0])


def neighbours(averages: pd.Series) -> float:
    """Standard deviation from successive differences, √(mean(difference²)/2): noise, where the curve is smooth."""
    return float(np.sqrt((averages.diff().dropna() ** 2).mean() / 2))


def sweeps(tables: published.Tables) -> pd.DataFrame:
    """Each sweep's spread beside what choosing its best row would gain if its rows differed by noise alone."""
    lines = []
    for backbone, number in NUMBERS.items():
        for kind in (published.GAMMA, published.SAMPLES):
            averages = tables[number[kind]][AVERAGE]
            noise = neighbours(averages)
            line = {"backbone": backbone, "sweep": kind, "rows": len(averages), "noise (successive differences)": noise}
            ahead = averages.max() - averages.drop(averages.idxmax()).mean()
            lines.append(line | {"best above the others": ahead, "by luck": noise * expected_best(len(averages))})
    return pd.DataFrame(lines)


def deviation_from_pair(difference: float, confidence: float = 0.95) -> tuple[float, float, float]:
    """Standard deviation of one run from two runs' ``difference``: |d|/√2, and its χ² interval."""
    found = abs(difference) / math.sqrt(2)
    low, high = stats.chi2.ppf([0.5 + confidence / 2, 0.5 - confidence / 2], 1)
    return found, found / math.sqrt(low), found / math.sqrt(high)
