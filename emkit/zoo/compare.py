"""A zoo trained anew beside the committed one: are the skills the same?"""

from __future__ import annotations

from pathlib import Path

from emkit.zoo import card
from emkit.zoo.data import DOMAINS, SUBTASKS

# Points by which a member's mean skill may differ, over all kinds and over its own: processors round differently,
# training amplifies it, and a mean of two kinds over 200 questions has a standard error of 2.5 points.
TOLERANCE = {"all": 6.0, "own": 10.0}
_OWN = {domain.lower(): kinds for domain, kinds in DOMAINS.items()}


def compare(new: Path, committed: Path, members: list[str]) -> tuple[str, bool]:
    """A table of both zoos' mean skills in percent, and whether every member is within ``TOLERANCE``.

    Members whose weights are equal byte for byte are marked so.
    """
    lines = [f"{'member':<10} {'kinds':<5} {'committed':>10} {'new':>7} {'difference':>11}"]
    agree = True
    for member in members:
        ours, theirs = card.read(new / member), card.read(committed / member)
        same = ours["weights_sha256"] == theirs["weights_sha256"]
        for kinds, names in (("all", SUBTASKS), ("own", _OWN.get(member, ()))):
            if not names:
                continue
            before, after = (sum(c["skills"][name] for name in names) / len(names) for c in (theirs, ours))
            far = abs(after - before) > TOLERANCE[kinds]
            agree &= same or not far
            note = "identical weights" if same else f"more than {TOLERANCE[kinds]:g} points apart" if far else ""
            row = f"{member:<10} {kinds:<5} {before:>10.1f} {after:>7.1f} {after - before:>+11.1f}  {note}"
            lines.append(row.rstrip())
    return "\n".join(lines), agree
