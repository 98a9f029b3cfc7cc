"""The disk: where things are kept, how much room there is, what is really on it, and what the system refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from emkit.errors import UserError

_WORDS = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EFBIG: "the file is larger than this system allows: free some space or raise the limit, then run again",
    errno.EROFS: "the file system is read-only: choose a folder that can be written to",
    errno.EACCES: "permission denied: choose a folder that can be written to",
    errno.EPERM: "permission denied: choose a folder that can be written to",
    errno.ENOTDIR: "a part of this path is a file, not a folder: choose another folder",
}


class Planted(UserError):
    """A name that a folder or file of our own needs is somebody else's, or leads elsewhere."""


def unwritable(path: Path, error: OSError | SafetensorError) -> UserError:
    """The line to show when writing ``path`` failed with ``error`` (safetensors says it in words: "os error 28")."""
    number: int | None = getattr(error, "errno", None)
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    said = getattr(error, "strerror", None) or str(error)
    return UserError(f"cannot write {path}: {said if number is None else _WORDS.get(number, said)}")


def refused(error: OSError | SafetensorError) -> bool:
    """Whether it was the system that refused; safetensors has errors of its own as well."""
    return isinstance(error, OSError) or "os error" in str(error)


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


def private_dir(path: Path) -> None:
    """Make the folder ``path`` that nobody else may look into, or take one of that name that this user made before.

    :class:`Planted` for a link, a file or somebody else's folder of that name, which is neither followed nor written
    into.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            return path.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):  # who had it may have finished meanwhile
            status = path.lstat()
            break
    what = "a link" if stat.S_ISLNK(status.st_mode) else None if stat.S_ISDIR(status.st_mode) else "no folder"
    if what is None:
        with tempfile.TemporaryFile(dir=path.parent) as ours:  # whose it is depends on the file system, too
            what = None if os.fstat(ours.fileno()).st_uid == status.st_uid else "another user's"
    if what is not None:
        raise Planted(f"{path}, where the work is kept until it is done, is {what}: remove it, or choose another out")


def make_private(path: Path) -> None:
    """Shut a folder of our own to others, as far as its file system knows of that."""
    with contextlib.suppress(PermissionError):
        path.chmod(0o700 | (path.stat().st_mode & stat.S_ISGID))


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to), or a folder with everything in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


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
