"""The first line of a notebook: where its paths start, how its figures look."""

from __future__ import annotations

import os

from eval import style
from eval.keys import ROOT


def ready() -> None:
    """Work from the repository's root, wherever the notebook lies, and draw as :mod:`eval.style` says."""
    os.chdir(ROOT)
    style.use()
