"""Pictures of what a merge learned, with matplotlib (an extra: ``pip install emkit[plot]``)."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emkit.errors import UserError
from emkit.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, DOTS = 8.7, 100  # a page: inches, and its pixels for each of them, so 870, what GitHub and Jupyter Lab show
# told apart by people with every kind of colour vision (Okabe and Ito)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DIVERGING, SEQUENTIAL = "RdBu", "viridis"  # below and above a middle; amounts
TEXT = {"font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 9}  # points, of the page's own
LOOK = {**TEXT, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.frameon": False}

UNSEEN = 16
_BLOCK = re.compile(r"\.(?P<block>\d+)\.(?P<rest>.+)")
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # others come after them


def by_block(values: Mapping[str, float]) -> tuple[list[str], list[str], np.ndarray]:
    """Numbers of tensors as a map: rows (blocks, then what is in none), columns (kinds of tensors), and float64
    [rows, columns], NaN where a block has no tensor of a kind."""
    cells: dict[tuple[str, str], float] = {}
    for name, value in values.items():
        match = _BLOCK.search(name)
        kind = (match["rest"] if match else name).removesuffix(".weight").split(".")[-1]
        cells[match["block"] if match else "other", kind] = float(value)
    rows = sorted({row for row, _ in cells}, key=lambda row: (not row.isdigit(), int(row) if row.isdigit() else 0))
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    kinds.sort(key=lambda kind: _ORDER.index(kind) if kind in _ORDER else len(_ORDER))
    return rows, kinds, np.array([[cells.get((row, kind), np.nan) for kind in kinds] for row in rows])


def figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches; ``UserError`` where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("a picture needs matplotlib: `pip install emkit[plot]`") from error
    return Figure(figsize=(width, height), layout="constrained")


def maps(
    titles: Sequence[str],
    rows: Sequence[str],
    columns: Sequence[str],
    values: np.ndarray,
    label: str,
    numbers: np.ndarray | None = None,
) -> Figure:
    """Heat maps on one scale of colours: ``values`` float64 [maps, rows, columns], NaN for nothing; ``numbers`` of the
    same shape are written into the cells. A single map takes half a page's width, several all of it.

    Where some values are below 0, red is below, blue above, and white nothing; else darker is less.
    """
    reach = float(np.nanmax(np.abs(values))) or 1.0
    signed = bool(np.nanmin(values) < 0)
    colours = {"cmap": DIVERGING, "vmin": -reach} if signed else {"cmap": SEQUENTIAL, "vmin": 0.0}
    beside = max(1, min(len(titles), int((WIDTH - 1.0) / (0.19 * len(columns) + 0.2))))  # a label needs 0.19 inches
    lines = math.ceil(len(titles) / beside)
    with _look():
        made = figure(WIDTH if beside > 1 or len(columns) > 12 else WIDTH / 2, lines * (0.6 + 0.21 * len(rows)) + 0.9)
        grid = made.subplots(lines, beside, squeeze=False, sharex=True, sharey=True)
        for axis, title, cells in zip(grid.flat, titles, values, strict=False):
            image = axis.imshow(cells, aspect="auto", vmax=reach, **colours)
            axis.set_title(title)
            axis.set_facecolor("0.92")  # where there is no tensor
            axis.set_xticks(range(len(columns)), columns, rotation=90)
            axis.set_yticks(range(len(rows)), rows)
            axis.tick_params(length=2, labelbottom=True)
        for axis, cells, shades in zip(grid.flat, [] if numbers is None else numbers, values, strict=False):
            for (i, j), number in np.ndenumerate(cells):
                dark = abs(shades[i, j]) > 0.6 * reach if signed else shades[i, j] < 0.5 * reach
                if not np.isnan(number):
                    axis.text(j, i, f"{number:g}", ha="center", va="center", color="white" if dark else "black")
        for axis in grid.flat[len(titles) :]:
            axis.set_axis_off()
        made.supylabel("block", fontsize=10)
        made.colorbar(image, ax=list(grid.flat), label=label, aspect=30, pad=0.01)
    return made


def curves(panels: Mapping[str, Mapping[str, Sequence[float]]], x: str, breaks: Sequence[int] = ()) -> Figure:
    """Lines over their index as wide as a page, one panel a title: title → line's name → values; one colour a name.

    ``breaks`` are the places where something starts anew, drawn as grey lines.
    """
    beside = min(len(panels), 3)
    lines = math.ceil(len(panels) / beside)
    names = list(dict.fromkeys(name for drawn in panels.values() for name in drawn))
    with _look():
        made = figure(WIDTH, 2.5 * lines + 0.5)
        grid = made.subplots(lines, beside, squeeze=False, sharex=True)
        for axis, (title, drawn) in zip(grid.flat, panels.items(), strict=False):
            for name, values in drawn.items():
                colour, style = COLOURS[names.index(name) % len(COLOURS)], "-:"[names.index(name) // len(COLOURS) % 2]
                axis.plot(values, label=name, color=colour, linestyle=style)
            for place in breaks:
                axis.axvline(place, color="0.6", linewidth=0.8)
            axis.set_title(title)
            axis.set_xlabel(x)
            axis.spines[["top", "right"]].set_visible(False)
        for axis in grid.flat[len(panels) :]:
            axis.set_axis_off()
        found = {name: line for axis in grid.flat for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
        made.legend(found.values(), found, loc="outside lower center", ncols=min(len(found), 6))
    return made


def _look() -> AbstractContextManager:
    """Text of the size that a page's own has, while a figure is made."""
    import matplotlib

    return matplotlib.rc_context(LOOK)


def png(made: Figure) -> bytes:
    """The figure as a PNG of two dots for each pixel of a page, in the same bytes whenever it is the same figure.

    In a palette of 256 colours, a quarter of the bytes, where nobody sees the difference: no dot moves by more than
    :data:`UNSEEN` of 255 in any channel, so that small things in a picture keep their colours, too.
    """
    from PIL import Image  # matplotlib stands on it

    full, small = io.BytesIO(), io.BytesIO()
    made.savefig(full, format="png", dpi=2 * DOTS, metadata={"Software": None})
    dots = Image.open(full).convert("RGB")
    few = dots.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    moved = np.abs(np.asarray(few.convert("RGB"), dtype=np.int16) - np.asarray(dots, dtype=np.int16))
    (few if moved.max() <= UNSEEN else dots).save(small, format="png", optimize=True)
    return small.getvalue()


def shown(made: Figure, alt: str) -> tuple[dict, dict]:
    """What a notebook puts on the page: the figure at its width, with ``alt`` for people who do not see it; data and
    metadata as IPython wants them (``_repr_mimebundle_``)."""
    about = {"width": round(made.get_figwidth() * DOTS), "alt": alt}
    return {"image/png": png(made), "text/plain": alt}, {"image/png": about}


def save(made: Figure, path: Path) -> None:
    """Write the figure as PNG, PDF or SVG, by the name's ending."""
    kind = path.suffix.removeprefix(".") or "png"
    with atomic_write(path) as part:
        try:
            made.savefig(part, format=kind, dpi=2 * DOTS)
        except ValueError as error:
            raise UserError(f"{path}: no picture of the kind '{kind}': end the name in .png, .pdf or .svg") from error
