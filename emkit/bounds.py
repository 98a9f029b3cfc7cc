"""What a model's author wrote to be run, such as a chat template, ends in bounded time and memory."""

from __future__ import annotations

import contextlib
import faulthandler
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from emkit.errors import UserError

SECONDS = 10.0  # a template takes a thousandth of one
MEMORY = 2 * 2**30  # bytes beyond what the process has
_GRACE = 10.0  # seconds more, after which the process itself ends
_ALONE = threading.RLock()  # limits are the process's: one block at a time


class _Late(BaseException):
    """The time is up; not an Exception, which the code that is bounded may catch."""


@contextlib.contextmanager
def bounded(what: str, seconds: float | None = None, memory: int = MEMORY) -> Iterator[None]:
    """In the block, ``UserError`` once it has taken ``seconds`` (``SECONDS``), or asks for ``memory`` bytes more.

    Python code looks for the signal as it runs; what is in a single long call of C does not, and is ended some seconds
    later with the whole process. A signal reaches the main thread alone: in another one the process's end is the bound
    of time. Memory is that of the process, so nothing large should be opened in the block.
    """
    seconds = SECONDS if seconds is None else seconds
    main = threading.current_thread() is threading.main_thread()
    with _ALONE, _memory(memory), _timer(seconds) if main else contextlib.nullcontext(), _last_resort(seconds):
        try:
            yield
        except _Late:
            raise UserError(f"{what} does not end within {seconds:g} s: it is damaged, or made to harm") from None
        except MemoryError:
            raise UserError(f"{what} takes more than {memory / 2**30:g} GiB: it is damaged, or made to harm") from None


@contextlib.contextmanager
def _timer(seconds: float) -> Iterator[None]:
    """``_Late`` after some seconds, and again each second, should the first be lost; a timer of somebody else's around
    goes on afterwards."""
    before, (left, interval) = signal.signal(signal.SIGALRM, _late), signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


@contextlib.contextmanager
def _memory(more: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (_least(_taken() + more, *before), before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def _last_resort(seconds: float) -> Iterator[None]:
    """End the process where nothing else has: by a thread of the interpreter's that needs no lock of it."""
    with contextlib.suppress(ValueError, OSError, AttributeError):  # a stderr without a file
        faulthandler.dump_traceback_later(seconds + _GRACE, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _late(number: int, frame: object) -> None:
    raise _Late


def _taken() -> int:
    """Bytes of address space that the process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _least(*limits: int) -> int:
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=resource.RLIM_INFINITY)
