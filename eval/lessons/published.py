"""The paper's Tables 1 to 13 as frames: averages recomputed, and one configuration wherever it is printed.

Scores are percentages with two decimals. They are compared as whole hundredths, never as binary fractions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from emkit.schema import load_yaml
from eval import columns, profile, table

FOLDER = Path("eval/paper")
AVERAGE = "Avg"
MAIN, ABLATION, GAMMA, SAMPLES = "main results", "ablations", "regularisation γ", "samples N"
NUMBERS = {  # backbone → which table shows what of it (the paper's captions)
    "internvl": {MAIN: 1, ABLATION: 5, GAMMA: 8, SAMPLES: 11},
    "qwen2_vl": {MAIN: 2, ABLATION: 6, GAMMA: 9, SAMPLES: 12},
    "mistral": {MAIN: 3, ABLATION: 7, GAMMA: 10, SAMPLES: 13},
}
SUMMARY, BACKBONES = 4, {"internvl": "InternVL2.5", "qwen2_vl": "Qwen2-VL", "mistral": "Mistral"}  # Table 4's columns
EM, EMPP, NO_REGULARISER = "Expert Merging", "Expert Merging++", "w/o coefficient regularization"

Tables = Mapping[int, pd.DataFrame]


class Place(NamedTuple):
    """Where a row is printed."""

    table: int
    row: str


def read(folder: str | Path = FOLDER) -> dict[int, pd.DataFrame]:
    """Table number → frame of percentages, rows and columns as printed (NaN: a dash); ``UserError`` for a bad file."""
    found = {}
    for number in sorted({SUMMARY, *(n for of in NUMBERS.values() for n in of.values())}):
        found[number] = pd.DataFrame.from_dict(
            table.scores(Path(folder) / f"table{number}.csv"), orient="index", dtype=float
        )
    return found


def cells(tables: Tables) -> pd.DataFrame:
    """Every printed score as a line: backbone, kind, table, row, column, percent; averages and Table 4 left out."""
    lines = [
        {"backbone": backbone, "kind": kind, "table": number, "row": row, "column": column, "percent": value}
        for backbone, of in NUMBERS.items()
        for kind, number in of.items()
        for row, scores in tables[number].drop(columns=AVERAGE).iterrows()
        for column, value in scores.dropna().items()
    ]
    return pd.DataFrame(lines)


def metrics(folder: str | Path = FOLDER) -> pd.DataFrame:
    """What a column's percentage rests on: ``items``, the ``step`` between possible percentages (NaN: none) and why.

    An item moves the percentage by at least 100/``finest``. n is that of :mod:`eval.columns` under the profile
    ``paper``; ``metrics.yaml`` says where more is to be said.
    """
    path = Path(folder) / "metrics.yaml"
    said, lines = load_yaml(path.read_text(encoding="utf-8"), str(path)), {}
    for name in columns.names():
        column, more = columns.load(name, profile="paper"), said.get(name, {})
        items, credit = more.get("items", column.n), more.get("credit", 1)
        lines[name] = {
            "items": items,
            "credit": credit,
            "finest": more.get("finest", items * credit if credit else math.inf),
            "step": 100 / (items * credit) if credit else None,
            "what it is": more.get("why", column.metric),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def hundredths(percent: float) -> int:
    """A printed percentage in whole hundredths."""
    return round(100 * percent)


def exact_mean(scores: pd.Series) -> Fraction:
    """The mean of printed percentages without any rounding, dashes left out."""
    whole = [hundredths(value) for value in scores.dropna()]
    return Fraction(sum(whole), 100 * len(whole))


def averages(tables: Tables) -> pd.DataFrame:
    """Every row's average recomputed: ``columns`` averaged over, ``mean``, ``printed``, and the ``rule`` that fits.

    Cells are known to within half a hundredth, and so is their mean: a printed average less than a hundredth from it
    is *possible* whatever the cells were; only beyond that it *does not add up*.
    """
    lines = []
    for number, frame in tables.items():
        if number == SUMMARY:
            continue
        for row, scores in frame.iterrows():
            cells_of = scores.drop(AVERAGE)
            mean, printed = exact_mean(cells_of), hundredths(scores[AVERAGE])
            lines.append(
                {
                    "table": number,
                    "row": row,
                    "columns": int(cells_of.notna().sum()),
                    "mean": float(mean),
                    "printed": scores[AVERAGE],
                    "off": float(Fraction(printed, 100) - mean),
                    "rule": _rule(100 * mean, printed),
                }
            )
    return pd.DataFrame(lines)


def _rule(mean: Fraction, printed: int) -> str:
    """How ``printed`` comes from ``mean``, both in hundredths."""
    rounded, truncated = abs(mean - printed) <= Fraction(1, 2), 0 <= mean - printed < 1
    if rounded and truncated:
        return "rounded or truncated"
    if rounded or truncated:
        return "rounded" if rounded else "truncated"
    return "possible" if abs(mean - printed) < 1 else "does not add up"


def corrected(frame: pd.DataFrame) -> pd.DataFrame:
    """A table with its averages recomputed from its cells."""
    return frame.assign(
        **{AVERAGE: [float(exact_mean(scores)) for _, scores in frame.drop(columns=AVERAGE).iterrows()]}
    )


def defaults(backbone: str) -> tuple[float, int]:
    """The paper's γ and N for a backbone (Appendix B.2), from the methods' options and the profile ``paper``."""
    found = profile.load(profile.find("paper", backbone))
    return found.options("expert_merging", {}).model_dump()["gamma"], found.calibration.samples


def _swept(frame: pd.DataFrame, value: float) -> str:
    return next(row for row in frame.index if float(row) == value)


def same_configuration(tables: Tables) -> dict[tuple[str, str], list[Place]]:
    """(backbone, configuration) → every place where the paper prints it."""
    found = {}
    for backbone, number in NUMBERS.items():
        gamma, samples = defaults(backbone)
        swept = Place(number[GAMMA], _swept(tables[number[GAMMA]], gamma))
        drawn = Place(number[SAMPLES], _swept(tables[number[SAMPLES]], samples))
        unregularised = Place(number[GAMMA], _swept(tables[number[GAMMA]], 0))
        main, ablation, short = number[MAIN], number[ABLATION], SUMMARY
        found[backbone, EM] = [
            *(Place(of, EM) for of in (main, ablation, short)),
            Place(ablation, "no chunking"),
            Place(short, "w/o chunking"),
            swept,
            drawn,
        ]
        found[backbone, EMPP] = [Place(of, EMPP) for of in (main, ablation, short)]
        found[backbone, "γ = 0"] = [Place(of, NO_REGULARISER) for of in (ablation, short)] + [unregularised]
    return found


def agreements(tables: Tables) -> pd.DataFrame:
    """Every place of every configuration against the first: printed average, columns that differ, and the largest."""
    lines = []
    for (backbone, configuration), places in same_configuration(tables).items():
        first = tables[places[0].table].loc[places[0].row]
        for place in places:
            line = {"backbone": backbone, "configuration": configuration, "table": place.table, "row": place.row}
            if place.table == SUMMARY:
                printed = tables[SUMMARY].loc[place.row, BACKBONES[backbone]]
                lines.append(line | {AVERAGE: printed, "differs by": printed - first[AVERAGE]})
                continue
            scores = tables[place.table].loc[place.row]
            apart = (scores - first).drop(AVERAGE)
            different = apart[[hundredths(value) != 0 for value in apart]]
            largest = "" if different.empty else max(different.index, key=lambda name: abs(different[name]))
            lines.append(
                line
                | {
                    AVERAGE: scores[AVERAGE],
                    "differs by": scores[AVERAGE] - first[AVERAGE],
                    "columns that differ": len(different),
                    "most in": f"{largest} {different[largest]:+.2f}" if largest else "",
                }
            )
    return pd.DataFrame(lines)


def disagreements(tables: Tables) -> pd.DataFrame:
    """Of :func:`agreements` the configurations that are printed with more than one average."""
    found = agreements(tables)
    differing = found.groupby(["backbone", "configuration"])["differs by"].transform(lambda by: by.abs().max() > 0.001)
    return found[differing].fillna("").reset_index(drop=True)


def best_of_sweep(tables: Tables) -> pd.DataFrame:
    """Each sweep's best row beside the paper's default: the default is chosen by the numbers where they coincide."""
    lines = []
    for backbone, number in NUMBERS.items():
        for kind, value in zip((GAMMA, SAMPLES), defaults(backbone)):
            averages_of = tables[number[kind]][AVERAGE]
            best = averages_of.idxmax()
            line = {"backbone": backbone, "sweep": kind, "rows": len(averages_of), "default": value}
            lines.append(line | {"best": float(best), "best is the default": float(best) == value})
    return pd.DataFrame(lines)


def leaders(tables: Tables) -> pd.DataFrame:
    """The columns of the main tables in which, of base and experts, the column's own expert is not the best."""
    lines = []
    for number in NUMBERS.values():
        frame = tables[number[MAIN]]
        single = [row for row in frame.index if row == frame.index[0] or row.endswith(" Expert")]
        for column in frame.drop(columns=AVERAGE):
            own, scores = f"{columns.load(column, profile='paper').group} Expert", frame.loc[single, column]
            best = scores.idxmax()
            if best != own:
                line = {"table": number[MAIN], "column": column, "own expert": own, "its score": scores[own]}
                lines.append(line | {"best": best, "best score": scores[best]})
    return pd.DataFrame(lines)


def twins(tables: Tables, share: float = 0.5) -> pd.DataFrame:
    """Pairs of differently named rows of one main table that have more than ``share`` of their cells in common."""
    lines = []
    for number in (of[MAIN] for of in NUMBERS.values()):
        frame = tables[number].drop(columns=AVERAGE)
        for i, first in enumerate(frame.index):
            for second in frame.index[i + 1 :]:
                equal = [c for c in frame if frame.loc[first, c] == frame.loc[second, c]]
                if len(equal) > share * len(frame.columns):
                    pair = {"table": number, "rows": f"{first} = {second}"}
                    lines.append(pair | {"equal cells": len(equal), "of": len(frame.columns)})
    return pd.DataFrame(lines)
