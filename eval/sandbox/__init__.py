"""Running what a model wrote: only in a child that has no network, no files but its own, and hard limits.

``run(program, tests)`` is the one way. Its walls are in ``walls.py`` (another user when run as root, no network,
Landlock, resource limits) and ``seccomp.py`` (a list of system calls); how a program is kept from judging itself is in
``child.py``, what goes to and fro in ``untrusted.py`` and ``serving.py``. Linux only: elsewhere, and wherever a wall
does not hold, :func:`check` raises and nothing is run.
"""

from collections.abc import Iterable, Sequence

from eval.sandbox.probes import check
from eval.sandbox.runner import STATUSES, Limits, Result, called_names, run_unchecked

__all__ = ["STATUSES", "Limits", "Result", "called_names", "check", "run"]


def run(
    program: str,
    tests: str | Sequence[tuple[str, object]],
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
    prelude: str = "",
    names: Iterable[str] | None = None,
) -> Result:
    """Run ``program`` and test it; it never sees the tests, only the arguments of the calls that they make.

    ``tests`` are pairs ``(expression, expected plain value)``, each expression evaluated in the program's namespace
    (``("add(1, 2)", 3)``), or code that raises when the program is wrong (HumanEval's ``check``, MBPP's asserts). Code
    runs in a process of its own in which ``names`` (by default every name it uses and does not define:
    :func:`called_names`) stand for the program's functions; it may use what ``prelude``, code of the benchmark's own
    such as HumanEval's prompt, defines. Plain data (:mod:`eval.sandbox.wire`) is
    compared, and what the program changes of an argument is changed in the test's; of what else it gives, functions may
    be called, generators gone through, and anything handed back. A test's functions may be called by the program.

    Raises :class:`~emkit.errors.UserError` ``cannot isolate: …`` where a wall does not hold, before anything is run.
    """
    check()
    return run_unchecked(program, tests, limits, prelude, names)
