"""Running what a model wrote: only in a child that has no network, no files but its own, and hard limits.

``run(program, tests)`` is the one way. Its walls are in ``walls.py`` (another user when run as root, no network,
Landlock, resource limits) and ``seccomp.py`` (a list of system calls); how a program is kept from judging itself is in
``child.py``. Linux only: elsewhere, and wherever a wall does not hold, :func:`check` raises and nothing is run.
"""

from eval.sandbox.probes import check
from eval.sandbox.runner import STATUSES, Limits, Result, called_names, run

__all__ = ["STATUSES", "Limits", "Result", "called_names", "check", "run"]
