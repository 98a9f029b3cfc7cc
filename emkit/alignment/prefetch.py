"""What will be asked for next, fetched while what was asked for is in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """``fetch`` begins to bring a name's value; :meth:`take` gives a value, and begins with the one likely next.

    What came after a name and the one before it the last time is taken to come again. So one order over and over is
    known from the third name of its second round on, and so are a backward's order and a rewriting's in turn, though
    each name is then followed by another one each time. At most one value is fetched ahead.
    """

    def __init__(self, fetch: Callable[[str], T]):
        self._fetch = fetch
        self._next: dict[tuple, str] = {}  # the last two names → the one that followed them
        self._last: tuple = (None, None)
        self._ahead: tuple[str, T] | None = None

    def take(self, name: str) -> T:
        """The value of ``name``."""
        self._next[self._last] = name
        self._last = (self._last[1], name)
        ahead, self._ahead = self._ahead, None
        value = ahead[1] if ahead is not None and ahead[0] == name else self._fetch(name)
        del ahead
        following = self._next.get(self._last)
        if following is not None:
            self._ahead = (following, self._fetch(following))
        return value
