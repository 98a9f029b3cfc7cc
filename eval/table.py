"""A table as data: one YAML file says which rows are merged, on which columns they are scored, and what stands beside.

Shipped tables are files of ``eval/tables``; any other YAML file of the same keys is a table too. What the numbers are
computed *with* (models, hyper-parameters, items) is the profile's (:mod:`eval.profile`), never the table's, unless a
row says so: ``scale``, ``options`` and ``calibration`` of a row stand in place of the profile's.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from emkit.config import Name, Settings, option, parse
from emkit.errors import UserError
from emkit.methods import get, registry
from emkit.schema import check_name, fail, load_yaml, nearest

FOLDER = Path(__file__).parent / "tables"


class Row(Settings):
    """One line of a table; with ``vary`` one line for each value (a sweep), or for each combination of values."""

    id: Name = option(..., "the folder of its scores below results/<profile>/<backbone>")
    label: str = option(..., "its name, also in the published table; in a sweep '{}' is the value", min_length=1)
    method: str | None = option(None, "a method of emkit; none: the row is shown as not run yet")
    model: str | None = option(None, "of checkpoint and reset_expert: base, mixture or an expert of the profile")
    scale: float | None = option(None, "λ of a method whose scale is free; none: the profile's, or chosen by its rule")
    options: dict[str, Any] = option({}, "options of the method, in place of the profile's")
    calibration: dict[str, Any] = option({}, "keys of the profile's calibration section, in place of its own")
    vary: dict[str, list[Any]] = option({}, "'scale', 'options.KEY' or 'calibration.KEY' → the values of a sweep")
    relative_to: dict[str, Annotated[float, Field(gt=0)]] = option(
        {}, "option → its published default: the row's value over it times the profile's own is what is run"
    )
    every_sample: bool = option(False, "a fit's batch is doubled until its steps reach every sample once")
    beyond: bool = option(False, "it is not of the paper, and stands under a line of its own")
    plain: str | None = option(
        None, "the id of the method's row without values of its own; where both come to the same, so do the scores"
    )

    @property
    def merges(self) -> bool:
        """Whether it merges anything, and is not one model as it is."""
        return self.method not in (None, "checkpoint", "reset_expert")

    @property
    def content(self) -> dict[str, Any]:
        """What decides its scores besides the profile."""
        given = {"relative_to", "every_sample"} & {key for key in self.model_fields_set if getattr(self, key)}
        return self.model_dump(include={"method", "model", "scale", "options", "calibration", *given})

    def expanded(self, where: str) -> Iterator[Row]:
        """The rows of a sweep, in the order of the values; the row itself where nothing varies."""
        if not self.vary:
            yield self
            return
        for values in itertools.product(*self.vary.values()):
            data = self.model_dump(exclude={"vary"})
            for key, value in zip(self.vary, values):
                group, _, name = key.partition(".")
                if key == "scale":
                    data["scale"] = value
                elif group in ("options", "calibration") and name:
                    data[group] = _with(data[group], name, value)
                else:
                    raise fail(f"{where}.vary", f"'{key}' cannot vary: scale, options.KEY and calibration.KEY can")
            names = [str(value) for value in values]
            data |= {"id": "_".join([self.id, *names]), "label": self.label.format(*names)}
            yield parse(Row, data, where)


class Published(Settings):
    """The numbers that a table stands beside."""

    file: str = option(..., "CSV: one line a row with its label first, one column a benchmark, in percent")
    models: str = option(..., "the models that they are of")
    label: str = option("{}", "what a line is called here; '{}' is its first field")


class Sweep(Settings):
    """The value that the rows of a table differ in."""

    of: str = option(..., "its symbol", min_length=1)
    key: str = option(
        ..., "where a row has it: 'options.KEY' or 'calibration.KEY'", pattern=r"^(options|calibration)\.\w+$"
    )


class Claim(Settings):
    """What the paper says of its table, with the rule, fixed before any run, by which ours shows it or contradicts it
    (:mod:`eval.claims`): ``row`` is ahead of others, or no other is ahead of it by ``points``, or it is level with them
    to within ``points``."""

    says: str = option(..., "the claim in words", min_length=1)
    where: str = option(..., "where in the paper it stands", min_length=1)
    row: str = option(..., "the row that it is about")
    ahead_of: list[str] = option([], "the rows that it is better than")
    not_behind: list[str] = option([], "the rows that are not better than it by 'points'")
    level_with: list[str] = option([], "the rows that it differs from by less than 'points'")
    points: float | None = option(None, "the margin of the last two, in percentage points", gt=0)

    @property
    def others(self) -> list[str]:
        """The rows that it is compared with."""
        return [*self.ahead_of, *self.not_behind, *self.level_with]

    @model_validator(mode="after")
    def _of_one_kind(self) -> Claim:
        if sum(map(bool, (self.ahead_of, self.not_behind, self.level_with))) != 1:
            raise ValueError("a claim has one of 'ahead_of', 'not_behind' and 'level_with'")
        if bool(self.ahead_of) != (self.points is None):
            raise ValueError("'not_behind' and 'level_with' need 'points', 'ahead_of' has none")
        return self


class Table(Settings):
    """A table of scores, or (``averages``) a table of other tables' averages with one column for each."""

    title: str = option(..., "what it is called in a text", min_length=1)
    about: str = option("", "its subject, for the notebook's heading")
    backbone: str | None = option(None, "which of the profile's files it is computed with")
    columns: list[str] = option([], "the benchmarks, without the average")
    averages: dict[str, str] = option({}, "column → the table (a name or a file) whose average it shows, row by row")
    rows: list[Row] = option(..., "its lines, in order", min_length=1)
    published: Published | None = option(None, "published numbers beside which it stands")
    compare: list[list[str]] = option([], "pairs of rows that are compared item by item")
    compare_beyond: list[list[str]] = option(
        [],
        "pairs with rows beyond the paper, compared by themselves, so that the others' p values know nothing of them",
    )
    against: str | None = option(None, "a row that every other one is compared with, too")
    claims: list[Claim] = option([], "what the paper says of the table")
    sweep: Sweep | None = option(None, "what the rows differ in, where that is one number")
    learned: list[str] = option([], "learned rows whose seeds are compared; of the first the coefficients are drawn")
    notebook: str = option("table", "the notebook of notebooks/ that shows it")
    prose: dict[str, str] = option({}, "paragraphs of the notebook that hold for this table alone, by name")

    @property
    def pairs(self) -> list[list[str]]:
        """The pairs of rows that are compared: of ``compare``, of each row with ``against``, and of claims; no
        two rows twice."""
        against = [[row.id, self.against] for row in self.rows if self.against and row.id != self.against]
        claimed = [[claim.row, other] for claim in self.claims for other in claim.others]
        found: dict[frozenset[str], list[str]] = {}
        for pair in [*self.compare, *against, *claimed]:
            found.setdefault(frozenset(pair), pair)
        return list(found.values())

    @model_validator(mode="after")
    def _of_one_kind(self) -> Table:
        if bool(self.columns) == bool(self.averages):
            raise ValueError("a table has either 'columns' or 'averages'")
        if self.columns and self.backbone is None:
            raise ValueError("the key 'backbone' is missing")
        return self


