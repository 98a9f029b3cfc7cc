"""What a notebook says to its surroundings: where its paths start, and how a figure is put on the page."""

from __future__ import annotations

import os
import sys

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

from emkit import pictures
from eval import parameters, style
from eval.keys import ROOT


def ready() -> None:
    """Work from the repository's root, wherever the notebook lies, and draw as :mod:`eval.style` says.

    The notebook's parameters are given the types that they are declared with; ``UserError`` for one that has none.
    """
    parameters.recheck(sys._getframe(1).f_globals)  # the notebook's variables
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' "Loading weights", too: models are small
    os.chdir(ROOT)
    style.use()


def show(figure: Figure, alt: str) -> None:
    """Put ``figure`` on the page at its width, with two dots for every pixel, and close it.

    ``alt``, one or two sentences, is what people hear who do not see it. It stands in the output as its plain text and
    in the picture's metadata, from where nbconvert's classic pages take it (Lab, as of version 4, shows no picture's).
    The same figure is the same bytes. Raises ``ValueError`` where ``alt`` is empty.
    """
    alt = " ".join(alt.split())
    if not alt:
        raise ValueError("a figure needs an alternative text")
    data, about = pictures.shown(figure, alt)
    display(data, raw=True, metadata=about)
    plt.close(figure)
