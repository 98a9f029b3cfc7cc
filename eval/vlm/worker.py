"""The scoring worker: loads VLMEvalKit once and answers many rows, one request at a time.

Started by :mod:`eval.vlm.client`; not called by hand.  A request is one JSON line on a unix socket, the answer
another: ``{"do": "prompts" | "evaluate" | "versions", …}`` -> ``{"ok": …}`` or ``{"error": {"kind", "message"}}``.
The worker ends after ``--idle`` seconds without a request, or when its socket or its data folder disappears.
"""

import argparse
import contextlib
import fcntl
import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path

from emkit.errors import UserError
from eval.vlm import harness

_GLANCE = 1.0  # seconds between looks at the socket file


def answer(data_dir: str, request: dict) -> dict:
    """The reply to one request; an exception becomes an ``error`` of kind user, no judge or internal."""
    try:
        if request["do"] == "prompts":
            return {"ok": harness.prompts(data_dir, request["benchmark"])}
        if request["do"] == "evaluate":
            arguments = (request["benchmark"], request["predictions"], request["judge_url"])
            return {"ok": harness.evaluate(data_dir, *arguments)}
        return {"ok": harness.versions()}
    except UserError as error:
        return {"error": {"kind": "user", "message": str(error)}}
    except harness.NoJudge as error:
        return {"error": {"kind": "no judge", "message": str(error)}}
    except Exception as error:
        traceback.print_exc()
        return {"error": {"kind": "internal", "message": f"{type(error).__name__}: {error}"}}


def _converse(connection: socket.socket, data_dir: str) -> None:
    """Read one request, answer it; a client that went away is no concern of ours."""
    with connection, contextlib.suppress(OSError, ValueError):
        connection.settimeout(60)
        with connection.makefile("rwb") as stream:
            line = stream.readline()
            if line.endswith(b"\n"):
                connection.settimeout(None)
                stream.write(json.dumps(answer(data_dir, json.loads(line))).encode() + b"\n")


def serve(data_dir: str, path: Path, idle: float) -> None:
    """Answer requests on ``path`` until idle, or until ``path`` or ``data_dir`` is removed."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(64)
        server.settimeout(_GLANCE)
        ours, last = path.stat().st_ino, time.monotonic()
        while _inode(path) == ours and os.path.isdir(data_dir) and time.monotonic() - last < idle:
            with contextlib.suppress(TimeoutError):
                _converse(server.accept()[0], data_dir)
                last = time.monotonic()
        if _inode(path) == ours:
            path.unlink()
        server.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # whoever knocked while we were leaving
            while True:
                _converse(server.accept()[0], data_dir)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m eval.vlm.worker``: 0 also when another worker already serves the socket."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--idle", type=float, default=60)
    options = parser.parse_args(argv)
    with open(options.socket.with_suffix(".alive"), "w") as alive:
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held for life, released by the system however we end
        except BlockingIOError:
            return 0
        alive.write(str(os.getpid()))
        alive.flush()
        harness.modules()
        serve(options.data, options.socket, options.idle)
    return 0


if __name__ == "__main__":
    sys.exit(main())
