"""Signs of life of a long job: what it is at, told to whoever asked to be told. Where nobody did, nothing happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

Listener = Callable[[str, int, int], None]  # what is being done, how much of it is done, and of how much (0: unknown)

_listeners: list[Listener] = []
_sections: list[str] = []


def report(what: str, done: int = 0, total: int = 0) -> None:
    """Tell every listener what is being done; ``what`` comes after the names of the sections around it."""
    for listener in _listeners:
        listener(", ".join([*_sections, what]), done, total)


@contextlib.contextmanager
def told(listener: Listener) -> Iterator[None]:
    """In the block, ``listener`` is called with every report of this process."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """In the block, reports begin with ``name``."""
    _sections.append(name)
    try:
        yield
    finally:
        _sections.pop()


@contextlib.contextmanager
def passes(model: Any, what: str, done: int, total: int) -> Iterator[None]:
    """In the block, every forward pass of ``model`` is a report: a long generation shows that it goes on."""
    count = 0

    def passed(*_: object) -> None:
        nonlocal count
        count += 1
        report(f"token {count} of {what}", done, total)

    hook = model.register_forward_pre_hook(passed) if _listeners else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
