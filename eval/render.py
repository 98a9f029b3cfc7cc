"""A table drawn from score files: as data (``table1.csv``) and to read, beside the published one (``table1.md``).

A row's value on a benchmark is the mean over its seeds; its standard error joins what the items and what the seeds
leave uncertain: √(mean over seeds of the items' squared standard errors + s²/S), with s the standard deviation over S
seeds (0 for one). ``Avg`` is the unweighted mean of the columns; their item errors are independent, so their variances
add. A column without a score leaves the row without an Avg: nothing is filled in and nothing averaged over.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from emkit import methods
from emkit.errors import UserError
from eval import scale, scores
from eval.places import Job
from eval.plan import Plan
from eval.table import Row, Table, published

AVERAGE = "Avg"
NOT_RUN = "not run yet"
# in this order; what a merge is made of and judged by comes first, as in the paper
GROUPS = (
    "Base and experts",
    "Experts, their merged tensors alone",
    "Training on all data together",
    "Merges by a formula",
    "Merges with learned coefficients",
    "Beyond the paper",
)
WIDE = 7  # columns beside each other on a page with a score and its error in one line
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=-)")  # where a column's name may be broken
Number = TypeVar("Number", int, float)
FIELDS = ("method", "benchmark", "score", "stderr", "n", "seeds", "status")


@dataclass(frozen=True)
class Entry:
    """One line of a table's CSV; ``score`` and ``stderr`` in percent, None where ``status`` is not ``ok``."""

    method: str
    benchmark: str
    score: float | None = None
    stderr: float | None = None
    n: int | None = None
    seeds: int | None = None
    status: str = NOT_RUN

    def line(self) -> list[str]:
        """Its fields as text: two decimals, empty where there is no number."""
        numbers = ["" if x is None else f"{x:.2f}" for x in (self.score, self.stderr)]
        counts = ["" if x is None else str(x) for x in (self.n, self.seeds)]
        return [self.method, self.benchmark, *numbers, *counts, self.status]


