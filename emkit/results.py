"""What a fit leaves behind, as objects that draw themselves in a notebook: its history, and layer importance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emkit import pictures

_MEAN = " mean α"


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
        """Every task's loss by term, and every expert's mean coefficient, over the steps; grey lines between stages. A
        matplotlib figure."""
        panels: dict[str, dict[str, list[float]]] = {}
        for key in self._rows[0]:
            if " " in key and not key.endswith(_MEAN):
                task, _, term = key.rpartition(" ")
                panels.setdefault(f"{term} loss of each task", {})[task] = [row[key] for row in self._rows]
        means = {key.removesuffix(_MEAN): [row[key] for row in self._rows] for key in self._rows[0] if _MEAN in key}
        breaks = [i for i in range(1, len(self)) if self[i]["stage"] != self[i - 1]["stage"]]
        return pictures.curves(panels | {"mean coefficient α of each expert": means}, "step", breaks)

    def alt(self) -> str:
        """What the figure shows, for people who do not see it."""
        first, last = self[0], self[-1]
        means = [key for key in first if key.endswith(_MEAN)]
        moved = ", ".join(f"{key.removesuffix(_MEAN)} from {first[key]:.2f} to {last[key]:.2f}" for key in means)
        total = f"The loss goes from {first['loss']:.4g} to {last['loss']:.4g} in {len(self)} steps"
        return f"Lines over the steps of a fit. {total}; the mean coefficients: {moved}."

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        return pictures.shown(self.plot(), self.alt())


def _flat(stage: int, entry: Mapping[str, Any]) -> dict[str, float]:
    row = {"stage": stage, **{key: entry[key] for key in ("step", "loss", "regulariser", "learning_rate")}}
    row |= {f"{task} {term}": value for task, terms in entry["tasks"].items() for term, value in terms.items()}
    return row | {f"{expert}{_MEAN}": summary["mean"] for expert, summary in entry["coefficients"].items()}


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
        """Importance by block and kind of tensor, with the number of chunks in each cell; a matplotlib figure."""
        rows, columns, values = pictures.by_block(self)
        chunks = pictures.by_block(self.chunks)[2]  # of the same tensors in the same order
        title = "layer importance (the number: chunks)"
        return pictures.maps([title], rows, columns, values[None], "importance", chunks[None])

    def alt(self) -> str:
        """What the figure shows, for people who do not see it."""
        top = sorted(self, key=lambda name: -self[name])[:3]
        named = ", ".join(f"{name} ({self[name]:.3f})" for name in top)
        return f"A heat map of the importance of {len(self)} tensors, which sums to 1. The most important: {named}."

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        return pictures.shown(self.plot(), self.alt())
