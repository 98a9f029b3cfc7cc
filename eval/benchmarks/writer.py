"""Writing the benchmarks' files, TSV or JSON lines, and the manifest that says what they hold."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from emkit.errors import UserError
from emkit.files import atomic_write, sha256_file, write_json
from emkit.zoo.data import MIXED, QA, SUBTASKS, example
from emkit.zoo.data.regions import UNITS
from emkit.zoo.data.sampling import Draw
from eval.benchmarks import text_sets
from eval.benchmarks.columns import COLUMNS, Row, View
from eval.benchmarks.protocol import VLMEVALKIT, check, harness
from eval.lm import tasks

_COUNT_KEY = {"evaluation": "n", "validation": "validation_n"}
_WHICH_QUESTION = 1  # keeps the choice of an item's question apart from the drawing of the item
HASH_FOLDER = Path(__file__).parent


def write(protocol: dict, split: str, out: str | Path) -> dict:
    """Write every benchmark's file of one split into the folder `out`, then `manifest.json`; returns the manifest.

    `split` is "evaluation" or "validation". The manifest gives for each benchmark its file, its number of items and
    `sha256`, a hash of the items' content (every column, and the images' pixels), which does not depend on how a
    library compresses PNG; `files` has the hash of each file's bytes. Every file appears under its name only when it
    is complete, the manifest last. Raises `UserError` for a wrong protocol or split, or a folder it cannot write to.
    """
    check(protocol)
    if split not in _COUNT_KEY:
        raise UserError(f"unknown split {split!r}: benchmarks are written for {' or '.join(_COUNT_KEY)}")
    for name, settings in protocol["benchmarks"].items():
        _require_drawn(name, settings)
    out, benchmarks = Path(out), protocol["benchmarks"]
    _require_writable(out)
    total = sum(settings[_COUNT_KEY[split]] for settings in benchmarks.values())
    entries, tables, files = {}, {}, {}
    with tqdm(total=total, desc=f"benchmarks ({split})", unit="item", mininterval=0.5) as progress:
        for name, settings in benchmarks.items():
            n = settings[_COUNT_KEY[split]]
            if harness(settings) == VLMEVALKIT:
                file = f"{settings['harness_dataset']}.tsv"
                rows = tables.setdefault(file, [])
                digest = hashlib.sha256()
                for qa_row, image in _items(settings, split, protocol["image_size"]):
                    digest.update(_content(qa_row, image))
                    rows.append({"index": len(rows), "image": _png(image), **qa_row})
                    progress.update()
                sha256 = digest.hexdigest()
            else:
                file = tasks.file(name)
                _write_lines(out / file, text_sets.lines(settings, split, n))
                sha256 = files[file] = sha256_file(out / file)
                progress.update(n)
            entries[name] = {"file": file, "n": n, "sha256": sha256}
    for file, rows in tables.items():
        _write_table(out / file, rows)
        files[file] = sha256_file(out / file)
    _warn_where_different(protocol["name"], split, entries)
    manifest = {
        "protocol": protocol["name"],
        "version": protocol["version"],
        "split": split,
        "benchmarks": entries,
        "files": files,
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def _require_drawn(name: str, settings: dict) -> None:
    if settings["subtask"] is None:
        asked, of = harness(settings), settings.get("harness_dataset") or settings["task"]
        owner = "VLMEvalKit" if asked == VLMEVALKIT else asked
        raise UserError(f"{name} is a published set, not one to draw: {owner} downloads {of} itself")


def _items(settings: dict, split: str, size: int | str) -> Iterator[tuple[Row, Image.Image]]:
    """One question per image: the columns without index and image, and the image."""
    subtask, seed = settings["subtask"], settings["seed"]
    shared = {"split": settings["harness_split"]} if settings["harness_split"] else {}
    for index in range(settings[_COUNT_KEY[split]]):
        item = example(subtask, split, index, seed, size)
        qa = _question(item.benchmark_qas, seed, subtask, split, index)
        view = View(*item.image.size, 1.0 if size == MIXED else size / UNITS)
        yield {"question": qa.question, **COLUMNS[subtask](qa, view), **shared}, item.image


def _question(qas: tuple[QA, ...], seed: int, subtask: str, split: str, index: int) -> QA:
    splits = list(_COUNT_KEY)
    return Draw(seed, SUBTASKS.index(subtask), splits.index(split), index, _WHICH_QUESTION).pick(qas)


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
    _require_items(path, lines)
    with atomic_write(path) as part:
        part.write_text("".join(lines), encoding="utf-8")


def _require_items(path: Path, items: list) -> None:
    if not items:
        raise UserError(f"{path.name} would be empty: the protocol asks for no item of this split")


def _write_table(path: Path, rows: list[Row]) -> None:
    _require_items(path, rows)
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
