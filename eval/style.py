"""How figures look in the notebooks: sized for the 870 pixels that GitHub and Jupyter Lab show, sharp on any screen.

A figure as wide as the page is ``figsize=(WIDTH, …)``; then its text has the size that it says it has. Colours of
lines and points are :data:`emkit.pictures.COLOURS`, which people with every kind of colour vision tell apart.
"""

from __future__ import annotations

from typing import NamedTuple

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.figure import Figure

from emkit.pictures import COLOURS, DIVERGING, DOTS, LOOK, SEQUENTIAL, WIDTH

__all__ = ["COLOURS", "DIVERGING", "DOTS", "GREY", "SEQUENTIAL", "SETTINGS", "WIDTH", "Picture", "use"]
GREY = "0.55"  # what is there for orientation: zero lines, the base

SETTINGS = {
    **LOOK,  # text of the size of the page's own
    "figure.dpi": DOTS,
    "savefig.dpi": 2 * DOTS,  # a file is looked at enlarged
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
}


class Picture(NamedTuple):
    """A figure and what it shows in words, for people who do not see it: ``desk.show(*picture)``."""

    figure: Figure
    alt: str


def use() -> None:
    """Set matplotlib up so; in a notebook, show figures at twice the dots per pixel, too."""
    plt.rcParams.update(SETTINGS)
    try:
        shell = get_ipython()  # type: ignore[name-defined]
    except NameError:
        return
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    if shell is not None:
        set_matplotlib_formats("retina")
