"""What a merge will need of disk and memory, estimated from headers, and whether it is there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from emkit.alignment.memory import available, held_bytes
from emkit.alignment.options import EngineOptions
from emkit.alignment.sources import Samples
from emkit.checkpoints import Checkpoint
from emkit.disk import existing, free_bytes, unwritable
from emkit.errors import UserError
from emkit.methods import Method
from emkit.task_vectors import TaskVectors

LIBRARIES = 500 * 10**6  # what torch and transformers take by themselves
REPORT = "emkit_merge.json"  # beside a merged model's weights: what it was made from


@dataclass(frozen=True)
class Needs:
    """Bytes: ``disk`` beside the output while it is written and kept, ``memory`` at the peak, roughly."""

    disk: int
    memory: int


def size(checkpoint: Checkpoint) -> int:
    """Bytes of all tensors, from the headers."""
    return sum(_bytes(checkpoint, name) for name in checkpoint.names)


def _bytes(checkpoint: Checkpoint, name: str) -> int:
    info = checkpoint.info(name)
    return torch.Size(info.shape).numel() * info.dtype.itemsize


def estimate(
    method: Method, vectors: TaskVectors, text: dict, calibration: Samples, engine: EngineOptions, device: str
) -> Needs:
    """Estimate what ``method`` needs of disk and host memory. ``text`` holds the model's ``hidden_size``.

    Without a fit: every checkpoint's share of the largest tensor in fp32, with room to combine them, and the squares
    that a method holds beside them, or the output itself, when it is checked. With one: the base with, one after the
    other, each teacher in fp32; then the base in ``engine``'s dtype with the gradient of a tensor and all task vectors
    in fp32, or what ``engine.memory`` allows; and each task's states (fp32), on disk too. On a GPU, the base while a
    teacher is in its place, and a teacher on its way there; task vectors only as far as there is room. And the
    libraries.
    """
    base, experts = vectors.base, len(vectors.experts)
    output = size(base)
    largest = max(vectors.numel(name) for name in vectors.names)
    shapes = [base.info(name).shape for name in vectors.names]
    columns = max((shape[1] for shape in shapes if len(shape) == 2), default=0)
    memory = LIBRARIES + max(output, 4 * (largest * (2 * experts + 3) + method.squares * columns**2))
    if not method.learned:
        return Needs(output, memory)
    numel = sum(torch.Size(base.info(name).shape).numel() for name in base.names)
    positions = calibration.samples * max(calibration.max_new_tokens, calibration.response_tokens)
    kept = 4 * experts * positions * 2 * text.get("hidden_size", 0)
    if device != "cpu":
        return Needs(output + kept, max(memory, LIBRARIES + 2 * engine.torch_dtype.itemsize * numel + kept))
    fit = engine.torch_dtype.itemsize * (numel + largest) + held_bytes(vectors, torch.float32) + kept
    if engine.memory is not None:
        fit = min(fit, engine.memory)
    return Needs(output + kept, max(memory, LIBRARIES + max(4 * 2 * numel + kept, fit)))


def check_disk(out: Path, needed: int, allowed: bool) -> str:
    """What of the disk is needed; ``UserError`` when that is more than there is (unless ``allowed``)."""
    free = free_bytes(out)
    if needed > free and not allowed:
        raise UserError(
            f"not enough disk for {out}: the merge needs about {human(needed)}, {human(free)} are free; free some, "
            "choose another folder, or `--allow disk`"
        )
    return f"disk {human(needed)} of {human(free)} free"


def check_memory(needed: int, allowed: bool) -> str:
    """The same for memory; where the system does not say how much is free, only the need is told."""
    free = available()
    if free is None:
        return f"memory about {human(needed)}"
    if needed > free and not allowed:
        raise UserError(
            f"not enough memory: the merge needs about {human(needed)}, {human(free)} are available; close other "
            "programs, use a larger machine, or `--allow memory`"
        )
    return f"memory about {human(needed)} of {human(free)} available"


def by_merge(folder: Path) -> bool:
    """Whether ``emkit merge`` wrote the model in a folder."""
    return (folder / REPORT).is_file()


def by_merge_row(folder: Path) -> bool:
    """Whether ``python -m eval merge`` did, which writes no report: its card says so."""
    try:
        return "\nMade by emkit, row `" in (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def place(out: str | Path) -> Path:
    """The absolute path that ``out`` leads to, through ``~`` and links: a folder can only be renamed onto that."""
    return Path(os.path.realpath(os.path.expanduser(out)))


def check_writable(
    out: Path,
    overwrite: bool,
    inputs: Iterable[Path],
    own: Callable[[Path], bool] = by_merge,
    needed: Iterable[Path] = (),
) -> None:
    """``UserError`` unless ``out`` can be written, and is new or may be replaced.

    It may not be one of the ``inputs`` (models' folders), nor hold one, or another file or folder that is ``needed``.
    ``own`` tells of a folder whether the command that asks wrote it: no other is ever replaced.
    """
    real, inputs = place(out), [place(folder) for folder in inputs]
    if real in inputs:
        raise UserError(f"{out} is one of the models to merge: choose another output folder")
    for path in (*inputs, *map(place, needed)):
        if path.is_relative_to(real):
            raise UserError(f"{path}, which the merge needs, lies in {out}: choose another output folder")
    if place(os.curdir).is_relative_to(real):
        raise UserError(f"{out} is, or holds, the folder that you are in, and cannot be replaced: choose another")
    if os.path.ismount(real):
        raise UserError(f"{out} is a disk's own folder, and cannot be replaced: choose one in it")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another output folder")
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise UserError(f"{out} is there already: choose another output folder, or `--overwrite` it")
        if not own(out):
            raise UserError(f"{out} is no model that emkit wrote, and is not overwritten: choose another output folder")
    parent = existing(out.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".emkit-", dir=parent):
            pass
    except OSError as error:
        raise unwritable(out, error) from error


def human(count: int) -> str:
    """A number of bytes in words: 14.5 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
