"""What a long step has done so far, each part on disk before the next is begun: whoever was killed goes on from there.

The answers of a cell that is being scored are kept so, batch by batch. A batch is answered whole or not at all, so that
the answers after a kill are those of a run that nobody killed: what shares a batch decides how much each is padded.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from emkit.disk import unwritable
from emkit.files import sha256_json

T = TypeVar("T")


class Journal:
    """JSON values by key, one a line of ``path``; every line carries its hash, and ``identity`` is part of it.

    What is of another identity, damaged, or cut off is made again. While another process writes the same file, it is
    read and nothing is kept here.
    """

    def __init__(self, path: Path, identity: str):
        self.path, self.identity = path, identity
        self._kept: dict[str, Any] = {}
        self._file: Any = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[Journal]:
        """The journal with what is kept in its file, which is written to in the block."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "a+b")  # noqa: SIM115 - closed below
        except OSError as error:
            raise unwritable(self.path, error) from error
        with file:
            sound = self._read(file)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._file = file
                file.truncate(max(sound, self._read(file)))  # whoever had it may have written on
            try:
                yield self
            finally:
                self._file = None

    def _read(self, file: Any) -> int:
        """Take over the lines from the first on for as long as they are sound; returns where they end."""
        file.seek(0)
        end = 0
        for line in file:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found = json.loads(line)
                key, value = found["key"], found["value"]
                if line.endswith(b"\n") and found["sha256"] == self._sha256(key, value):
                    self._kept[key] = value
                    end += len(line)
                    continue
            break
        return end

    def _sha256(self, key: str, value: Any) -> str:
        return sha256_json([self.identity, key, value])

    def once(self, about: Any, make: Callable[[], T]) -> T:
        """What was kept of ``about`` (a JSON value), else ``make()``, a JSON value that is then kept."""
        key = sha256_json(about)
        if key not in self._kept:
            value = make()
            self._write({"key": key, "value": value, "sha256": self._sha256(key, value)})
            self._kept[key] = value
        return self._kept[key]

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
