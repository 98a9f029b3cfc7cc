"""A contact sheet: one picture of each benchmark of a table, with its question and gold answer."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL.Image import Image

from emkit.errors import UserError
from emkit.files import atomic_write
from eval import style
from eval.looking import sources
from eval.looking.grounding import GOLD, draw
from eval.looking.reading import gold_box
from eval.looking.sources import Item, gold_text
from eval.plan import Plan

_COLUMNS, _LETTERS = 5, 26  # pictures side by side; letters of a line below one


def sheet(plan: Plan, number: int = 0) -> Figure:
    """One item of every image benchmark of the plan's table: the ``number``-th of those whose question is short.

    870 pixels wide at the page's scale; ``UserError`` where the table asks about no picture.
    """
    chosen = {name: found for name in plan.benchmarks if (found := _chosen(plan, name, number)) is not None}
    if not chosen:
        raise UserError(f"{plan.table.title} asks about no picture: its columns are {', '.join(plan.benchmarks)}")
    columns = min(_COLUMNS, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    size = (style.WIDTH, (style.WIDTH / columns + 0.95) * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes, (name, (item, image)) in zip(panels.flat, chosen.items()):
        axes.imshow(image, extent=(0, image.width, image.height, 0), interpolation="nearest")
        _frame(axes, item)
        axes.set_title(name, fontsize=10, fontweight="bold")
        said = [*_lines(item.question, 3), *_lines(f"→ {gold_text(item.gold)}", 1)]
        axes.set_xlabel("\n".join(said), fontsize=9, loc="left", parse_math=False)
    for axes in panels.flat[len(chosen) :]:
        axes.set_axis_off()
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a sheet as PNG at two dots a pixel, in the same bytes whenever it is the same sheet."""
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=200, metadata={"Software": None})
    plt.close(figure)


def _frame(axes: Axes, item: Item) -> None:
    """A thin line around the picture in place of axes; the box that is asked for, where one is."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=style.GREY, linewidth=0.5)
    if "bbox_x1" in item.fields:
        draw(axes, gold_box(item.fields), GOLD, "-", 2)


def _chosen(plan: Plan, benchmark: str, number: int) -> tuple[Item, Image] | None:
    """An item and its picture; None for a benchmark without pictures."""
    items = [item for item in sources.read(plan, benchmark) if item.picture is not None]
    short = [item for item in items if len(textwrap.wrap(item.question, _LETTERS)) <= 3] or items
    item = short[number % len(short)] if short else None
    return None if item is None or item.picture is None else (item, item.picture.image)


def _lines(text: str, most: int) -> list[str]:
    return textwrap.wrap(text, _LETTERS, max_lines=most, placeholder=" …")
