"""``emkit coefficients show``: learned coefficients as a heat map of characters, for a terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emkit.coefficients import Coefficients
from emkit.errors import UserError

_SHADES = " ·░▒▓█"
NAME = "coefficients.json"


def find(path: Path) -> Path:
    """The file of coefficients: ``path`` itself, or in the folder of a merged model."""
    if path.is_dir():
        if not (path / NAME).is_file():
            raise UserError(f"{path} has no {NAME}: only learned methods (expert_merging, adamerging, …) write one")
        return path / NAME
    if not path.is_file():
        raise UserError(f"there is no {path}: give a merged model's folder, or its {NAME}")
    return path


def text(coefficients: Coefficients) -> str:
    """A map for each expert: every value, and a shade from the least (blank) to the largest (full) of all experts."""
    rows, columns, maps = coefficients.grid()
    low, high = float(np.nanmin(maps)), float(np.nanmax(maps))
    width = max(9, *(len(column) for column in columns)) + 1
    parts = []
    for expert, values in zip(coefficients.experts, maps, strict=True):
        lines = [f"{expert}: mean {np.nanmean(values):.3f}, {np.nanmin(values):.3f} to {np.nanmax(values):.3f}"]
        lines.append("block " + "".join(f"{column:>{width}}" for column in columns))
        for row, entries in zip(rows, values, strict=True):
            lines.append(f"{row:>5} " + "".join(f"{_cell(x, low, high):>{width}}" for x in entries))
        parts.append("\n".join(lines))
    shades = f"shades: {' '.join(f'{shade}' for shade in _SHADES[1:])} from {low:.3f} to {high:.3f}"
    return "\n\n".join([*parts, shades + _chunks(coefficients)])


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
