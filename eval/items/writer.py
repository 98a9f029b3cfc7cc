"""Writing the columns' items, TSV or JSON lines, and the manifest that says what they are.

Items are drawn from a sub-task, or given in a file beside the column's YAML: of those the first ``n`` are the
evaluation's and the ``validation_n`` after them the validation's.
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from emkit.errors import UserError
from emkit.files import atomic_write, sha256_file, write_json
from emkit.zoo.data import QA, SUBTASKS, example
from emkit.zoo.data.regions import UNITS
from emkit.zoo.data.sampling import Draw
from eval import columns
from eval.columns import Protocol
from eval.columns.kinds import Column, VLMEvalKit
from eval.items import texts
from eval.items.pictures import ROWS, Row, View

SPLITS = ("evaluation", "validation")
_WHICH_QUESTION = 1  # keeps the choice of an item's question apart from the drawing of the item
HASH_FOLDER = Path(__file__).parent

Place = Callable[[Column, Path], str]


def write(protocol: Protocol, split: str, out: str | Path, place: Place | None = None) -> dict:
    """Write every column's file of one split into the folder `out`, then `manifest.json`; returns the manifest.

    `split` is "evaluation" or "validation". The manifest gives for each column its file, its number of items and
    `sha256`, a hash of the items' content (every column of the table, and the images' pixels), which does not depend on
    how a library compresses PNG; `files` has the hash of each file's bytes. Every file appears under its name only when
    it is complete, the manifest last. `place` puts a published set there, which has no validation split, and returns
    its items' hash. Raises `UserError` for a wrong split, a set that cannot be fetched, or a folder it cannot write to.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: benchmarks are written for {' or '.join(SPLITS)}")
    for column in protocol.columns.values():
        _require_items(column, split, place)
    out = Path(out)
    _require_writable(out)
    entries: dict[str, dict] = {}
    tables: dict[str, list[Row]] = {}
    files: dict[str, str] = {}
    total = sum(_count(column, split) for column in protocol.columns.values())
    with tqdm(total=total, desc=f"benchmarks ({split})", unit="item", mininterval=0.5) as progress:
        for name, column in protocol.columns.items():
            if column.published and place is not None:
                sha256 = place(column, out)
                files |= {file: sha256_file(out / file) for file in column.files}
                progress.update(column.n)
            elif isinstance(column, VLMEvalKit):
                sha256 = _add_rows(tables.setdefault(column.file, []), column, split, protocol.image_size, progress)
            else:
                _write_lines(out / column.file, _lines(column, split))
                sha256 = files[column.file] = sha256_file(out / column.file)
                progress.update(_count(column, split))
            entries[name] = {"file": column.file, "n": _count(column, split), "sha256": sha256}
    for file, rows in tables.items():
        _write_table(out / file, rows)
        files[file] = sha256_file(out / file)
    _warn_where_different(protocol.name, split, entries)
    manifest = {"protocol": protocol.name, "version": protocol.version, "split": split}
    manifest |= {"benchmarks": entries, "files": files}
    write_json(out / "manifest.json", manifest)
    return manifest


def _count(column: Column, split: str) -> int:
    return column.n if split == "evaluation" else column.validation_n


def _require_items(column: Column, split: str, place: Place | None) -> None:
    if not column.published:
        return
    if place is None:
        raise UserError(f"{column.name} is a published set, not one to draw: `python -m eval data` fetches it")
    if split != "evaluation":
        raise UserError(f"{column.name} is a published set, which has no validation items: give the rows their scales")


def _given(column: Column, split: str) -> tuple[Path, slice]:
    """The file of a column's given items, and which of them are the split's."""
    path = columns.given_file(str(column.items))
    if path is None:
        package = str(column.items).rpartition(":")[0].replace("_", "-")
        how = f": install the package {package} (`make setup-small` does)" if package else f" in {columns.FOLDER}"
        raise UserError(f"{column.name}: its items {column.items} are not there{how}")
    return path, slice(column.n) if split == "evaluation" else slice(column.n, column.n + column.validation_n)


def _require_count(column: Column, split: str, found: list) -> list:
    if len(found) < _count(column, split):
        wanted = f"{column.n} of evaluation and {column.validation_n} of validation"
        raise UserError(f"{column.name}: {column.items} has too few items for {wanted}")
    return found


