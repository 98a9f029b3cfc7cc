"""The paper's tables of scores: which backbone each is of, its columns, and its published numbers."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from emkit.errors import UserError

PAPER = Path(__file__).parent / "paper"
_IMAGES = {
    "VizWiz": "VQA",
    "GQA": "VQA",
    "MathVista": "Geometry",
    "MATH-Vision": "Geometry",
    "ChartQA": "Chart",
    "TextVQA": "OCR",
    "OCRVQA": "OCR",
    "RefCOCO": "Grounding",
    "RefCOCO+": "Grounding",
    "RefCOCOg": "Grounding",
}
_TEXT = {"AlpacaEval": "Chat", "GSM8K": "Math", "MATH": "Math", "HumanEval": "Code", "MBPP": "Code"}


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's main tables: ``experts`` gives the expert behind each column, in the table's order."""

    number: int
    backbone: str
    models: str
    experts: dict[str, str]

    @property
    def name(self) -> str:
        """What its files are called: ``table1``."""
        return f"table{self.number}"

    @property
    def title(self) -> str:
        """What it is called in a text: ``Table 1``."""
        return f"Table {self.number}"

    def scores(self) -> dict[str, dict[str, float | None]]:
        """Its published numbers (see :func:`scores`)."""
        return scores(self.number)


TABLES = (
    PaperTable(1, "internvl", "InternVL2.5-1B", _IMAGES),
    PaperTable(2, "qwen2_vl", "Qwen2-VL-7B", _IMAGES),
    PaperTable(3, "mistral", "Mistral-7B-v0.1", _TEXT),
)


def of(backbone: str) -> PaperTable:
    """The table of a backbone's scores; ``UserError`` where the paper has none."""
    for table in TABLES:
        if table.backbone == backbone:
            return table
    raise UserError(
        f"the paper has no table of '{backbone}': choose {' or '.join(t.backbone for t in TABLES)}, "
        "or merge models of your own with `emkit merge`"
    )


def scores(number: int) -> dict[str, dict[str, float | None]]:
    """A table of the paper: method → column → score in percent (None: a dash in the paper)."""
    with open(PAPER / f"table{number}.csv", encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    key = next(iter(lines[0]))
    return {line.pop(key): {k: float(v) if v else None for k, v in line.items()} for line in lines}
