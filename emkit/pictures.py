"""Pictures of what a merge learned, with matplotlib (an extra: ``pip install emkit[plot]``)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emkit.errors import UserError
from emkit.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# told apart by people with every kind of colour vision (Okabe and Ito)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

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


def maps(titles: Sequence[str], rows: Sequence[str], columns: Sequence[str], values: np.ndarray, label: str) -> Figure:
    """Heat maps side by side on one scale of colours: ``values`` float64 [maps, rows, columns], NaN for nothing."""
    made = figure(1.5 + 0.55 * len(columns) * len(titles), 1.5 + 0.25 * len(rows))
    axes = made.subplots(1, len(titles), squeeze=False, sharey=True)[0]
    for axis, title, cells in zip(axes, titles, values, strict=True):
        image = axis.imshow(cells, aspect="auto", cmap="viridis", vmin=np.nanmin(values), vmax=np.nanmax(values))
        axis.set_title(title)
        axis.set_xticks(range(len(columns)), columns, rotation=90)
        axis.set_yticks(range(len(rows)), rows)
    axes[0].set_ylabel("block")
    made.colorbar(image, ax=list(axes), label=label)
    return made


def curves(panels: Mapping[str, Mapping[str, Sequence[float]]], x: str) -> Figure:
    """Lines over their index, one panel a title: title → line's name → values."""
    made = figure(4.2 * len(panels), 3.2)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axis, (title, lines) in zip(made.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, values in lines.items():
            axis.plot(values, label=name, color=COLOURS[names.index(name) % len(COLOURS)])
        axis.set_title(title)
        axis.set_xlabel(x)
        axis.legend(frameon=False)
    return made


def png(made: Figure) -> bytes:
    """The figure as a PNG, at twice the resolution of a page: what a notebook shows."""
    stream = io.BytesIO()
    made.savefig(stream, format="png", dpi=144)
    return stream.getvalue()


def save(made: Figure, path: Path) -> None:
    """Write the figure as PNG, PDF or SVG, by the name's ending."""
    kind = path.suffix.removeprefix(".") or "png"
    with atomic_write(path) as part:
        try:
            made.savefig(part, format=kind, dpi=150)
        except ValueError as error:
            raise UserError(f"{path}: no picture of the kind '{kind}': end the name in .png, .pdf or .svg") from error
