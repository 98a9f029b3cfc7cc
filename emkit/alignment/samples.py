"""What is kept of an expert for a task: its sequences, middle and final states, and the head that makes logits of them.

A fit reads this and never the expert. Final states take d numbers a token where logits would take V; with the expert's
own head, kept once by its content, the logits are exact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from emkit.alignment.heads import Head
from emkit.alignment.sequences import Folded
from emkit.files import atomic_write
from emkit.hashes import sha256_tensors
from emkit.locks import lock
from emkit.sealed import Broken


@dataclass(frozen=True)
class TaskSamples:
    """One task's sequences. ``sample_of[i]`` is the sample that sequence i is a part of.

    Per sequence: ``features`` of its image from the base, one tile or token a row (nothing that they depend on is
    merged; without an image they are empty); the teacher's middle states ``hidden`` [n, d] and final states ``final``
    [n, d] at the n positions where losses are taken. fp32. ``head`` makes the teacher's logits of the latter.
    """

    name: str
    sequences: list[Folded]
    sample_of: list[int]
    features: list[torch.Tensor]
    final: list[torch.Tensor]
    hidden: list[torch.Tensor]
    rows: list[list[dict]]
    head: Head

    def logits(self, index: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The teacher's logits [n, V] of sequence ``index``, computed in ``dtype``."""
        return self.head.logits(self.final[index].to(dtype))

    @property
    def samples(self) -> int:
        """Number of samples N."""
        return max(self.sample_of) + 1

    def only(self, number: int) -> TaskSamples:
        """The sample ``number`` alone."""
        indices = [i for i, sample in enumerate(self.sample_of) if sample == number]
        parts = ("sequences", "features", "final", "hidden", "rows")
        chosen: dict = {part: [getattr(self, part)[i] for i in indices] for part in parts}
        return TaskSamples(name=self.name, sample_of=[0] * len(indices), head=self.head, **chosen)

    @property
    def response_tokens(self) -> int:
        """Response tokens in all samples together."""
        return sum(row["tokens"] for rows in self.rows for row in rows)


def save_samples(made: TaskSamples, folder: Path, heads: Path) -> None:
    """Write samples.json and teacher.safetensors into ``folder``, and the head, by its content, into ``heads``."""
    entries = [
        {"sample": sample, "sequence": sequence.to_json(), "rows": rows}
        for sample, sequence, rows in zip(made.sample_of, made.sequences, made.rows, strict=True)
    ]
    (folder / "samples.json").write_text(json.dumps(entries, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {}
    for name in ("features", "final", "hidden"):
        parts = getattr(made, name)
        tensors[name] = torch.cat(parts)
        tensors[f"{name}.sizes"] = torch.tensor([len(part) for part in parts])
    save_file(tensors, folder / "teacher.safetensors", metadata={"head": _save_head(made.head, heads)})


def _save_head(head: Head, folder: Path) -> str:
    """Keep a head under the hash of its content, which it returns; equal heads are kept once."""
    tensors = {"weight": head.weight.cpu().contiguous()}
    if head.bias is not None:
        tensors["bias"] = head.bias.cpu().contiguous()
    key = sha256_tensors(sorted(tensors.items()))
    file = folder / f"{key}.safetensors"
    with lock(file.with_suffix(".lock")):
        if not file.is_file() or _head_key(file) != key:
            with atomic_write(file) as part:
                save_file(tensors, part)
    return key


def _head_key(file: Path) -> str | None:
    """The hash of a kept head's content; None where it cannot be read."""
    try:
        return sha256_tensors(sorted(load_file(file).items()))
    except (SafetensorError, OSError):
        return None


def load_samples(folder: Path, heads: Path, task: str, known: dict[str, Head] | None = None) -> TaskSamples:
    """Read what :func:`save_samples` wrote; whatever is missing or damaged raises.

    ``known`` holds heads that have been read already, by their content, and gets those that have not.
    """
    known = {} if known is None else known
    entries = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    with safe_open(folder / "teacher.safetensors", framework="pt") as file:
        key = file.metadata()["head"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if key not in known:
        head = load_file(heads / f"{key}.safetensors")
        if sha256_tensors(sorted(head.items())) != key:
            raise Broken(f"the head {key} is not what was written")
        known[key] = Head(head["weight"], head.get("bias"))
    split = {
        name: list(tensors[name].split(tensors[f"{name}.sizes"].tolist())) for name in ("features", "final", "hidden")
    }
    return TaskSamples(
        task,
        [Folded.from_json(entry["sequence"]) for entry in entries],
        [entry["sample"] for entry in entries],
        split["features"],
        split["final"],
        split["hidden"],
        [entry["rows"] for entry in entries],
        known[key],
    )


def join(parts: list[TaskSamples]) -> TaskSamples:
    """One task's samples as one set, in their order; every part holds one sample."""
    sample_of = [number for number, part in enumerate(parts) for _ in part.sequences]
    together = {
        name: [one for part in parts for one in getattr(part, name)]
        for name in ("sequences", "features", "final", "hidden", "rows")
    }
    return TaskSamples(name=parts[0].name, sample_of=sample_of, head=parts[0].head, **together)