def combine(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error, from each seed's value and item standard error (percent)."""
    between = float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0
    return float(np.mean(values)), math.sqrt(float(np.mean(np.square(errors))) + between)


def column(label: str, benchmark: str, cells: Sequence[scores.Cell]) -> Entry:
    """One method on one benchmark, from its cells of all seeds."""
    bad = sorted({cell.status for cell in cells if cell.status != "ok"})
    if bad:
        return Entry(label, benchmark, status=bad[0])
    errors = [cell.stderr if cell.stderr is not None else 0.0 for cell in cells]
    score, stderr = combine([_number(cell.value) for cell in cells], errors)
    return Entry(label, benchmark, score, stderr, cells[0].n, len(cells), "ok")


def average(label: str, cells: Sequence[Sequence[scores.Cell]]) -> Entry:
    """The unweighted mean over benchmarks; ``cells[b][s]`` is benchmark b's cell of seed s."""
    bad = sorted({cell.status for column in cells for cell in column if cell.status != "ok"})
    if bad:
        return Entry(label, AVERAGE, status=bad[0])
    values = np.array([[_number(cell.value) for cell in column] for column in cells])  # [B, S]
    errors = np.array([[cell.stderr or 0.0 for cell in column] for column in cells])
    score, stderr = combine(values.mean(axis=0), np.sqrt(np.square(errors).sum(axis=0)) / len(cells))
    items = sum(_number(column[0].n) for column in cells)
    return Entry(label, AVERAGE, score, stderr, items, values.shape[1], "ok")


def _number(value: Number | None) -> Number:
    """A value that a cell whose status is ok has (:mod:`eval.scores` refuses it otherwise)."""
    assert value is not None
    return value


def entries(plan: Plan) -> list[Entry]:
    """Every line of the table, in its order; ``UserError`` when there is no score file of it at all."""
    lines = [entry for row in plan.rows for entry in row_entries(plan, row)]
    if plan.jobs and all(entry.status == NOT_RUN for entry in lines):
        plan.needed(plan.cell(plan.jobs[0], plan.benchmarks[0]))
    return lines


def row_entries(plan: Plan, row: str) -> list[Entry]:
    """A row's line for every benchmark and its average; "not run yet" where the score file of a seed is missing."""
    label, found = plan.rows[row].label, {}
    for name in plan.benchmarks if plan.runs(row) else []:
        paths = [plan.cell(Job(row, seed), name) for seed in plan.seeds(row)]
        if all(path.is_file() for path in paths):
            found[name] = [scores.read_cell(path) for path in paths]
    lines = [column(label, name, found[name]) if name in found else Entry(label, name) for name in plan.benchmarks]
    complete = len(found) == len(plan.benchmarks)
    return [*lines, average(label, list(found.values())) if complete else Entry(label, AVERAGE)]


def as_csv(lines: Sequence[Entry]) -> str:
    """The table as CSV text."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows(entry.line() for entry in lines)
    return stream.getvalue()


def read_csv(path: str | Path) -> list[Entry]:
    """The lines of a table's CSV; raises ``UserError`` when its columns are others."""
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise UserError(f"{path}: its columns are {reader.fieldnames}, not {', '.join(FIELDS)}")
        return [
            Entry(
                line["method"],
                line["benchmark"],
                score=float(line["score"]) if line["score"] else None,
                stderr=float(line["stderr"]) if line["stderr"] else None,
                n=int(line["n"]) if line["n"] else None,
                seeds=int(line["seeds"]) if line["seeds"] else None,
                status=line["status"],
            )
            for line in reader
        ]


def as_written(lines: Sequence[Entry]) -> list[Entry]:
    """The lines with the two decimals that the CSV has, so that a committed table is all that its figure rests on."""
    return [replace(line, score=_two_decimals(line.score), stderr=_two_decimals(line.stderr)) for line in lines]


def _two_decimals(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def grid(lines: Sequence[Entry]) -> dict[str, dict[str, Entry]]:
    """Method → benchmark → entry, in the table's order."""
    table: dict[str, dict[str, Entry]] = {}
    for entry in lines:
        table.setdefault(entry.method, {})[entry.benchmark] = entry
    return table


def ours(lines: Sequence[Entry], table: Table | None = None) -> str:
    """Our table in Markdown: score ± one standard error, or the status where there is no score; the average first, and
    with ``table`` the rows in its groups."""
    cells = grid(lines)
    columns = _average_first(next(iter(cells.values())))
    return _markdown(
        columns, {label: [_ours(row[name], columns) for name in columns] for label, row in cells.items()}, table
    )


def theirs(table: Table, rows: Collection[str] = (), columns: Collection[str] = ()) -> str:
    """The published table in Markdown; of these labels and columns, if any are given."""
    found = {label: row for label, row in published(table).items() if not rows or label in rows}
    if not found:
        return "The paper has none of these rows."
    shown = _average_first(name for name in next(iter(found.values())) if not columns or name in (*columns, AVERAGE))
    return _markdown(shown, {label: [_score(row[name]) for name in shown] for label, row in found.items()}, table)


def averages(lines: Sequence[Entry], table: Table, profile: str) -> str:
    """Our averages and the published ones beside each other, in Markdown."""
    theirs = {method: row.get(AVERAGE) for method, row in published(table).items()}
    rows = {method: [_ours(row[AVERAGE]), _score(theirs.get(method))] for method, row in grid(lines).items()}
    return _markdown([f"ours (`{profile}`)", "published"], rows, table)


def scales(plan: Plan) -> str:
    """The scale of every row that has one, and where it comes from, in Markdown."""
    found = scale.origins(plan)
    shown = {label: ["–" if value is None else f"{value:g}", origin] for label, (value, origin) in found.items()}
    return _markdown(["scale", "from"], shown)


def as_markdown(lines: Sequence[Entry], table: Table, profile: str, more: Mapping[str, str] | None = None) -> str:
    """Our table, named with its profile, then ``more`` by heading, and the published one beside it."""
    text = f"""# {table.title}, profile `{profile}`

Scores in percent on the `{profile}` models and benchmarks, `±` one standard error."""
    if table.columns:
        text += f" `{AVERAGE}` is the unweighted mean of the columns."
    if table.published is not None:
        text += """ They stand beside the paper's
numbers, which are of other models on other data, and do not reproduce them."""
    text += f"\n\n## Ours (`{profile}`)\n\n{ours(lines, table)}\n"
    for heading, said in (more or {}).items():
        text += f"\n## {heading}\n\n{said}\n"
    if table.published is not None:
        heading = f"Published ({table.published.models}, the paper's {table.title})"
        text += f"\n## {heading}\n\n{theirs(table)}\n"
        if table.columns:
            text += f"\n## Averages beside each other\n\n{averages(lines, table, profile)}\n"
    return text


def groups(table: Table) -> dict[str, str]:
    """Label → the group that the row stands in, for every row with a method, group by group."""
    found = {row.label: _group(row) for row in table.rows if row.method is not None}
    return {label: group for name in GROUPS for label, group in found.items() if group == name}


def _group(row: Row) -> str:
    if row.beyond:
        return GROUPS[5]
    if row.method == "checkpoint":
        return GROUPS[2] if row.model == "mixture" else GROUPS[0]
    if row.method == "reset_expert":
        return GROUPS[1]
    return GROUPS[4] if methods.get(str(row.method)).learned else GROUPS[3]


def _average_first(columns: Iterable[str]) -> list[str]:
    """The average is what is looked at first, and wide tables are cut off on the right."""
    return sorted(columns, key=lambda name: name != AVERAGE)


def _markdown(columns: Sequence[str], rows: Mapping[str, Sequence[str]], table: Table | None = None) -> str:
    """A table, its rows under a line for each of ``table``'s groups where there is more than one."""
    heads = [_CAMEL.sub("<br>", name) if len(columns) > WIDE else name for name in columns]
    text = ["| method | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(columns)]
    grouped = groups(table) if table is not None else {}
    kinds = [kind for kind in GROUPS if any(grouped.get(label) == kind for label in rows)]
    for kind in [*kinds, None]:  # the rows without a method come last
        if kind is not None and len(kinds) > 1:
            text.append(f"| **{kind}** |" + " |" * len(columns))
        text += [f"| {label} | " + " | ".join(rows[label]) + " |" for label in rows if grouped.get(label) == kind]
    return "\n".join(text)


def _ours(entry: Entry, columns: Sequence[str] = ()) -> str:
    """A cell, in two lines where there are many columns; a column that is not run yet is a dash, and its row's average
    says so."""
    if entry.score is None:
        return "–" if entry.status == NOT_RUN and columns and entry.benchmark != AVERAGE else entry.status
    return f"{entry.score:.2f}" + ("<br>±" if len(columns) > WIDE else "\u00a0±\u00a0") + f"{entry.stderr:.2f}"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
