"""Grounding seen: the box that is right, and the box that the harness read in each row's answer."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from emkit.errors import UserError
from emkit.pictures import COLOURS
from eval import style
from eval.looking.frame import BOX, asked, labels
from eval.looking.reading import Box, overlap

_DASHES = ("-", "--", ":", "-.")
GOLD = "#000000"
_HIT = 0.5  # from here on a box is right; refcoco.py, IOU_THRESHOLD


def boxes(frame: pd.DataFrame, rows: Sequence[str] | None = None, n: int = 8, columns: int = 4) -> Figure:
    """The first ``n`` pictures of a grounding frame with the gold box (black, thick) and every row's; below each its
    overlap with the gold box (IoU), or that the answer holds no box. ``UserError`` for a frame of another benchmark."""
    if BOX not in frame:
        raise UserError(f"{frame.attrs.get('benchmark', 'this frame')} asks for no boxes: RefCOCO and its kin do")
    shown, named, few = (asked(frame) if rows is None else list(rows)), labels(frame), frame.head(n).to_dict("records")
    lines = max(1, math.ceil(len(few) / columns))
    height = (style.WIDTH / columns + 0.45 + 0.17 * len(shown)) * lines + 0.5
    figure, panels = plt.subplots(lines, columns, figsize=(style.WIDTH, height), squeeze=False)
    looks = {row: (COLOURS[at % 6], _DASHES[at % len(_DASHES)]) for at, row in enumerate(shown)}
    for axes, entry in zip(panels.flat, few):
        _panel(axes, entry, {named[row]: (entry[f"{row} {BOX}"], *looks[row]) for row in shown})
    for axes in panels.flat[len(few) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], color=GOLD, linewidth=4.5, label="gold")]
    handles += [
        Line2D([], [], color=c, linestyle=dash, linewidth=2, label=named[row]) for row, (c, dash) in looks.items()
    ]
    legend = figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4))
    for label in legend.get_texts():
        label.set_parse_math(False)
    return figure


def _panel(axes: Axes, entry: dict, found: dict[str, tuple[Box | None, str, str]]) -> None:
    image = entry["picture"].image
    axes.imshow(image, extent=(0, image.width, image.height, 0), interpolation="nearest")
    draw(axes, entry[BOX], GOLD, "-", 4.5)  # wide enough to be seen below another
    said = []
    for label, (box, colour, dash) in found.items():
        if box is not None:
            draw(axes, box, colour, dash, 1.8)
        said.append(f"{label}: " + ("no box" if box is None else _overlap(overlap(box, entry[BOX]))))
    axes.spines[:].set(visible=True, color=style.GREY, linewidth=0.5)
    axes.set(xticks=[], yticks=[], xlim=(0, image.width), ylim=(image.height, 0))
    # a question is anybody's text: "$" in it is no formula
    axes.set_title("\n".join(textwrap.wrap(entry["question"], 32)[:3]), fontsize=9, parse_math=False)
    axes.set_xlabel("\n".join(said), fontsize=9, loc="left", parse_math=False)


def _overlap(share: float) -> str:
    return f"IoU {share:.2f}" + (" ✓" if share >= _HIT else "")


def draw(axes: Axes, box: Box, colour: str, dash: str, width: float) -> None:
    """One box, with a white rim that shows it on any picture."""
    x1, y1, x2, y2 = box
    rim = [Stroke(linewidth=width + 1.5, foreground="white"), Normal()]
    patch = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, clip_on=False, path_effects=rim)
    patch.set(edgecolor=colour, linewidth=width, linestyle=dash)
    axes.add_patch(patch)
