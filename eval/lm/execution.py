"""The one door through which a program that a model wrote leaves the harness: to a sandbox, or nowhere.

Nothing here, in the task files' functions, or in the harness as it is used here runs a program. ``execute`` is given by
whoever starts the harness; without one every program is an error, never a failed test.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from emkit.errors import UserError

Execute = Callable[[str, str], bool]  # (program, tests) -> whether the program passes the tests

_execute: Execute | None = None


def use(execute: Execute | None) -> None:
    """Hand programs to ``execute`` from now on; None: to nobody."""
    global _execute
    _execute = execute


def passes(program: str, tests: str) -> bool:
    """Whether ``program`` passes ``tests``; ``UserError`` where there is no sandbox to find out in."""
    if _execute is None:
        raise UserError("no sandbox: what a model wrote is run in a sandbox or not at all")
    return bool(_execute(program, tests))


def sandbox() -> Execute | None:
    """The project's own sandbox, checked to hold; None where there is none. Raises ``UserError`` where it leaks."""
    if importlib.util.find_spec("eval.sandbox") is None:
        return None
    found = importlib.import_module("eval.sandbox")
    found.check()

    def execute(program: str, tests: str) -> bool:
        result = found.run(program, tests)
        if result.status == "broken":
            raise RuntimeError(f"the sandbox ended without a verdict: {result.detail}")
        return result.status == "passed"

    return execute
