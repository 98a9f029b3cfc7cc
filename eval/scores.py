"""One cell of a table as a file: ``results/<profile>/<backbone>/<row>/<seed>/<benchmark>.json``.

Beside each cell that has a score lies its per-item file ``<benchmark>.items.jsonl``, one
``{"index", "prediction", "score", "groups"}`` per line, whose SHA-256 the cell holds.  Tables and notebooks read
only these files, and only through this module, which refuses a cell that is damaged or does not fit its items.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from emkit.errors import UserError
from emkit.files import atomic_write, sha256_file, write_json
from eval import stats

STATUSES = ("ok", "failed", "no judge")
_ITEM_KEYS = {"index", "prediction", "score", "groups"}


@dataclass(frozen=True)
class Cell:
    """One row's result on one benchmark.

    ``value`` and ``stderr`` are in percent; both, ``n`` and ``items`` are None unless ``status`` is ``ok``
    (``stderr`` also for a single item). ``reason`` says in one line why a cell has no score.
    """

    row: str
    seed: int
    benchmark: str
    status: str = "ok"
    reason: str = ""
    value: float | None = None
    stderr: float | None = None
    n: int | None = None
    items: dict | None = None  # {"path": file name beside the cell, "sha256": its hash}
    recipe_sha256: str = ""
    model_sha256: str = ""
    data_sha256: str = ""
    harness: dict = field(default_factory=dict)  # {"name", "version", "dataset"}
    versions: dict = field(default_factory=dict)


def items_path(path: str | Path) -> Path:
    """The per-item file that belongs to the cell at ``path``."""
    return Path(path).with_suffix(".items.jsonl")


def write_scored(path: str | Path, items: list[dict], **about) -> Cell:
    """Write an ``ok`` cell and its items; value, stderr and n follow from the items (:func:`eval.stats.estimate`).

    ``about``: the other fields of :class:`Cell`. The items are written first, so a cell never lacks them.
    """
    value, stderr, n = stats.estimate(items)
    _check_items(items, path)
    lines = (json.dumps({key: item[key] for key in sorted(_ITEM_KEYS)}, ensure_ascii=False) for item in items)
    target = items_path(path)
    with atomic_write(target) as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
    kept = {"path": target.name, "sha256": sha256_file(target)}
    told = None if math.isnan(stderr) else stderr
    return _write(path, Cell(status="ok", value=value, stderr=told, n=n, items=kept, **about))


def write_unscored(path: str | Path, status: str, reason: str, **about) -> Cell:
    """Write a cell without a score: ``status`` is ``failed`` or ``no judge``, ``reason`` one line that says why."""
    reason = " ".join(reason.split())
    cell = _write(path, Cell(status=status, reason=reason, **about))
    items_path(path).unlink(missing_ok=True)
    return cell


def _write(path: str | Path, cell: Cell) -> Cell:
    _check(cell, Path(path))
    write_json(path, dataclasses.asdict(cell))
    return cell


def read_cell(path: str | Path) -> Cell:
    """The cell at ``path``, checked with its items; :class:`UserError` if absent, damaged or not fitting them."""
    path = Path(path)
    cell = _parse(path)
    _check(cell, path)
    if cell.status == "ok":
        value, stderr, n = stats.estimate(_read_items(cell, path))
        same_stderr = cell.stderr is None if math.isnan(stderr) else _close(cell.stderr, stderr)
        if n != cell.n or not _close(value, cell.value) or not same_stderr:
            raise _damaged(path, f"its value {cell.value} is not that of its items ({value}, n = {n})")
    return cell


def read_items(path: str | Path) -> list[dict]:
    """The items of the scored cell at ``path`` (the cell's own path), checked against its hash."""
    cell = _parse(Path(path))
    _check(cell, Path(path))
    if cell.status != "ok":
        raise UserError(f"{path} has no items: its status is {cell.status!r} ({cell.reason})")
    return _read_items(cell, Path(path))


def _parse(path: Path) -> Cell:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no score file {path}: run the row that makes it") from error
    except (OSError, ValueError) as error:
        raise _damaged(path, "it cannot be read as JSON") from error
    known = {f.name for f in dataclasses.fields(Cell)}
    if not isinstance(record, dict) or set(record) != known:
        wrong = sorted(known ^ set(record)) if isinstance(record, dict) else "no object"
        raise _damaged(path, f"its keys are not a cell's ({wrong})")
    return Cell(**record)


def _read_items(cell: Cell, path: Path) -> list[dict]:
    kept = cell.items or {}  # an `ok` cell has them: `_check`
    file = path.parent / kept["path"]
    if not file.is_file():
        raise _damaged(path, f"its per-item file {file.name} is missing")
    if sha256_file(file) != kept["sha256"]:
        raise _damaged(path, f"its per-item file {file.name} has changed")
    try:
        items = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    except ValueError as error:
        raise _damaged(path, f"its per-item file {file.name} is not JSON lines") from error
    _check_items(items, path)
    return items


def _check(cell: Cell, path: Path) -> None:
    """Types and the rules that tie status, value and reason together."""
    if cell.status not in STATUSES:
        raise _damaged(path, f"unknown status {cell.status!r}")
    if f"{cell.benchmark}.json" != path.name:
        raise _damaged(path, f"it belongs to benchmark {cell.benchmark!r}")
    if cell.status != "ok":
        if not cell.reason or any(part is not None for part in (cell.value, cell.stderr, cell.n, cell.items)):
            raise _damaged(path, "a cell without a score needs a reason and no numbers")
        return
    if cell.value is None or not _number(cell.value) or not -1e-9 <= cell.value <= 100 + 1e-9:
        raise _damaged(path, f"its value {cell.value!r} is no percentage")
    if cell.stderr is not None and (not _number(cell.stderr) or cell.stderr < 0):
        raise _damaged(path, f"its stderr {cell.stderr!r} is no standard error")
    if type(cell.n) is not int or cell.n < 1:
        raise _damaged(path, f"its n {cell.n!r} is no number of items")
    if not isinstance(cell.items, dict) or set(cell.items) != {"path", "sha256"}:
        raise _damaged(path, "it does not name its per-item file")
    if cell.items["path"] != items_path(path).name:
        raise _damaged(path, f"its per-item file should be {items_path(path).name}")


def _check_items(items: list[dict], path: str | Path) -> None:
    for item in items:
        if not isinstance(item, dict) or set(item) != _ITEM_KEYS:
            raise _damaged(path, f"an item is not {sorted(_ITEM_KEYS)}")
        if not isinstance(item["index"], str) or not isinstance(item["prediction"], str):
            raise _damaged(path, "an item's index or prediction is not text")
        if not _number(item["score"]) or not 0 <= item["score"] <= 1:
            raise _damaged(path, f"the score of item {item['index']} is not in [0, 1]")
        if not isinstance(item["groups"], list):
            raise _damaged(path, f"the groups of item {item['index']} are no list")
    if len({item["index"] for item in items}) != len(items):
        raise _damaged(path, "an item appears twice")


def _number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _close(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)


def _damaged(path: str | Path, why: str) -> UserError:
    return UserError(f"damaged score file {path}: {why}; delete it and run its row again")
