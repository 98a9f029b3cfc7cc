"""Published sets of texts: fetched from the hub once, at a recorded revision, and written as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emkit.errors import UserError
from emkit.files import atomic_write, sha256_file, sha256_json
from emkit.own import hub
from eval.columns.kinds import AlpacaEval, HubSet, LMEval
from eval.resolved import remember, revisions


def place(column: LMEval | AlpacaEval, folder: Path, record: Path) -> str:
    """Write a published column's items, and its worked examples, into ``folder``; returns the hash of both.

    The revision of the set is recorded in ``record`` and asked for ever after. ``UserError`` where the column does not
    say where its set is, and for a set of another size than it says.
    """
    if column.hub is None:
        raise UserError(f"{column.name} is a published set, and its column does not say where: give it a `hub`")
    snapshot = _fetched(column.name, column.hub, record)
    items = _rows(snapshot, column.hub.files, column.name)
    if len(items) != column.n:
        raise UserError(f"{column.name}: {column.hub.path} has {len(items)} items, and the column says n: {column.n}")
    _write(folder / column.file, [{"index": f"{column.name}/{number}"} | row for number, row in enumerate(items)])
    if column.shots_file is not None:
        _write(folder / column.shots_file, _rows(snapshot, column.hub.shots, column.name))
    return sha256_json([sha256_file(folder / file) for file in column.files])


def _fetched(name: str, wanted: HubSet, record: Path) -> Path:
    key = f"datasets/{wanted.path}"
    revision = wanted.revision or revisions(record).get(key)
    at = wanted.path if revision is None else f"{wanted.path}@{revision}"
    found = hub.dataset(at, name, (*wanted.files, *wanted.shots))
    if wanted.revision is None:
        remember(record, key, found.name)
    return found


def _rows(snapshot: Path, patterns: Sequence[str], name: str) -> list[dict[str, Any]]:
    found = []
    for pattern in patterns:
        files = sorted(snapshot.glob(pattern))
        if not files:
            raise UserError(f"{name}: there is no file {pattern} in the set: correct the column's `hub`")
        for file in files:
            found += _read(file)
    return found


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        if file.suffix == ".parquet":
            from pyarrow import parquet

            return parquet.read_table(file).to_pylist()
        text = file.read_text(encoding="utf-8")
        parts = [text] if file.suffix == ".json" else [line for line in text.split("\n") if line.strip()]
        found = [json.loads(part) for part in parts]
        rows = found[0] if file.suffix == ".json" else found
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a table of items: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} is no list of items")
    return rows


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with atomic_write(path) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
