"""Who fetches a column's published set."""

from __future__ import annotations

from pathlib import Path

from eval.columns.kinds import AlpacaEval, Column, LMEval, VLMEvalKit
from eval.items import hub_sets
from eval.items.writer import Place
from eval.vlm import published


def placing(record: Path) -> Place:
    """What puts a published set into a data folder; the revisions of hub sets are recorded in ``record``."""

    def place(column: Column, folder: Path) -> str:
        if isinstance(column, VLMEvalKit):
            return published.place(column, folder)
        assert isinstance(column, LMEval | AlpacaEval)  # there are no others
        return hub_sets.place(column, folder, record)

    return place
