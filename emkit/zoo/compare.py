"""A zoo trained anew beside the committed one: are the skills the same?"""

from __future__ import annotations

from pathlib import Path

from emkit.zoo import card

TOLERANCE = 6.0  # points of a member's mean skill; processors round differently, and training amplifies it


def compare(new: Path, committed: Path, members: list[str]) -> tuple[str, bool]:
    """A table of both zoos' skills in percent, and whether every member's mean is within ``TOLERANCE`` points.

    Members whose weights are equal byte for byte are marked so.
    """
    lines, agree = [f"{'member':<10} {'committed':>10} {'new':>7} {'difference':>11}"], True
    for member in members:
        ours, theirs = card.read(new / member), card.read(committed / member)
        means = [sum(c["skills"].values()) / len(c["skills"]) for c in (theirs, ours)]
        difference = means[1] - means[0]
        note = ""
        if ours["weights_sha256"] == theirs["weights_sha256"]:
            note = "  identical weights"
        elif abs(difference) > TOLERANCE:
            note, agree = f"  more than {TOLERANCE:g} points apart", False
        lines.append(f"{member:<10} {means[0]:>10.1f} {means[1]:>7.1f} {difference:>+11.1f}{note}")
    return "\n".join(lines), agree
