"""Words on a terminal: what others named a thing cannot move the cursor, forge a line or fill the screen.

Whatever emkit says of a run goes through :func:`say` or :func:`line`; what has lines of its own through :func:`block`.
"""

from __future__ import annotations

import sys

LONGEST = 1500  # characters of a line; a longer one is cut in the middle, where the long name stands
_CUT = " … "


def block(text: str) -> str:
    """Text of several lines; what is not printable (escape sequences, marks that turn the direction) as its number."""
    return "".join(c if c.isprintable() or c in "\n\t" else _number(c) for c in text)


def line(text: str) -> str:
    """The same as one line: ends of lines and tabs as ``\\n`` and ``\\t``, and no more than ``LONGEST`` characters."""
    shown = block(text).replace("\n", "\\n").replace("\t", "\\t")
    if len(shown) <= LONGEST:
        return shown
    half = (LONGEST - len(_CUT)) // 2
    return shown[:half] + _CUT + shown[-half:]


def say(text: str) -> None:
    """Print one line on stderr, at once."""
    print(line(text), file=sys.stderr, flush=True)


def any_encoding() -> None:
    """Let stdout and stderr write what their encoding has no bytes for as its number, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where somebody catches the output in a buffer
            stream.reconfigure(errors="backslashreplace")


def _number(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
