"""The one door through which a program that a model wrote leaves the harness: to a sandbox, or nowhere.

Nothing here, in the functions that columns name, or in the harness as it is used here runs a program. ``execute`` is
given by whoever starts the harness; without one every program is an error, never a failed test.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from emkit.errors import UserError

# (program, tests, prelude, names), see `passes`
Execute = Callable[[str, str, str, tuple[str, ...] | None], bool]

_SOUND = ("def one():\n    return 1\n", "assert one() == 1")  # a program that passes its tests wherever one can be run
_execute: Execute | None = None


def use(execute: Execute | None) -> None:
    """Hand programs to ``execute`` from now on; None: to nobody."""
    global _execute
    _execute = execute


def passes(program: str, tests: str, prelude: str = "", names: list[str] | None = None) -> bool:
    """Whether ``program`` passes ``tests``, which may use what ``prelude``, code of the benchmark's own, defines.

    ``names`` are the program's functions that the tests call, also where the prelude defines one of that name; None:
    all that tests and prelude do not define. ``UserError`` where there is no sandbox to find out in.
    """
    if _execute is None:
        raise UserError("no sandbox: what a model wrote is run in a sandbox or not at all")
    return bool(_execute(program, tests, prelude, None if names is None else tuple(names)))


def sandbox(**limits: float) -> Execute | None:
    """The project's own sandbox, checked to hold; None where there is none. Raises ``UserError`` where it leaks.

    That a program passed or failed is kept for as long as this process lives: the models of a table write many of the
    same programs. What depends on the machine, such as having taken too long, is found out anew.
    ``limits``: other limits than :class:`eval.sandbox.Limits` has.
    """
    if importlib.util.find_spec("eval.sandbox") is None:
        return None
    found = importlib.import_module("eval.sandbox")
    found.check()
    allowed = found.Limits(**limits)

    kept: dict[tuple, bool] = {}

    def execute(program: str, tests: str, prelude: str, names: tuple[str, ...] | None) -> bool:
        """A program over which the checking process ends without a verdict, twice and alone, has failed."""
        job = (program, tests, prelude, names)
        if job in kept:
            return kept[job]
        for _ in range(2):
            result = found.run(program, tests, allowed, prelude, names)
            if result.status in ("passed", "failed"):
                kept[job] = result.passed
            if result.status != "broken":
                return result.passed
            control = found.run(*_SOUND, allowed)
            if not control.passed:
                raise UserError(f"the sandbox gives no verdict on a sound program either: {control.detail}")
        return False

    return execute