def _lines(column: Column, split: str) -> list[str]:
    """A text column's items of a split; a given one without an `index` gets the number of its line."""
    if column.subtask is not None:
        assert column.seed is not None  # which the column's settings guarantee
        return texts.lines(column.subtask, column.seed, split, _count(column, split))
    path, which = _given(column, split)
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as stream
        ):
            rows = [json.loads(line) for line in stream.read().split("\n") if line.strip()]
        rows = [{"index": f"{column.name}/{number}"} | row for number, row in enumerate(rows)]
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise UserError(f"{path} is not JSON lines, one mapping a line: {error}") from error
    rows = _require_count(column, split, rows[which])
    return [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]


def _add_rows(rows: list[Row], column: VLMEvalKit, split: str, size: int | str | None, progress: tqdm) -> str:
    """Add a column's items to its table; returns the hash of their content."""
    digest = hashlib.sha256()
    if column.subtask is None:
        path, which = _given(column, split)
        csv.field_size_limit(2**31 - 1)
        with open(path, encoding="utf-8", newline="") as stream:
            given = _require_count(column, split, list(csv.DictReader(stream, delimiter="\t"))[which])
        for row in given:
            digest.update(json.dumps(row, sort_keys=True).encode())
        rows += given
        progress.update(len(given))
        return digest.hexdigest()
    for row, image in _items(column, split, size):
        digest.update(_content(row, image))
        rows.append({"index": len(rows), "image": _png(image), **row})
        progress.update()
    return digest.hexdigest()


def _items(column: VLMEvalKit, split: str, size: int | str | None) -> Iterator[tuple[Row, Image.Image]]:
    """One question per image: the row without index and image, and the image."""
    subtask, seed = column.subtask, column.seed
    if size is None:
        raise UserError(f"{column.name}: images are to be drawn, but the protocol's image_size says none are")
    assert subtask is not None and seed is not None  # which the column's settings guarantee
    shared: Row = {"split": column.split} if column.split else {}
    for index in range(_count(column, split)):
        item = example(subtask, split, index, seed, size)
        qa = _question(item.benchmark_qas, seed, subtask, split, index)
        view = View(*item.image.size, 1.0 if isinstance(size, str) else size / UNITS)
        yield {"question": qa.question, **ROWS[subtask](qa, view), **shared}, item.image


def _question(qas: tuple[QA, ...], seed: int, subtask: str, split: str, index: int) -> QA:
    return Draw(seed, SUBTASKS.index(subtask), SPLITS.index(split), index, _WHICH_QUESTION).pick(qas)


def _content(row: Row, image: Image.Image) -> bytes:
    """What an item is: its columns and its pixels, as bytes to hash."""
    pixels = hashlib.sha256(image.tobytes()).hexdigest()
    return json.dumps({**row, "pixels": pixels}, sort_keys=True).encode()


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _require_writable(folder: Path) -> None:
    """Say before the drawing rather than after it that nothing can be written."""
    with atomic_write(folder / ".writable"):
        pass
    (folder / ".writable").unlink()


def _write_lines(path: Path, lines: list[str]) -> None:
    _require_some(path, lines)
    with atomic_write(path) as part:
        part.write_text("".join(lines), encoding="utf-8")


def _require_some(path: Path, items: list) -> None:
    if not items:
        raise UserError(f"{path.name} would be empty: the protocol asks for no item of this split")


def _write_table(path: Path, rows: list[Row]) -> None:
    _require_some(path, rows)
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, fieldnames=list(rows[0]), delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


# ------------------------------------------------------------------------------------------------ committed hashes


def hash_file(protocol_name: str) -> Path:
    """Where the committed content hashes of a protocol's items stand."""
    return HASH_FOLDER / f"{protocol_name}.sha256"


def committed_hashes(protocol_name: str) -> dict[str, str]:
    """`{"<split>/<benchmark>": sha256}` as committed; empty where none are."""
    path = hash_file(protocol_name)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _warn_where_different(protocol_name: str, split: str, entries: dict) -> None:
    """Say so: another version of Pillow or FreeType may round a pixel otherwise, and scores then compare less well."""
    committed = committed_hashes(protocol_name)
    different = [
        name for name, entry in entries.items() if committed.get(f"{split}/{name}", entry["sha256"]) != entry["sha256"]
    ]
    if different:
        print(
            f"warning: the {split} items of {', '.join(different)} differ from the committed ones of {protocol_name}",
            file=sys.stderr,
        )
