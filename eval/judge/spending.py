"""What a paid judge has cost, in one file that every process of a profile shares, and the cap on it."""

from __future__ import annotations

import os
from pathlib import Path

from emkit.errors import UserError
from emkit.files import lock, read_json, write_json

CAP_VARIABLE = "EMKIT_MAX_USD"


class CapReached(Exception):
    """A request was refused, because it could cost more than is left."""


class Ledger:
    """``<folder>/spending.json``: dollars spent so far, over all runs that use the folder, never more than ``cap``.

    Before a request is sent, the most it can cost is booked; the reply's real cost replaces it. A request whose
    outcome nobody knows (a lost connection, a killed process) stays booked, since it may have been charged.
    """

    def __init__(self, folder: str | Path, cap: float):
        self.path, self.cap = Path(folder) / "spending.json", cap

    def reserve(self, dollars: float) -> None:
        """Book ``dollars``, or raise :class:`CapReached`."""
        with lock(self.path.with_suffix(".lock")):
            spent = self.spent()
            if spent + dollars > self.cap:
                raise CapReached(f"the cap of ${self.cap:g} is reached (${spent:.4f} spent; raise --max-usd)")
            write_json(self.path, {"usd": spent + dollars})

    def settle(self, reserved: float, dollars: float) -> None:
        """Replace a booking by what the request really cost."""
        with lock(self.path.with_suffix(".lock")):
            write_json(self.path, {"usd": max(0.0, self.spent() + dollars - reserved)})

    def spent(self) -> float:
        """Dollars booked so far."""
        try:
            return float(read_json(self.path)["usd"])
        except FileNotFoundError:
            return 0.0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f'{self.path} is damaged: write what was spent into it as {{"usd": 1.23}}') from error


def cap(default: float | None = None) -> float | None:
    """The cap in dollars: ``EMKIT_MAX_USD``, else ``default`` (the protocol's); None when neither is given."""
    given = os.environ.get(CAP_VARIABLE)
    if given is None:
        return default
    return _dollars(given, CAP_VARIABLE)


def set_cap(given: str | None) -> None:
    """Make ``--max-usd`` the cap of this process and of those that it starts; None leaves the environment's."""
    if given is not None:
        os.environ[CAP_VARIABLE] = str(_dollars(given, "--max-usd"))


def _dollars(given: str, where: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{where} is {given!r}; it must be an amount in US dollars, such as 5")
    return value
