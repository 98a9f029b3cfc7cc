"""Start, find, ask and replace a worker (never imported by one).

The first request starts the worker; later ones, also of other processes, find it by a unix socket in a private folder
under the temporary directory.  A worker that died, however it died, is replaced by the next request; one that is at a
request for longer than it may be is killed with its process group (:mod:`eval.workers.watch`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from emkit.errors import UserError
from emkit.imports import code_sha256
from emkit.locks import lock
from eval.workers.text import whole
from eval.workers.watch import Watch

START_SECONDS = 300.0
_PACKAGE_ROOT = Path(__file__).parents[2]
_CARRIED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SYSTEMROOT")
# no proxy, no network for the hub, one thread
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "NO_PROXY": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": str(_PACKAGE_ROOT),
}


@dataclass(frozen=True)
class Evaluation:
    """A scored column: value and stderr in percent, n items, and each item's score (see :mod:`eval.stats`)."""

    value: float
    n: int
    stderr: float
    items: list[dict]
    harness: dict


@cache
def code(modules: tuple[str, ...], harness: str, package: str) -> str:
    """What a worker runs: a hash of all code that ``modules`` reach, and the version of the harness's ``package``."""
    try:
        return f"{code_sha256(modules, ())} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"{harness} is not installed: run `make setup` (package {package})") from error


def service(harness: str, module: str, folder: str | Path, code: str, **own: str) -> Service:
    """The worker of a data folder, with what of our environment it gets (no key, no proxy) and ``own`` variables;
    ``UserError`` where there is no such folder."""
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise UserError(f"no data folder {folder}: write it with `python -m eval data RECIPE --split SPLIT`")
    carried = {name: os.environ[name] for name in _CARRIED if name in os.environ}
    return Service(harness, module, folder, code, carried | ENVIRONMENT | own)


def private_folder() -> Path:
    """The user's folder of sockets and locks, which nobody else can read; ``UserError`` where it is somebody else's."""
    root = Path(tempfile.gettempdir())
    if len(str(root)) > 60:  # a unix socket's path is short
        root = Path("/tmp")
    folder = root / f"emkit-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise UserError(f"{folder} must be a private folder of yours: remove it, or set TMPDIR to another folder")
    return folder


class Refused(UserError):
    """The worker answered with an error of a ``kind`` of its own."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Service:
    """A worker: ``module`` run over ``folder`` with the whole environment ``environment``.

    ``code`` is a hash of everything that the worker runs: another code is another worker. So is another ``slot``.
    """

    harness: str  # its name in messages
    module: str
    folder: Path
    code: str
    environment: dict[str, str] = field(repr=False)
    slot: int = 0

    @property
    def socket_path(self) -> Path:
        """Where the worker listens: short (a unix socket's limit), private, and new with every code and GPU."""
        about = (self.module, self.folder, sys.executable, _PACKAGE_ROOT, self.code, self.slot)
        key = "\n".join(map(str, (*about, self.environment.get("CUDA_VISIBLE_DEVICES", ""))))
        return private_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.sock"

    def ask(self, request: dict, seconds: float, what: str):
        """Send one request; start or replace the worker as often as it takes, three times at most.

        A worker that took too long over another's request is replaced as one that died is; over ours, it is an error,
        whose message names ``what``. Raises :class:`Refused` for the worker's own kinds of error, else ``UserError``.
        """
        request = request | {"id": uuid.uuid4().hex, "seconds": seconds}
        line = (
            whole(json.dumps(request, ensure_ascii=False)).encode() + b"\n"
        )  # answers enter here, so none is half a sign
        work = self.socket_path.with_suffix(".work")
        for _ in range(3):
            connection, worker = self._connect()
            with Watch(worker, work, request["id"], seconds) as watch:
                try:
                    with connection, connection.makefile("rwb") as stream:
                        stream.write(line)
                        stream.flush()
                        reply = stream.readline()
                except OSError:
                    reply = b""
            if reply.endswith(b"\n"):
                return self._result(json.loads(reply))
            if watch.killed_ours:
                raise UserError(
                    f"{self.harness} was at {what} for more than {seconds:g} s, so its worker was killed: "
                    "if it needs that long, raise request_seconds in the protocol"
                )
        raise UserError(f"the scoring worker died three times over the same request; its log ends:\n{self._log_tail()}")

    def _result(self, reply: dict):
        if "ok" in reply:
            return reply["ok"]
        kind, message = reply["error"]["kind"], reply["error"]["message"]
        if kind == "user":
            raise UserError(message)
        if kind != "internal":
            raise Refused(kind, message)
        raise UserError(f"{self.harness} failed: {message}; its log ends:\n{self._log_tail()}")

    def _connect(self) -> tuple[socket.socket, int]:
        """A connection to the worker, and the worker's process id (that of its group, too)."""
        path = self.socket_path
        with lock(path.with_suffix(".lock")):
            connection = _dial(path) or self._start(path)
            return connection, int(path.with_suffix(".alive").read_text(encoding="utf-8"))

    def _start(self, path: Path) -> socket.socket:
        """Start a worker in a process group of its own (unless one is just starting) and wait until it listens."""
        command = [sys.executable, "-m", self.module, "--folder", str(self.folder), "--socket", str(path)]
        with open(path.with_suffix(".log"), "ab") as log:
            log.truncate(0)
            process = subprocess.Popen(
                command,
                cwd=_PACKAGE_ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if connection := _dial(path):
                return connection
            if process.poll() not in (
                None,
                0,
            ):  # 0: a worker is there already
                raise UserError(f"the scoring worker could not start; its log ends:\n{self._log_tail()}")
            time.sleep(0.05)
        process.kill()
        raise UserError(f"the scoring worker did not start in {START_SECONDS:.0f} s; its log ends:\n{self._log_tail()}")

    def _log_tail(self, lines: int = 12) -> str:
        try:
            text = self.socket_path.with_suffix(".log").read_text(errors="replace")
            return "\n".join(text.splitlines()[-lines:])
        except OSError:
            return "(no log)"


def _dial(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
        return connection
    except OSError:
        connection.close()
        return None