def find(name: str | Path) -> Path:
    """The file of a table: one of ``eval/tables`` by its name, or the path itself; ``UserError`` for neither."""
    path = FOLDER / f"{name}.yaml"
    if path.is_file():
        return path
    if Path(name).suffix not in (".yaml", ".yml"):
        raise UserError(f"there is no table '{name}': {nearest(str(name), names())}, or give a YAML file")
    return Path(name)


def names() -> list[str]:
    """The shipped tables, by number."""
    return sorted((path.stem for path in FOLDER.glob("*.yaml")), key=_in_order)


def _in_order(name: str) -> list:
    """table2 comes before table10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def load(name: str | Path) -> Table:
    """A table with its sweeps written out; ``UserError`` naming file and key for what is wrong in it."""
    path = find(name)
    where = f"{path}: "
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the table {path}: {error.strerror}") from error
    check_name(path.stem, where, "the file's own name")  # which the table's results are called by
    table = parse(Table, load_yaml(content, str(path)), where)
    rows = [made for i, row in enumerate(table.rows) for made in row.expanded(f"{where}rows[{i}]")]
    table = table.model_copy(update={"rows": rows})
    _check(table, where)
    return table


def published(table: Table) -> dict[str, dict[str, float | None]]:
    """The published numbers beside a table: label → column → percent (None: a dash); {} where there are none."""
    if table.published is None:
        return {}
    return {table.published.label.format(name): row for name, row in scores(table.published.file).items()}


def scores(path: str | Path) -> dict[str, dict[str, float | None]]:
    """A published table: label → column → score in percent (None: a dash)."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            lines = list(csv.DictReader(stream))
        key = next(iter(lines[0]))
        return {line.pop(key): {k: float(v) if v else None for k, v in line.items()} for line in lines}
    except (OSError, IndexError, ValueError) as error:
        raise UserError(f"the published numbers in {path} cannot be read: {error}") from error


def _check(table: Table, where: str) -> None:
    ids, labels = ([getattr(row, key) for row in table.rows] for key in ("id", "label"))
    for i, row in enumerate(table.rows):
        here = f"{where}rows[{i}] ('{row.id}')"
        for key, given in (("id", ids), ("label", labels)):
            if given.count(getattr(row, key)) > 1:
                raise fail(here, f"this {key} is given to more than one row")
        if table.columns:
            _check_row(row, here)
    for key, pairs in (("compare", table.compare), ("compare_beyond", table.compare_beyond)):
        for pair in pairs:
            if len(pair) != 2:
                raise fail(f"{where}{key}", f"{pair} is not a pair of rows")
    claimed = [name for claim in table.claims for name in (claim.row, *claim.others)]
    of = {
        "compare": itertools.chain(*table.compare, *table.compare_beyond),
        "learned": table.learned,
        "claims": claimed,
    }
    for key, named in (of | {"against": [table.against] if table.against else []}).items():
        for name in named:
            if name not in ids:
                raise fail(f"{where}{key}", f"unknown row '{name}': {nearest(name, ids)}")


def _check_row(row: Row, here: str) -> None:
    if row.method is None:
        return
    try:
        method = get(row.method)
    except UserError as error:
        raise fail(here, str(error)) from error
    if method.merges != (row.model is None):
        alone = " and ".join(found.name for found in registry().values() if not found.merges)
        raise fail(here, f"the methods {alone}, and no others, need the key 'model'")
    if row.scale is not None and "scale" not in method.needs:
        raise fail(here, f"the method {method.name} has no free scale: remove the key 'scale'")
    if row.calibration and not method.learned:
        raise fail(here, f"the method {method.name} needs no samples: remove the key 'calibration'")


def _with(group: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """``group`` with ``value`` at the dotted key ``name``."""
    first, _, rest = name.partition(".")
    return {**group, first: _with(group.get(first, {}), rest, value) if rest else value}
