"""An error of one process as the other sees it: a builtin's name, and what it says. Standard library only."""

import builtins

DETAIL = 300  # most characters of what is said about a failure
# what could make a test's loop end before its last case; only `next` of an iterator of the program's may
_ENDS_A_LOOP = (StopIteration, StopAsyncIteration)


def named(name: str, message: str) -> Exception:
    """The builtin exception of a name, or RuntimeError. None that could make a loop end before its last case."""
    known = getattr(builtins, name, None)
    if isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, _ENDS_A_LOOP):
        try:
            return known(message)
        except TypeError:  # UnicodeDecodeError wants more
            pass
    return RuntimeError(f"{name}: {message}")


def text(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())[:DETAIL]
    except BaseException:
        return ""
