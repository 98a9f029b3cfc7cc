"""What a fit leaves behind, as objects that draw themselves in a notebook: its history, and layer importance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emkit import pictures


class History(Sequence):
    """The steps of a fit in order, as flat rows: ``stage`` (of Expert Merging++: 0, then 1), ``step``,
    ``loss``, ``regulariser``, ``learning_rate``, of every task its terms (``math hidden``), of every expert its mean
    coefficient (``math mean α``). ``pandas.DataFrame(history)`` is a table of them."""

    def __init__(self, stages: Sequence[Mapping[str, Any]]):
        self.stages = list(stages)
        self._rows = [_flat(number, entry) for number, stage in enumerate(stages) for entry in stage["history"]]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        return self._rows[index]

    def plot(self):
        """Losses of every task and term, and every expert's mean coefficient, over the steps; a matplotlib figure."""
        losses, means = {}, {}
        for key in self._rows[0]:
            if key.endswith("mean α"):
                means[key.removesuffix(" mean α")] = [row[key] for row in self._rows]
            elif " " in key:
                losses[key] = [row[key] for row in self._rows]
        return pictures.curves({"loss of each task": losses, "mean coefficient α": means}, "step")

    def _repr_png_(self) -> bytes:
        return pictures.png(self.plot())


def _flat(stage: int, entry: Mapping[str, Any]) -> dict[str, float]:
    row = {"stage": stage, **{key: entry[key] for key in ("step", "loss", "regulariser", "learning_rate")}}
    row |= {f"{task} {term}": value for task, terms in entry["tasks"].items() for term, value in terms.items()}
    return row | {f"{expert} mean α": summary["mean"] for expert, summary in entry["coefficients"].items()}


class Importance(Mapping):
    """I_ℓ of every merged tensor (Section 3.3; they sum to 1) and, in ``chunks``, how many chunks Eq. 4 gave it."""

    def __init__(self, values: Mapping[str, float], chunks: Mapping[str, int]):
        self.values_by_name, self.chunks = dict(values), dict(chunks)

    def __getitem__(self, name: str) -> float:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def plot(self):
        """Importance by block and kind of tensor, as a matplotlib figure."""
        rows, columns, values = pictures.by_block(self)
        return pictures.maps(["layer importance"], rows, columns, values[None], "I")

    def _repr_png_(self) -> bytes:
        return pictures.png(self.plot())
