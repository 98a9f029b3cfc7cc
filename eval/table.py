"""A table as data: one YAML file says which rows are merged, on which columns they are scored, and what stands beside.

Shipped tables are files of ``eval/tables``; any other YAML file of the same keys is a table too. What the numbers are
computed *with* (models, hyper-parameters, items) is the profile's (:mod:`eval.profile`), never the table's, unless a
row says so: ``scale``, ``options`` and ``calibration`` of a row stand in place of the profile's.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from emkit.config import Settings, option, parse
from emkit.errors import UserError
from emkit.methods import get, registry
from emkit.schema import fail, load_yaml, nearest

FOLDER = Path(__file__).parent / "tables"
_ID = r"^[\w.+-]+$"  # a row's id is the name of a folder


class Row(Settings):
    """One line of a table; with ``vary`` one line for each value (a sweep), or for each combination of values."""

    id: str = option(..., "the folder of its scores below results/<profile>/<backbone>", pattern=_ID)
    label: str = option(..., "its name, also in the published table; in a sweep '{}' is the value", min_length=1)
    method: str | None = option(None, "a method of emkit; none: the row is shown as not run yet")
    model: str | None = option(None, "of checkpoint and reset_expert: base, mixture or an expert of the profile")
    scale: float | None = option(None, "λ of a method whose scale is free; none: the profile's, or chosen by its rule")
    options: dict[str, Any] = option({}, "options of the method, in place of the profile's")
    calibration: dict[str, Any] = option({}, "keys of the profile's calibration section, in place of its own")
    vary: dict[str, list[Any]] = option({}, "'scale', 'options.KEY' or 'calibration.KEY' → the values of a sweep")

    @property
    def content(self) -> dict[str, Any]:
        """What decides its scores besides the profile."""
        return self.model_dump(include={"method", "model", "scale", "options", "calibration"})

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
            names = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
            data |= {"id": "_".join([self.id, *names]), "label": self.label.format(*names)}
            yield parse(Row, data, where)


class Published(Settings):
    """The numbers that a table stands beside."""

    file: str = option(..., "CSV: one line a row with its label first, one column a benchmark, in percent")
    models: str = option(..., "the models that they are of")


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
    learned: list[str] = option([], "learned rows whose seeds are compared; of the first the coefficients are drawn")
    notebook: str = option("table", "the notebook of notebooks/ that shows it")
    prose: dict[str, str] = option({}, "paragraphs of the notebook that hold for this table alone, by name")

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
    """The shipped tables."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str | Path) -> Table:
    """A table with its sweeps written out; ``UserError`` naming file and key for what is wrong in it."""
    path = find(name)
    where = f"{path}: "
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the table {path}: {error.strerror}") from error
    table = parse(Table, load_yaml(content, str(path)), where)
    rows = [made for i, row in enumerate(table.rows) for made in row.expanded(f"{where}rows[{i}]")]
    table = table.model_copy(update={"rows": rows})
    _check(table, where)
    return table


def published(table: Table) -> dict[str, dict[str, float | None]]:
    """The published numbers beside a table: label → column → percent (None: a dash); {} where there are none."""
    return scores(table.published.file) if table.published is not None else {}


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
    for pair in table.compare:
        if len(pair) != 2:
            raise fail(f"{where}compare", f"{pair} is not a pair of rows")
    for key, named in (("compare", itertools.chain(*table.compare)), ("learned", table.learned)):
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
