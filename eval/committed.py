"""Whether what a run published is what the repository holds."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path


def said(paths: Sequence[Path]) -> str:
    """ " (same as committed)" or how to see what differs; nothing where git knows no such files."""
    names = [str(path) for path in paths]
    if not names or _git("ls-files", "--error-unmatch", "--", *names) != 0:
        return ""
    if _git("diff", "--quiet", "HEAD", "--", *names) == 0:
        return " (same as committed)"
    return f" (differs from the committed one: git diff HEAD -- {' '.join(names)})"


def _git(*arguments: str) -> int | None:
    """The exit status of git in the working folder; None where there is no git."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=False).returncode
    except OSError:
        return None
