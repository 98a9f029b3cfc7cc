"""A zoo trained anew beside the committed one: are the skills the same?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from emkit.zoo import card

# Points by which a member's mean skill may differ, over all kinds and over its own: processors round differently,
# training amplifies it, and a mean of two kinds over 200 questions has a standard error of 2.5 points.
TOLERANCE = {"all": 6.0, "own": 10.0}


def compare(new: Path, committed: Path, own: Mapping[str, tuple[str, ...]]) -> tuple[str, bool]:
    """A table of both zoos' mean skills in percent, and whether every member is within ``TOLERANCE``.

    ``own``: every member with the sub-tasks that it is meant to lead.
    Members whose weights are equal byte for byte are marked so.
    """
    lines = [f"{'member':<10} {'kinds':<5} {'committed':>10} {'new':>7} {'difference':>11}"]
    agree = True
    for member, kinds_of_its_own in own.items():
        ours, theirs = card.read(new / member), card.read(committed / member)
        same = ours["weights_sha256"] == theirs["weights_sha256"]
        for kinds, names in (("all", tuple(theirs["skills"])), ("own", kinds_of_its_own)):
            if not names:
                continue
            before, after = (sum(c["skills"][name] for name in names) / len(names) for c in (theirs, ours))
            far = abs(after - before) > TOLERANCE[kinds]
            agree &= same or not far
            note = "identical weights" if same else f"more than {TOLERANCE[kinds]:g} points apart" if far else ""
            row = f"{member:<10} {kinds:<5} {before:>10.1f} {after:>7.1f} {after - before:>+11.1f}  {note}"
            lines.append(row.rstrip())
    return "\n".join(lines), agree
