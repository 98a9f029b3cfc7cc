"""A worker's process: one request at a time on a unix socket, until nobody asks any more.

A request is one JSON line, the answer another: ``{"do": …}`` -> ``{"ok": …}`` or ``{"error": {"kind", "message"}}``.
The worker ends after ``--idle`` seconds without a request, or when its socket or its folder disappears. Beside the
socket it notes which request it is at and until when (``*.work``), so that any client can tell a worker that hangs from
one that is busy with another's request.
"""

import argparse
import contextlib
import fcntl
import json
import os
import select
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from emkit.errors import UserError
from emkit.files import write_json
from eval.workers.text import whole

_GLANCE = 1.0  # seconds between looks at the socket file
_READ = 60.0  # seconds that a client may take to send its request

Answer = Callable[[str, dict], object]  # (folder, request) -> what the client gets, as JSON


class Refusal(Exception):
    """An error that its client can tell by ``kind``."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def reply(answer: Answer, folder: str, request: dict) -> dict:
    """The reply to one request; an exception becomes an ``error`` of kind user, internal, or its own."""
    try:
        return {"ok": answer(folder, request)}
    except UserError as error:
        return {"error": {"kind": "user", "message": str(error)}}
    except Refusal as error:
        return {"error": {"kind": error.kind, "message": str(error)}}
    except Exception as error:
        traceback.print_exc()
        return {"error": {"kind": "internal", "message": f"{type(error).__name__}: {error}"}}


def _converse(connection: socket.socket, answer: Answer, folder: str, work: Path, alone: bool = False) -> None:
    """Read one request, note it in ``work``, answer it; a client that went away is no concern of ours, unless it is
    ``alone`` in having us: then this process ends with it."""
    with connection, contextlib.suppress(OSError, ValueError):
        connection.settimeout(_READ)
        with connection.makefile("rwb") as stream:
            line = stream.readline()
            if line.endswith(b"\n"):
                connection.settimeout(None)
                request = json.loads(line)
                _note(work, request["id"], request["seconds"])
                with _ending_with(connection) if alone else contextlib.nullcontext():
                    replied = reply(answer, folder, request)
                text = whole(json.dumps(replied, ensure_ascii=False)).encode() + b"\n"
                _note(work, "", _READ)  # the next request is begun, and noted, well within that time
                stream.write(text)


@contextlib.contextmanager
def _ending_with(connection: socket.socket) -> Iterator[None]:
    """In the block, end this process as soon as the client hangs up, as one does that is killed: nobody wants the
    answer any more, and the model takes the memory of a device."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_GLANCE):
            with contextlib.suppress(OSError):
                if select.select([connection], [], [], 0)[0] and not connection.recv(1, socket.MSG_PEEK):
                    os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _note(work: Path, request: str, seconds: float) -> None:
    """Say what the worker is at now, "" for nothing, and for how long it may be."""
    write_json(work, {"id": request, "until": time.monotonic() + seconds})


def serve(answer: Answer, folder: str, path: Path, idle: float, alone: bool = False) -> None:
    """Answer requests on ``path`` until idle, or until ``path`` or ``folder`` is removed."""
    path.unlink(missing_ok=True)
    work = path.with_suffix(".work")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(64)
        server.settimeout(_GLANCE)
        ours, last = path.stat().st_ino, time.monotonic()
        while _inode(path) == ours and os.path.isdir(folder) and time.monotonic() - last < idle:
            with contextlib.suppress(TimeoutError):
                _converse(server.accept()[0], answer, folder, work, alone)
                last = time.monotonic()
        if _inode(path) == ours:
            path.unlink()
        server.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # whoever knocked while we were leaving
            while True:
                _converse(server.accept()[0], answer, folder, work)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def main(
    about: str,
    prepare: Callable[[], object],
    answer: Answer,
    argv: list[str] | None = None,
    alone: bool = False,
) -> int:
    """Entry point of a worker module: 0 also when another worker already serves the socket.

    ``prepare`` loads the harness before the first client is let in. ``alone``: a client has the worker to itself, and
    what it asks for is ended when it goes away.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--idle", type=float, default=60)
    options = parser.parse_args(argv)
    with open(options.socket.with_suffix(".alive"), "a") as alive:  # another's process id may stand in it: no "w"
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held for life, released by the system however we end
        except BlockingIOError:
            return 0
        alive.truncate(0)
        alive.write(str(os.getpid()))
        alive.flush()
        prepare()
        serve(answer, options.folder, options.socket, options.idle, alone)
    return 0
