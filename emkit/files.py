"""Nothing half-written ever stands under its final name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from emkit import words
from emkit.disk import (
    Planted,
    file_mode,
    folder_mode,
    make_private,
    private_dir,
    refused,
    remove,
    sync,
    sync_tree,
    unwritable,
)
from emkit.errors import UserError
from emkit.locks import taken

T = TypeVar("T")


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` to write; it takes the name ``path`` only when the block succeeds.

    A killed process leaves at most a hidden temporary file. An operating-system error (full disk, read-only folder)
    becomes a ``UserError``, and the temporary file is removed.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise unwritable(path, error) from error
    part = Path(name)
    try:
        yield part
        part.chmod(file_mode())
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        if not refused(error):
            raise
        raise unwritable(path, error) from error
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """The same for a folder: yield a temporary sibling, which replaces ``path`` as a whole when the block succeeds."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield part
        part.chmod(folder_mode())
        sync_tree(part)
        replace_dir(part, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        if not refused(error):
            raise
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


PLAN = ".plan.json"


@contextlib.contextmanager
def resumable_dir(path: str | Path, key: str, allowed: Callable[[], None] | None = None) -> Iterator[Path]:
    """A folder that a killed process can go on with: yield the hidden sibling ``.NAME.part`` of ``path`` to fill.

    It still has what an earlier block with the same ``key`` had put there when it was killed, or failed for a reason
    outside itself (a full disk, Ctrl-C); for another ``key`` it is empty. It replaces ``path`` as a whole when the
    block succeeds, and is removed when the block raises ``UserError``, which it would raise again. A second process
    that wants the same folder waits. What is finished in the folder and what is not, the caller has to tell.

    ``allowed`` is called before ``path`` is replaced; what it raises leaves both folders as they are.
    """
    path = Path(path)
    part, wanted = path.with_name(f".{path.name}.part"), json.dumps({"key": key})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        private_dir(part)
        with taken(part / PLAN) as plan:
            private_dir(part)  # who waited may have found it gone, and another of that name
            make_private(part)
            plan.seek(0)
            if plan.read() != wanted:
                keep_only(part, {PLAN})
                plan.truncate(0)
                plan.write(wanted)
                plan.flush()
            try:
                yield part
            except Planted:
                raise
            except UserError:
                shutil.rmtree(part, ignore_errors=True)
                raise
            part.chmod(folder_mode())
            if allowed is not None:
                allowed()
            sync_tree(part)
            replace_dir(part, path)
            sync(path.parent)
            (path / PLAN).unlink()  # not before: without it the folder would be anybody's
    except OSError as error:
        raise unwritable(path, error) from error


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Remove everything in a folder but the regular files of these names: what another put there does not stay."""
    for path in folder.iterdir():
        if path.name not in names or path.is_symlink() or not path.is_file():
            remove(path)


def replace_dir(part: Path, path: Path) -> None:
    """Rename ``part`` to ``path``; a folder that is there already steps aside first (a rename cannot replace it).

    It is removed only once the new one has its name, and gets it back when that fails or is interrupted.
    """
    while not _renamed(part, path):
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        old = aside / "old"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, old)
            if _renamed(part, path):
                return
        finally:
            if part.exists() and not path.exists():
                with contextlib.suppress(OSError):
                    os.rename(old, path)
            if path.exists() or not old.exists():  # otherwise it is the only one there is
                shutil.rmtree(aside, ignore_errors=True)


def _renamed(part: Path, path: Path) -> bool:
    """Rename ``part`` to ``path``; False where a folder with something in it has the name."""
    try:
        os.rename(part, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as JSON, atomically and always in the same bytes (floats in their shortest exact form).

    Half a surrogate pair, which UTF-8 has no bytes for, is written as JSON's own escape.
    """
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file that emkit wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_kept(path: str | Path, read: Callable[[Path], T]) -> T | None:
    """``read(path)`` of a cache entry (file or folder); None where there is none, so that the caller makes it.

    An entry that ``read`` cannot make sense of, whatever it raises, counts as none after one line on stderr: a disk
    that damaged it must not stop this run and every later one, nor be passed over in silence.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        return read(path)
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        words.say(f"warning: {path} is unreadable ({what}); it is made again")
        return None


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Hex SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
