"""Locks among processes, which the system lets go of when their holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from emkit.disk import Planted, unwritable


@contextlib.contextmanager
def lock(path: str | Path, remove: bool = False, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold ``path`` locked among processes; the system releases it when its holder dies, however it dies.

    ``waiting`` is called when another process holds it. With ``remove`` the file is gone after the block; who waited
    for it then has one of its own.
    """
    path = Path(path)
    try:
        handle = taken(path, waiting)
    except OSError as error:
        raise unwritable(path, error) from error
    with handle:
        try:
            yield
        finally:
            if remove:
                path.unlink(missing_ok=True)


def taken(path: Path, waiting: Callable[[], None] = lambda: None) -> TextIO:
    """The file ``path`` open and locked; it and its folder are made where there are none."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a link of this name is somebody's trick: what is written here must not land in another file
        try:
            number = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise Planted(f"{path} is a link, where a file of emkit's own is made: remove it") from error
        handle = open(number, "a+", encoding="utf-8")  # noqa: SIM115 - the caller's
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
            return index, taken(paths[index], _refuse)
    waiting(left[0])
    return left[0], taken(paths[left[0]])
