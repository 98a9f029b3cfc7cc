"""Nothing half-written ever stands under its final name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from safetensors import SafetensorError

from emkit.errors import UserError

T = TypeVar("T")
_WORDS = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EFBIG: "the file is larger than this system allows: free some space or raise the limit, then run again",
    errno.EROFS: "the file system is read-only: choose a folder that can be written to",
    errno.EACCES: "permission denied: choose a folder that can be written to",
    errno.EPERM: "permission denied: choose a folder that can be written to",
    errno.ENOTDIR: "a part of this path is a file, not a folder: choose another folder",
}


def unwritable(path: Path, error: OSError | SafetensorError) -> UserError:
    """The line to show when writing ``path`` failed with ``error`` (safetensors says it in words: "os error 28")."""
    number: int | None = getattr(error, "errno", None)
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    said = getattr(error, "strerror", None) or str(error)
    return UserError(f"cannot write {path}: {said if number is None else _WORDS.get(number, said)}")


def _by_system(error: OSError | SafetensorError) -> bool:
    """Whether it was the system that refused; safetensors has errors of its own as well."""
    return isinstance(error, OSError) or "os error" in str(error)


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
        if not _by_system(error):
            raise
        raise unwritable(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """See to it that what was written to a file, or renamed in a folder, is on the disk: a power cut after a rename
    could otherwise leave a file that has its name and not its bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS, errno.EBADF):  # a file system that has no such thing
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """The same for a folder and everything in it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            sync(path)
    for path in [*(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()), folder]:
        sync(path)


def _umask() -> int:
    """The process's umask. It can only be read by setting it; for that moment new files are private, never public."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def file_mode() -> int:
    """The permissions that a new file gets under the umask. Temporary files are private until they have their name."""
    return 0o666 & ~_umask()


def folder_mode() -> int:
    """The permissions that a new folder gets under the umask."""
    return 0o777 & ~_umask()


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
        if not _by_system(error):
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
        with _locked(part / PLAN) as plan:
            plan.seek(0)
            if plan.read() != wanted:
                _clear(part, but=PLAN)
                plan.truncate(0)
                plan.write(wanted)
                plan.flush()
            try:
                yield part
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


def _locked(path: Path, waiting: Callable[[], None] = lambda: None) -> TextIO:
    """The file ``path`` open and locked; it and its folder are made where there are none."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - the caller's
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.ExitStack() as kept:
                kept.callback(handle.close)
                waiting()
                fcntl.flock(handle, fcntl.LOCK_EX)
                kept.pop_all()
        with contextlib.suppress(FileNotFoundError):
            # who held the lock may have finished meanwhile, and this file be gone, with its folder or without
            if os.path.samestat(os.fstat(handle.fileno()), os.stat(path)):
                return handle
        handle.close()


def _clear(folder: Path, but: str) -> None:
    for path in folder.iterdir():
        if path.name != but:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


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
        print(f"warning: {path} is unreadable ({what}); it is made again", file=sys.stderr, flush=True)
        return None


@contextlib.contextmanager
def lock(path: str | Path, remove: bool = False, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold ``path`` locked among processes; the system releases it when its holder dies, however it dies.

    ``waiting`` is called when another process holds it. With ``remove`` the file is gone after the block; who waited
    for it then has one of its own.
    """
    path = Path(path)
    try:
        handle = _locked(path, waiting)
    except OSError as error:
        raise unwritable(path, error) from error
    with handle:
        try:
            yield
        finally:
            if remove:
                path.unlink(missing_ok=True)


class _Busy(Exception):
    """Another process holds the lock."""


def _refuse() -> None:
    raise _Busy


def locks_in_turn(
    paths: Sequence[Path], waiting: Callable[[int], None] = lambda index: None
) -> Generator[int, None, None]:
    """Hold each of ``paths`` locked once, free ones first: yields the index of the one that is held until the next.

    ``waiting(index)`` is called when other processes hold all that are left, before this one is waited for. Close the
    iterator (``contextlib.closing``), so that an error between two of them lets go.
    """
    left = list(range(len(paths)))
    while left:
        index, handle = _first_free(paths, left, waiting)
        left.remove(index)
        with handle:
            yield index


def _first_free(paths: Sequence[Path], left: Sequence[int], waiting: Callable[[int], None]) -> tuple[int, TextIO]:
    for index in left:
        with contextlib.suppress(_Busy):
            return index, _locked(paths[index], _refuse)
    waiting(left[0])
    return left[0], _locked(paths[left[0]])


def user_cache() -> Path:
    """Where a user's caches are: of fits, converted layouts, published sets."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "emkit"


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that ``path`` is on, or will be."""
    return shutil.disk_usage(existing(path)).free


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Hex SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
