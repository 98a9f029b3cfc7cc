"""What each running job is at, for the display: a small file that the job rewrites, and holds locked while it lives.

The lock goes with its holder, however it ends, so what a killed job left is never taken for a sign of life.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emkit import progress

SIZE = 2048  # bytes of the file: a sign replaces the last one in a single write
LONGEST = 200  # characters of a sign


@dataclass(frozen=True)
class Sign:
    """The last sign of a running job: its name, what it is at, when it said so (seconds since the epoch), and how much
    of what it is at is done (of 0: unknown)."""

    job: str
    text: str
    at: float
    done: int = 0
    total: int = 0

    def line(self, now: float) -> str:
        """For people, with the age of the sign."""
        return f"{self.job}: {self.text}, {max(now - self.at, 0):.0f} s ago"


@dataclass(frozen=True)
class _Writer:
    handle: int
    job: str

    def __call__(self, what: str, done: int, total: int) -> None:
        text = f"{what} {done}/{total}" if total else what
        said = {"job": self.job, "text": text[-LONGEST:], "at": time.time(), "done": done, "total": total}
        content = json.dumps(said).encode()
        with contextlib.suppress(OSError):  # a full disk: a job does not end because nobody can watch it
            os.pwrite(self.handle, content.ljust(SIZE), 0)


@contextlib.contextmanager
def written(folder: Path, job: str) -> Iterator[None]:
    """In the block, every report of this process becomes the sign of ``job`` in ``folder``."""
    path = folder / f"{job}.sign"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            with progress.told(_Writer(file.fileno(), job)):
                progress.report("starting")
                yield
        finally:
            path.unlink(missing_ok=True)


def running(folder: Path) -> list[Sign]:
    """The last signs of the jobs that are alive, by file name."""
    found = (_alive(path) for path in sorted(folder.rglob("*.sign")))
    return [sign for sign in found if sign is not None]


def _alive(path: Path) -> Sign | None:
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Sign(**json.loads(file.read()))
    return None
