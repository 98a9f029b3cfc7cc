"""What an expert has that the merged model lacks, in one list, and how far it is from the base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from emkit import foreign
from emkit.checkpoints import Checkpoint
from emkit.layouts import Layout, beyond
from emkit.own import tokens
from emkit.own.adapters import AdapterCheckpoint

ALL = "`--tensors all` merges"  # what helps where a tensor of the base's own stays out
UNRELATED = 0.5  # ‖τ‖/‖θ‖ of two trainings from other starts is about √2, of a fine-tuned model a tenth or two


def left_out(
    base: Checkpoint,
    expert: Checkpoint,
    layout: Layout,
    merged: Iterable[str],
    rows: tuple[int | None, int | None],
    tied: tuple[bool, bool],
    owner: Path,
) -> list[str]:
    """What of an expert does not reach the merged model, as far as names and headers tell; each with what helps.

    ``rows`` of its vocabulary and of the base's; ``tied``: whether its head and the base's are the embedding;
    ``owner``: whose tokenizer the model gets.
    """
    found = []
    if isinstance(expert, AdapterCheckpoint):
        merged = set(merged)
        out = [name for name in sorted(expert.adapted) if name not in merged and _changed(base, expert, name)]
        if out:
            found.append(f"what its adapter has for {_some(out)}, which is not merged: {ALL} it")
        found += [f"{what}: merge the adapter into its base with PEFT and look there" for what in expert.beyond]
    else:
        out = beyond(base, expert, layout)
        if out:
            found.append(f"{_some(out)}, which the base has not: no flag adds it")
    ours, theirs = rows[1], rows[0]
    if None not in rows and theirs != ours:
        found.append(f"the {theirs} rows of its embeddings: the base has {ours}, which the merged model keeps")
    if tied == (True, False):
        found.append("its head, which is its embedding: the base has one of its own, which the merged model keeps")
    taken = tokens.further_templates(owner)
    templates = [name for name, text in tokens.further_templates(expert.path).items() if taken.get(name) != text]
    if templates:
        found.append(f"its further chat templates ({', '.join(templates)}): `--tokenizer` chooses whose are taken")
    return found


def _changed(base: Checkpoint, expert: Checkpoint, name: str) -> bool:
    """Whether an adapter has other values than the base; PEFT saves embeddings beside it although nothing changed."""
    return not torch.equal(base.read(name).to(expert.info(name).dtype), expert.read(name))


def _some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def missing_code(files: Iterable[Path]) -> list[str]:
    """Python files that configurations name (``auto_map``): what a merged model with these configurations is without,
    because emkit copies no code and runs none."""
    modules = set()
    for file in files:
        found = foreign.mapping(file).get("auto_map", {})
        values = found.values() if isinstance(found, Mapping) else [found]
        for value in values:
            for name in value if isinstance(value, list) else [value]:
                if isinstance(name, str) and "--" not in name:  # "user/model--module.Class" is read from the hub
                    modules.add(f"{name.split('.')[0]}.py")
    return sorted(modules)


@dataclass
class Distance:
    """How far an expert is from the base: Σ τ² and Σ θ² over its merged tensors, and which others differ."""

    base: Checkpoint
    expert: Checkpoint
    merged: frozenset[str]
    tau: float = 0.0
    theta: float = 0.0
    others: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.known = frozenset(self.base.names)

    def look(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor of the expert's, under the base's name, into account."""
        if name not in self.known or self.base.info(name).shape != tuple(tensor.shape):
            return
        base = self.base.read(name)
        if name in self.merged:
            wide = base.float()
            self.tau += float((tensor.float() - wide).square().sum(dtype=torch.float64))
            self.theta += float(wide.square().sum(dtype=torch.float64))
        elif not torch.equal(base.to(tensor.dtype), tensor):
            self.others.append(name)

    @property
    def ratio(self) -> float:
        """‖τ‖/‖θ_base‖ over all merged tensors together."""
        return math.sqrt(self.tau / self.theta) if self.theta else math.inf

    def finish(self) -> None:
        """Count what an adapter does not touch: the base as it is."""
        if isinstance(self.expert, AdapterCheckpoint):
            for name in self.merged - set(self.expert.adapted):
                self.theta += float(self.base.read(name).float().square().sum(dtype=torch.float64))

    def warning(self) -> str | None:
        """A remark where the distance is one that fine-tuning does not go."""
        if self.ratio < UNRELATED:
            return None
        return (
            f"is as far from the base as another model is (‖τ‖/‖θ‖ {self.ratio:.2f}; of a fine-tuned model it is about "
            "0.1, of an unrelated one 1.4): was it made from this base?"
        )

    def left_out(self) -> list[str]:
        """Trained tensors that no rule merges."""
        if not self.others or isinstance(self.expert, AdapterCheckpoint):
            return []
        return [f"its own values of {_some(sorted(self.others))}, which are not merged: {ALL} them"]
