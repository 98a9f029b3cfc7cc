"""Proof, by trying, that every wall holds on this machine: a program that does its best to get out."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from functools import cache
from pathlib import Path

from emkit.errors import UserError
from eval.sandbox.runner import Limits, run_unchecked

# each function answers "held", or what it could do
PROGRAM = """
import ctypes, mmap, os, resource, signal, socket, sys

def held(attempt, *arguments):
    try:
        got = attempt(*arguments)
    except (OSError, MemoryError) as error:
        return "held"
    return f"it got {got!r}"

def read(path):
    return held(lambda: open(path).read(20))

def listing(path):
    return held(lambda: os.listdir(path)[:3])

def write(path):
    return held(lambda: open(path, "a").write("x"))

def change(path):
    return held(os.chmod, path, 0o777)

def remove(path):
    return held(os.remove, path)

def connect(port):
    return held(lambda: socket.create_connection(("127.0.0.1", port), 1))

def sockets():
    answers = [held(socket.socket, family) for family in (socket.AF_INET, socket.AF_UNIX, socket.AF_NETLINK)]
    return "held" if set(answers) == {"held"} else str(answers)

def fork():
    def attempt():
        if os.fork() == 0:
            os._exit(0)
        return "a process"
    return held(attempt)

def start(program):
    return held(os.execv, program, [program, "-c", ""])

def kill(pid):
    return held(os.kill, pid, 0)

def memory(size):
    return held(lambda: len(bytearray(size)))

def file(size):
    def attempt():
        with open("large", "wb") as target:
            target.truncate(size)
        return size
    return held(attempt)

def own_folder():
    with open("mine", "w") as target:
        target.write("x")
    return open("mine").read(), os.listdir(".")

def environment():
    return len(os.environ)

def root():
    return os.getuid() == 0 or os.geteuid() == 0 or 0 in os.getgroups()

def loop():
    while True:
        pass
"""


def attempts(canary: str, port: int, pid: int) -> list[tuple[str, object]]:
    """What :data:`PROGRAM` tries, and the answer of one that is shut in.

    ``canary``: a file that the caller can read and write; ``port``: a port on 127.0.0.1 that listens; ``pid``: a
    process of the caller's.
    """
    calls = [f"{name}({canary!r})" for name in ("read", "write", "change", "remove")]
    calls += [
        f"listing({str(Path(canary).parent)!r})",
        f"listing({os.path.expanduser('~')!r})",
        f"read('/proc/{pid}/environ')",
    ]
    calls += [f"connect({port})", "sockets()", "fork()", f"start({sys.executable!r})", f"kill({pid})"]
    calls += [f"memory({10 * 2**30})", f"file({2**30})"]
    own = [("own_folder()", ("x", ["mine"])), ("environment()", 0), ("root()", False)]
    return [*own, *((call, "held") for call in calls)]


@cache
def check() -> None:
    """Raise ``UserError("cannot isolate: …")`` unless every wall holds; costs two seconds, once in a process."""
    if sys.platform != "linux":
        raise UserError(f"cannot isolate: programs that a model wrote are run on Linux only, not on {sys.platform}")
    with (
        tempfile.TemporaryDirectory(prefix="emkit-canary-") as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        canary = Path(folder) / "canary"
        canary.write_text("secret")
        os.chmod(folder, 0o755)
        canary.chmod(0o666)
        calls = attempts(str(canary), server.getsockname()[1], os.getpid())
        result = run_unchecked(PROGRAM, calls)
        if not result.passed:
            raise UserError(f"cannot isolate: {result.detail or result.status}")
    endless = run_unchecked(PROGRAM, [("loop()", None)], Limits(cpu_seconds=1, wall_seconds=30))
    if endless.status != "timeout":
        raise UserError(f"cannot isolate: an endless loop was not ended ({endless.status}: {endless.detail})")
