"""Progress for people: one line that is rewritten on a terminal, a new line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

WIDTH = 24
LOG_EVERY = 15.0  # seconds between lines where the output is no terminal


@dataclass
class Display:
    """Shows ``(stage, done, total, note)`` tuples; ``count`` supplies them whenever it is asked."""

    count: Callable[[], list[tuple[str, int, int, str]]]
    stream: object = sys.stderr
    started: float = field(default_factory=time.monotonic)
    shown: str = ""
    shown_at: float = -LOG_EVERY
    finished: set = field(default_factory=set)

    def update(self, last: bool = False) -> None:
        """Print what changed: a stage that ended gets its own line, the stage in progress a bar."""
        elapsed = time.monotonic() - self.started
        stages = self.count()
        for stage, done, total, note in stages:
            if done >= total and stage not in self.finished:
                self.finished.add(stage)
                self._line(_bar(stage, done, total, elapsed, note), keep=True)
        current = next((s for s in stages if s[0] not in self.finished), None)
        if current and not last:
            self._line(_bar(current[0], current[1], current[2], elapsed, current[3]), keep=False)

    def _line(self, text: str, keep: bool) -> None:
        if self.stream.isatty():
            self.stream.write("\r\033[K" + text + ("\n" if keep else ""))
        else:
            now, same = time.monotonic(), text[: -len("[00:00]")] == self.shown[: -len("[00:00]")]
            if not keep and (same or now - self.shown_at < LOG_EVERY):
                return
            self.stream.write(text + "\n")
            self.shown_at = now
        self.shown = text
        self.stream.flush()


def _bar(stage: str, done: int, total: int, elapsed: float, note: str) -> str:
    filled = WIDTH * done // total if total else WIDTH
    minutes, seconds = divmod(int(elapsed), 60)
    note = f" {note}" if note else ""
    return f"{stage:<9} {'█' * filled}{'·' * (WIDTH - filled)} {done}/{total}{note} [{minutes:02d}:{seconds:02d}]"
