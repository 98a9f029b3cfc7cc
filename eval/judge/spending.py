"""What a paid judge has cost, in files that every process of a profile shares, and the cap on it."""

from __future__ import annotations

import fcntl
import math
import os
import time
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from emkit.errors import UserError
from emkit.files import read_json, write_json
from emkit.locks import lock

CAP_VARIABLE = "EMKIT_MAX_USD"
PAUSE = 0.05  # seconds between looks at whether what others have booked has become free
DIGITS = 12  # of a dollar: sums of many bookings and their ends come to nothing again


class CapReached(Exception):
    """A request was refused, because it could cost more than is left."""


class Ledger:
    """``<folder>/spending.json``: dollars spent so far, over all runs that use the folder, never more than ``cap``.

    Before a request is sent, the most that it can cost is booked, in a file of this ledger's own below
    ``<folder>/booked``, until the reply says what it did cost. Who finds all that is left booked by requests under way
    waits for them: they cost far less than they might. What a process that ended had booked counts as spent, since it
    may have been charged.
    """

    def __init__(self, folder: str | Path, cap: float):
        self.path, self.cap = Path(folder) / "spending.json", cap
        self._name = uuid.uuid4().hex
        self._held: IO | None = None

    def reserve(self, dollars: float) -> None:
        """Book ``dollars`` as soon as there is room for them, or raise :class:`CapReached` where there will be none."""
        while True:
            with self._locked():
                booked = self._booked()  # first: what the dead had booked becomes spent by it
                spent = self.spent()
                if spent + dollars > self.cap:
                    raise CapReached(
                        f"the cap of ${self.cap:g} is reached: ${spent:.4f} spent, and a request may cost "
                        f"${dollars:.4f}; raise --max-usd"
                    )
                if spent + booked + dollars <= self.cap:
                    self._book(dollars)
                    return
            time.sleep(PAUSE)

    def settle(self, reserved: float, dollars: float) -> None:
        """Replace a booking by what the request cost."""
        with self._locked():
            write_json(self.path, {"usd": round(self.spent() + dollars, DIGITS)})
            self._book(-reserved)

    def spent(self) -> float:
        """Dollars spent so far, requests under way left out; ``UserError`` for a damaged account."""
        try:
            return _amount(self.path)
        except FileNotFoundError:
            return 0.0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f'{self.path} is damaged: write what was spent into it as {{"usd": 1.23}}') from error

    def accounted(self) -> float:
        """The same, with what was booked by ledgers that are no more."""
        if not self._folder.is_dir():
            return self.spent()
        with self._locked():
            self._booked()
            return self.spent()

    # ---- bookings; called with the ledger locked
    def _locked(self) -> AbstractContextManager[None]:
        return lock(self.path.with_suffix(".lock"))

    def _book(self, dollars: float) -> None:
        """Add to what this ledger has booked. Its lock, held for life, tells the others that it is alive."""
        path = self._folder / f"{self._name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._held is None:
            self._held = open(path.with_suffix(".alive"), "w")  # noqa: SIM115 - held for life
            fcntl.flock(self._held, fcntl.LOCK_EX)
        before = _amount(path) if path.is_file() else 0.0
        write_json(path, {"usd": max(0.0, round(before + dollars, DIGITS))})

    def _booked(self) -> float:
        """What requests under way may cost. What was booked by a ledger that is no more becomes spent."""
        total = 0.0
        for path in sorted(self._folder.glob("*.json")):
            try:
                amount = _amount(path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is damaged: add what it says to {self.path}, and remove it") from error
            if path.stem == self._name or _is_alive(path.with_suffix(".alive")):
                total += amount
                continue
            write_json(self.path, {"usd": round(self.spent() + amount, DIGITS)})
            path.unlink()
            path.with_suffix(".alive").unlink(missing_ok=True)
        return total

    @property
    def _folder(self) -> Path:
        return self.path.parent / "booked"


def _amount(path: Path) -> float:
    """The dollars that a file says; ValueError, KeyError or TypeError for what is no amount."""
    found = read_json(path)["usd"]
    if type(found) not in (int, float) or not math.isfinite(found) or found < 0:
        raise ValueError(f"{found!r} is no amount")
    return float(found)


def _is_alive(path: Path) -> bool:
    """Whether the ledger whose lock this is still holds it."""
    try:
        with open(path) as held:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


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
