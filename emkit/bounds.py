"""What a model's author wrote to be run (a chat template, an adapter's pattern) ends in bounded time and memory."""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from emkit.errors import UserError

SECONDS = 10.0  # a template takes a thousandth of one
MEMORY = 2 * 2**30  # bytes beyond what the process has


class _Late(BaseException):
    """The time is up; not an Exception, which the code that is bounded may catch."""


@contextlib.contextmanager
def bounded(what: str, seconds: float | None = None, memory: int = MEMORY) -> Iterator[None]:
    """In the block, ``UserError`` once it has taken ``seconds`` (``SECONDS``), or asks for ``memory`` bytes more.

    For Python code and patterns, which look for signals as they run. A signal reaches the main thread alone: in another
    one (a notebook's widget) only memory is bounded.
    """
    seconds = SECONDS if seconds is None else seconds
    main = threading.current_thread() is threading.main_thread()
    before = resource.getrlimit(resource.RLIMIT_AS)
    old = signal.signal(signal.SIGALRM, _late) if main else None
    try:
        with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
            resource.setrlimit(resource.RLIMIT_AS, (_least(_taken() + memory, *before), before[1]))
        if main:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    except _Late:
        raise UserError(f"{what} does not end within {seconds:g} s: it is damaged, or made to harm") from None
    except MemoryError:
        raise UserError(f"{what} takes more than {memory / 2**30:g} GiB: it is damaged, or made to harm") from None
    finally:
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, before)


def _late(number: int, frame: object) -> None:
    raise _Late


def _taken() -> int:
    """Bytes of address space that the process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _least(*limits: int) -> int:
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=resource.RLIM_INFINITY)
