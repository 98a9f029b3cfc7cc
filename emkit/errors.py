"""The one exception that a user is meant to see, and what is said where a package is missing."""

from __future__ import annotations

import sys


class UserError(Exception):
    """Bad input or surroundings: one clear line that says what is wrong and what to do about it.

    Command lines print it as ``error: …`` and exit with 2, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback (its hook for exceptions that know better): the line alone."""
        return [f"{type(self).__name__}: {self}"]


def reason(error: BaseException, longest: int = 200) -> str:
    """What a library's error says, as part of a line: its text without line ends, or its kind where it has none."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def panicked(error: BaseException) -> bool:
    """Whether it is the end of a library in Rust, such as tokenizers over some files: it is no Exception."""
    return type(error).__module__ == "pyo3_runtime"


def not_installed(error: ModuleNotFoundError) -> int:
    """Say how to get a package that is missing; returns the exit status. A module of ours is a bug, not a package."""
    if str(error.name).partition(".")[0] in ("emkit", "eval"):
        raise error
    print(
        f"error: {sys.executable} has no package '{error.name}': `make setup` builds the environment; then type "
        ".venv/bin/emkit for emkit and .venv/bin/python for python3",
        file=sys.stderr,
    )
    return 2
