"""Progress for people: lines that are rewritten on a terminal, new lines now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TextIO

WIDTH = 24
LOG_EVERY = 30.0  # seconds between lines where the output is no terminal
COLUMNS = 80  # of a terminal that does not say


class Stage(NamedTuple):
    """A part of a run: its name, how many of its things are done and of how many, what is said behind the bar, and how
    full that is (None: as the numbers say)."""

    name: str
    done: int
    total: int
    note: str = ""
    share: float | None = None


@dataclass
class Display:
    """Shows :class:`Stage` after stage; ``count`` supplies them whenever it is asked.

    ``signs`` supplies a line for each running job: below the bars of the stages in progress stands what they are at.
    ``left`` says how long the rest will take.
    """

    count: Callable[[], Sequence[Stage]]
    stream: TextIO = sys.stderr
    signs: Callable[[], list[str]] = list
    left: Callable[[], str] = str
    started: float = field(default_factory=time.monotonic)
    shown: object = None
    shown_at: float = -LOG_EVERY
    finished: set = field(default_factory=set)

    def update(self, last: bool = False) -> None:
        """Print what changed: a stage that ended gets its own line, each stage in progress a bar."""
        elapsed = time.monotonic() - self.started
        stages = [Stage(*stage) for stage in self.count()]
        for stage in stages:
            if stage.done >= stage.total and stage.name not in self.finished:
                self.finished.add(stage.name)
                self._keep(f"{_bar(stage)} {_clock(elapsed)}")
        waiting = [stage for stage in stages if stage.name not in self.finished]
        current = [stage for stage in waiting if stage.done or stage.share] or waiting[:1]
        if current and not last:
            *first, bar = map(_bar, current)
            self._pass(first, bar, _clock(elapsed, self.left()), [f"  {sign}" for sign in self.signs()])
        else:
            self.clear()

    def clear(self) -> None:
        """Remove the lines that are rewritten from a terminal."""
        if self.stream.isatty():
            self.stream.write("\r\033[J")
            self.stream.flush()

    def _keep(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self.stream.write(text + "\n")
        self.stream.flush()
        self.shown_at = time.monotonic()

    def _pass(self, first: Sequence[str], bar: str, clock: str, signs: Sequence[str]) -> None:
        """Lines that are rewritten by the next ones; in a log, lines now and then, and only if they say new things."""
        lines = [*first, f"{bar} {clock}", *signs]
        if self.stream.isatty():
            width = _columns(self.stream) - 1
            up = f"\033[{len(lines) - 1}A" if len(lines) > 1 else ""
            self.stream.write("\r\033[J" + "\n".join(line[:width] for line in lines) + f"\r{up}")
        else:
            now = time.monotonic()
            said = [*first, bar, *signs]  # the clock alone is no news
            if said == self.shown or now - self.shown_at < LOG_EVERY:
                return
            self.stream.write("".join(f"{line}\n" for line in lines))
            self.shown, self.shown_at = said, now
        self.stream.flush()


def _columns(stream) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or COLUMNS
    except (OSError, ValueError):
        return COLUMNS


def _bar(stage: Stage) -> str:
    share = stage.share if stage.share is not None else stage.done / stage.total if stage.total else 1.0
    filled = int(WIDTH * share)
    note = f" {stage.note}" if stage.note else ""
    return f"{stage.name:<9} {'█' * filled}{'·' * (WIDTH - filled)} {stage.done}/{stage.total}{note}"


def _clock(elapsed: float, left: str = "") -> str:
    minutes, seconds = divmod(int(elapsed), 60)
    return f"[{minutes:02d}:{seconds:02d}{', ' if left else ''}{left}]"
