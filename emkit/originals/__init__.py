"""Layouts that only a checkpoint's own code opens, read as transformers' own class has them, and written back.

No such code is ever run. A folder in an original layout is converted once, into the user's cache; whatever reads models
is then given that folder. :mod:`emkit.own.export` writes a merged model back in it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from emkit import foreign, sealed, words
from emkit.checkpoints import Checkpoint
from emkit.disk import free_bytes, user_cache
from emkit.errors import UserError, panicked, reason
from emkit.files import atomic_dir, read_kept, sha256_file, sha256_json
from emkit.hashes import once
from emkit.imports import code_sha256
from emkit.locks import lock
from emkit.originals import internvl_chat, relaid
from emkit.originals.relaid import Relaid
from emkit.saving import write_checkpoint
from emkit.shards import INDEX, WRITTEN

LAYOUTS = {internvl_chat.KIND: internvl_chat}
RECORD = "emkit_converted.json"  # in a folder that was converted: what it was made from
Say = Callable[[str], None]


def cache() -> Path:
    """Where converted folders are kept."""
    return user_cache() / "layouts"


def kind(folder: Path) -> str | None:
    """The original layout that a model's folder has; None for one of transformers' own, or no model at all."""
    try:
        found = foreign.mapping(folder / "config.json").get("model_type")
    except UserError:  # whoever needs it says so
        return None
    return found if isinstance(found, str) and found in LAYOUTS else None


def code() -> str:
    """Hash of the code that converts."""
    return code_sha256(tuple(module.__name__ for module in (internvl_chat, relaid)))


def readable(folder: Path, weights: bool = True, say: Say = words.say) -> Path:
    """The folder that transformers opens: ``folder`` itself, or for one in an original layout what it is converted to.

    Without ``weights``, configuration, tokenizer and processor are enough, which takes no time. A conversion is found
    again by the hashes of the code and of the small files, and by path, size and time of change of those with weights;
    it is believed by the hashes of its own files.
    ``UserError`` for a variant that transformers' class cannot hold, and where there is no room.
    """
    found = kind(folder)
    if found is None:
        return folder
    layout, small = LAYOUTS[found], {file.name: sha256_file(file) for file in _small(folder)}
    stored = Checkpoint.open(folder) if weights else None
    key = sha256_json([found, code(), small, stored.identity() if stored is not None else None])
    out = cache() / f"{_name(folder)}-{key[:16]}"
    if _is_whole(out):
        return out
    with lock(out.with_name(f".{out.name}.lock"), remove=True, waiting=lambda: say(f"waiting for {out}")):
        if not _is_whole(out):
            _convert(layout, folder, stored, out, say)
    return out


def _convert(layout: Any, folder: Path, stored: Checkpoint | None, out: Path, say: Say) -> None:
    record: dict[str, Any] = {"layout": layout.KIND, "folder": str(folder.resolve())}
    with tempfile.TemporaryDirectory() as name:
        side = Path(name)
        _write_side_files(layout, folder, side)
        if stored is None:
            with atomic_dir(out) as part:
                shutil.copytree(side, part, dirs_exist_ok=True)
                _record(part, record)
            return
        view = Relaid(stored, layout.sources(stored.names), side)
        needed, free = sum(view.info(name).nbytes for name in view.names), free_bytes(out)
        if needed > free:
            raise UserError(
                f"no room to convert {folder} to transformers' layout: {needed / 1e9:.1f} GB in {cache()}, where "
                f"{free / 1e9:.1f} GB are free; free some, or set XDG_CACHE_HOME to another disk"
            )
        say(f"{folder} is in the layout {layout.KIND}: it is converted to transformers', in {out}")
        record |= {"original_sha256": stored.sha256(), "tensors": len(view.names)}
        write_checkpoint(out, view.read, view, finish=lambda part: _record(part, record))


def _write_side_files(layout: Any, folder: Path, side: Path) -> None:
    """Configuration, tokenizer and processor in transformers' layout; ``UserError`` where a file is not what it should
    be, whatever that raises in here or in a library."""
    try:
        layout.write_side_files(folder, side)
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not panicked(error):
            raise
        raise UserError(
            f"{folder} cannot be converted ({reason(error)}): is a file damaged? Download it again"
        ) from error


def _record(folder: Path, record: Mapping[str, Any]) -> None:
    content = {**record, "files": _hashes(folder)}
    (folder / RECORD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _is_whole(out: Path) -> bool:
    """Whether there is a conversion, of the very files that were written."""
    record = read_kept(out / RECORD, foreign.mapping)
    if record is None:
        return False
    try:
        same = record.get("files") == _hashes(out)
    except OSError:
        same = False
    if not same:
        words.say(f"warning: {out} is not as it was written; it is converted again")
    return same


def _hashes(folder: Path) -> dict[str, str]:
    """File → hash of a conversion; of large files as it was computed before (:func:`emkit.hashes.once`)."""
    return sealed.hashes(folder, (RECORD, WRITTEN), lambda file: once([file], ["file"], partial(sha256_file, file)))


def _small(folder: Path) -> list[Path]:
    """The files that a conversion reads besides weights."""
    names = ("*.json", "*.txt", "*.jinja", "*.model")
    return sorted({file for name in names for file in folder.glob(name) if file.is_file() and file.name != INDEX})


def _name(folder: Path) -> str:
    """A folder's name, of a hub download its repository's (``…/models--owner--name/snapshots/<revision>``)."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--")
    return folder.resolve().name
