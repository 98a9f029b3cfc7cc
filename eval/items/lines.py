"""Reading a text column's items back from a data folder."""

from __future__ import annotations

import json
from pathlib import Path

from emkit.errors import UserError
from eval.columns.kinds import Column


def rows(data_dir: str | Path, column: Column) -> list[dict]:
    """The column's items as they stand in a data folder; ``UserError`` where they are missing or damaged."""
    path = Path(data_dir) / column.file
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except FileNotFoundError as error:
        raise UserError(
            f"no benchmark data {path}: write it with `python -m eval data RECIPE --split SPLIT`"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON lines: write the data again") from error
