"""``emkit coefficients show``: learned coefficients as a heat map, in the terminal or as a picture."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from emkit.coefficients import Coefficients
from emkit.errors import UserError
from emkit.files import atomic_write

_BLOCK = re.compile(r"\.(?P<block>\d+)\.(?P<rest>.+)")
_SHADES = " ·░▒▓█"
NAME = "coefficients.json"
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # others come after them


def find(path: Path) -> Path:
    """The file of coefficients: ``path`` itself, or in the folder of a merged model."""
    if path.is_dir():
        if not (path / NAME).is_file():
            raise UserError(f"{path} has no {NAME}: only learned methods (expert_merging, adamerging, …) leave one")
        return path / NAME
    if not path.is_file():
        raise UserError(f"there is no {path}: give a merged model's folder, or its {NAME}")
    return path


def grid(coefficients: Coefficients, k: int) -> tuple[list[str], list[str], np.ndarray]:
    """Expert ``k``'s coefficients as rows (blocks, then what is in none), columns (kinds of matrices) and float64
    [rows, columns], NaN where a block has no such matrix; a tensor of several chunks counts with their mean."""
    cells: dict[tuple[str, str], float] = {}
    rows, columns = [], []
    for name, value in coefficients.values.items():
        match = _BLOCK.search(name)
        row = match["block"] if match else "other"
        column = (match["rest"] if match else name).removesuffix(".weight").split(".")[-1]
        rows, columns = rows + [row] * (row not in rows), columns + [column] * (column not in columns)
        cells[row, column] = float(value[k].mean())
    rows.sort(key=lambda row: (not row.isdigit(), int(row) if row.isdigit() else 0))
    columns.sort(key=lambda column: _ORDER.index(column) if column in _ORDER else len(_ORDER))
    return rows, columns, np.array([[cells.get((row, column), np.nan) for column in columns] for row in rows])


def text(coefficients: Coefficients) -> str:
    """A map for each expert: every value, and a shade from the least (blank) to the largest (full) of all experts."""
    maps = [grid(coefficients, k) for k in range(len(coefficients.experts))]
    low = min(float(np.nanmin(values)) for _, _, values in maps)
    high = max(float(np.nanmax(values)) for _, _, values in maps)
    parts = []
    for expert, (rows, columns, values) in zip(coefficients.experts, maps, strict=True):
        width = max(9, *(len(column) for column in columns)) + 1
        lines = [f"{expert}: mean {np.nanmean(values):.3f}, {np.nanmin(values):.3f} to {np.nanmax(values):.3f}"]
        lines.append("block " + "".join(f"{column:>{width}}" for column in columns))
        for row, entries in zip(rows, values, strict=True):
            lines.append(f"{row:>5} " + "".join(f"{_cell(x, low, high):>{width}}" for x in entries))
        parts.append("\n".join(lines))
    parts.append(
        f"shades: {' '.join(f'{shade}' for shade in _SHADES[1:])} from {low:.3f} to {high:.3f}" + _chunks(coefficients)
    )
    return "\n\n".join(parts)


def _cell(x: float, low: float, high: float) -> str:
    if np.isnan(x):
        return ""
    part = (x - low) / (high - low) if high > low else 0.5
    return f"{_SHADES[1 + min(int(part * (len(_SHADES) - 1)), len(_SHADES) - 2)] * 2} {x:6.3f}"


def _chunks(coefficients: Coefficients) -> str:
    counts = [value.shape[1] for value in coefficients.values.values()]
    if max(counts) == 1 and not coefficients.fixed:
        return ""
    return (
        f"\n{sum(count > 1 for count in counts)} tensors have several chunks (their mean is shown), "
        f"{len(coefficients.fixed)} are fixed"
    )


def picture(coefficients: Coefficients, path: Path) -> None:
    """Write the maps as a picture (PNG, PDF or SVG, by the file's ending); needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("a picture needs matplotlib: `pip install matplotlib`, or leave out --out for text") from error
    maps = [grid(coefficients, k) for k in range(len(coefficients.experts))]
    every = np.concatenate([values.reshape(-1) for _, _, values in maps])
    rows, columns, _ = maps[0]
    figure = Figure(figsize=(1.5 + 0.55 * len(columns) * len(maps), 1.5 + 0.25 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    for axis, expert, (_, _, values) in zip(axes, coefficients.experts, maps, strict=True):
        image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=np.nanmin(every), vmax=np.nanmax(every))
        axis.set_title(expert)
        axis.set_xticks(range(len(columns)), columns, rotation=90)
        axis.set_yticks(range(len(rows)), rows)
    axes[0].set_ylabel("block")
    figure.colorbar(image, ax=list(axes), label="coefficient α")
    kind = path.suffix.removeprefix(".") or "png"
    with atomic_write(path) as part:
        try:
            figure.savefig(part, format=kind, dpi=150)
        except ValueError as error:
            raise UserError(f"{path}: no picture of the kind '{kind}': end the name in .png, .pdf or .svg") from error
