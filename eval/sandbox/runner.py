"""Starting a sandbox, waiting for its verdict, and leaving nothing of it behind."""

from __future__ import annotations

import ast
import builtins
import contextlib
import dataclasses
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from emkit.errors import UserError
from eval.sandbox import wire

STATUSES = ("passed", "failed", "timeout", "memory", "disk", "broken")
_CHILD = Path(__file__).with_name("child.py")
_PYTHON = (getattr(sys, "_base_executable", sys.executable), "-s", "-S", "-P", "-B")
_GLANCE = 0.1  # seconds between looks at what the temporary folder holds
_DYING = 10  # seconds that a killed process may take to be gone


@dataclass(frozen=True)
class Limits:
    """What one program may use. CPU time decides, so that a busy machine changes no verdict; the clock only ends it.

    ``memory_bytes`` is address space (Python itself takes 50 MB), ``file_bytes`` the longest file, ``folder_bytes``
    and ``files`` all of the temporary folder, ``reply_bytes`` the longest answer to one call. There is no limit on
    processes and threads to set: a program has exactly one.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 60.0
    memory_bytes: int = 512 * 2**20
    file_bytes: int = 2**20
    folder_bytes: int = 16 * 2**20
    files: int = 256
    reply_bytes: int = 2**20


@dataclass(frozen=True)
class Result:
    """The verdict on one program. ``broken``: the checking process ended without a verdict, which is no fault found."""

    status: str  # one of STATUSES
    detail: str = ""  # one line: which test failed, and how

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.status == "passed"


def run_unchecked(program, tests, limits=Limits(), prelude="", names=None) -> Result:
    """:func:`eval.sandbox.run` for the probes themselves."""
    job = {"program": program}
    if isinstance(tests, str):
        names = called_names(tests, prelude) if names is None else list(names)
        job |= {"tests": tests, "prelude": prelude, "names": names}
    else:
        job["calls"] = wire.dumps([list(pair) for pair in tests], _no_plain_data)
    folder = tempfile.mkdtemp(prefix="emkit-program-")
    try:
        return _judge(json.dumps(job).encode(), folder, limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def called_names(tests: str, prelude: str = "") -> list[str]:
    """The names that test code uses and neither it, nor ``prelude``, nor Python defines: the program's."""
    known: set[str] = set(dir(builtins))
    used: set[str] = set()
    for code in (prelude, tests):
        for node in ast.walk(_parsed(code)):
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else known).add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                known.add(node.name)
            elif isinstance(node, ast.arg):
                known.add(node.arg)
            elif isinstance(node, ast.alias):
                known.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.ExceptHandler) and node.name:
                known.add(node.name)
    return sorted(used - known)


def _parsed(code: str) -> ast.AST:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"the tests are no Python: {error}") from error


def _no_plain_data(value):
    raise UserError(f"an expected value must be plain data, not {type(value).__name__}")


def _judge(job: bytes, folder: str, limits: Limits) -> Result:
    """One sandbox from start to end."""
    files = [linked(), links()]
    arguments = [folder, json.dumps(dataclasses.asdict(limits)), str(os.getpid()), json.dumps(files)]
    theirs, ours = os.pipe()  # never written to: it breaks when the last process of the sandbox is gone
    try:
        process = subprocess.Popen(
            [*_PYTHON, str(_CHILD), *arguments],
            env={"PYTHONHASHSEED": "0"},  # a set's order must not differ from run to run; removed before the program
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(theirs,),
            start_new_session=True,
        )
    except OSError as error:
        os.close(ours)
        raise UserError(f"cannot isolate: Python cannot be started: {error}") from error
    finally:
        os.close(theirs)
    try:
        said, errors, overrun = _wait(process, job, folder, limits)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _await_the_end(ours)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if overrun:
        return overrun
    try:
        status, detail = json.loads(said)
    except ValueError:
        return Result("broken", _last_line(errors) or f"no verdict (exit status {process.returncode})")
    if status == "unavailable":
        raise UserError(f"cannot isolate: {detail}")
    return Result(status, detail)


@functools.cache
def linked() -> list[str]:
    """The files that Python and its compiled modules are linked with: what the loader opens when they are imported."""
    code = """if True:
        import contextlib, importlib, os, sysconfig
        for file in os.listdir(os.path.join(sysconfig.get_path("stdlib"), "lib-dynload")):
            with contextlib.suppress(Exception):
                importlib.import_module(file.partition(".")[0])
        found = {line.split(maxsplit=5)[-1].strip() for line in open("/proc/self/maps")}
        print("\\n".join(sorted(path for path in found if path.startswith("/"))))
    """
    run = subprocess.run([*_PYTHON, "-c", code], env={}, cwd="/", capture_output=True, text=True, check=False)
    return [path for path in run.stdout.splitlines() if os.path.isfile(path)]


@functools.cache
def links() -> list[tuple[str, str]]:
    """The symbolic links by which the loader comes to :func:`linked`'s files, each with what it says: those of the
    root folder, as /lib, and those beside the files, as libz.so.1."""
    files = set(linked())
    found = [(f"/{name}", os.readlink(f"/{name}")) for name in sorted(os.listdir("/")) if os.path.islink(f"/{name}")]
    for folder in sorted({os.path.dirname(file) for file in files}):
        with contextlib.suppress(OSError):  # a folder that may be entered and not listed
            for entry in os.scandir(folder):
                if entry.is_symlink() and os.path.realpath(entry.path) in files:
                    found.append((entry.path, os.readlink(entry.path)))
    return found


def _await_the_end(pipe: int) -> None:
    """Wait until nobody has the other end of ``pipe``: what was killed may take a moment to be gone."""
    poll = select.poll()
    poll.register(pipe, 0)
    poll.poll(1000 * _DYING)
    os.close(pipe)


def _wait(process: subprocess.Popen, job: bytes, folder: str, limits: Limits) -> tuple[bytes, bytes, Result | None]:
    """What the checking process says, or the limit that the clock or the folder exceeded."""
    deadline, given = time.monotonic() + limits.wall_seconds, {"input": job}
    while True:
        try:
            return *process.communicate(**given, timeout=_GLANCE), None
        except subprocess.TimeoutExpired:
            given = {}  # communicate keeps what it was given
        if time.monotonic() > deadline:
            return b"", b"", Result("timeout", f"more than {limits.wall_seconds:g} s")
        if overfull(folder, limits):
            return b"", b"", Result("disk", f"more than {limits.files} files or {limits.folder_bytes} bytes of files")


def overfull(folder: str, limits: Limits) -> bool:
    """Whether the flat folder ``folder`` holds more than it may."""
    total = 0
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries, 1):
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
            if count > limits.files or total > limits.folder_bytes:
                return True
    return False


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
