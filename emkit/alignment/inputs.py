"""What goes into each merged matrix while an expert runs on its own calibration samples: RegMean's statistics.

Of the inputs X [N, n] of a matrix on a sample only R with RᵀR = XᵀX is kept, X itself where N ≤ n and else its QR
factor, [≤ n, n] fp32, sample by sample as the teachers' states are: more samples add to those kept, a killed run goes
on at its first missing sample, and an expert is loaded only where one is missing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from emkit.alignment.calibration import Calibration, aside
from emkit.alignment.heads import headless
from emkit.alignment.samples import TaskSamples
from emkit.alignment.sequences import batches, collate
from emkit.alignment.teacher import TEACHER_TOKENS
from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint
from emkit.content import surroundings
from emkit.files import sha256_json
from emkit.locks import lock
from emkit.progress import section
from emkit.sealed import read_dir, sealed_dir
from emkit.task_vectors import TaskVectors

FORMAT = 1  # of what is kept; part of its keys
FILE = "inputs.safetensors"


@dataclass(frozen=True)
class Inputs:
    """Σ XᵀX of each merged matrix over an expert's own samples; ``folders``: of each expert those of its samples,
    ``keys``: what their content depends on."""

    folders: Mapping[str, Sequence[Path]]
    keys: Mapping[str, str]

    def known(self, expert: str, name: str) -> bool:
        """Whether inputs of the tensor ``name`` were recorded: not so where it is no linear layer's."""
        with safe_open(self.folders[expert][0] / FILE, framework="pt") as file:
            return name in _owners(file)

    def moments(self, expert: str, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Σ XᵀX [n, n] of the :meth:`known` tensor ``name``, added up in ``dtype``."""
        total = None
        for folder in self.folders[expert]:
            with safe_open(folder / FILE, framework="pt") as file:
                rows = file.get_tensor(_owners(file)[name]).to(dtype)
            total = rows.T @ rows if total is None else total.addmm_(rows.T, rows)
        assert total is not None  # a task has samples
        return total


def _owners(file) -> dict[str, str]:
    """Tensor → the one whose inputs are recorded and are its own, too."""
    return json.loads((file.metadata() or {})["inputs"])


def inputs(
    backbone: Backbone,
    base_model: torch.nn.Module,
    task_vectors: TaskVectors,
    calibration: Calibration,
    cache: Path,
    progress: bool = False,
) -> Inputs:
    """The inputs' moments of every expert on the samples of its task, from ``cache`` where they were made before.

    Every token of a sample's sequences counts once (a prefix that rows share is in a sequence once); image features
    are those of the samples, which are the base's. On a GPU ``base_model`` makes room for the expert while one runs.
    """
    names, found, keys = list(task_vectors.names), {}, {}
    for task, expert in task_vectors.checkpoints.items():
        samples = calibration.tasks[task]
        stated = {"format": FORMAT, "of": calibration.made(task), "names": names}
        stated |= {"surroundings": surroundings(base_model.device, __name__, f"emkit.backbones.{backbone.name}")}
        keys[task] = sha256_json(stated)
        folder = Path(cache) / "inputs" / keys[task]
        with lock(folder.with_suffix(".lock")):
            found[task] = list(_kept(backbone, base_model, expert, samples, folder, names, progress))
    return Inputs(found, {task: f"{key}, samples {calibration.tasks[task].samples}" for task, key in keys.items()})


def _kept(
    backbone: Backbone,
    base_model: torch.nn.Module,
    expert: Checkpoint,
    samples: TaskSamples,
    folder: Path,
    names: Sequence[str],
    progress: bool,
) -> Iterator[Path]:
    """The folder of each sample, made where it is missing."""
    with contextlib.ExitStack() as stack:
        model = None
        for number in tqdm(range(samples.samples), desc=f"inputs {samples.name}", unit="sample", disable=not progress):
            place = folder / f"{number:04d}"
            if read_dir(place, lambda kept: kept / FILE) is None:
                with section(f"inputs of {samples.name}, sample {number + 1} of {samples.samples}"):
                    if model is None:
                        device = stack.enter_context(aside(base_model))
                        model = backbone.load(expert.path, base_model.dtype, device)[0]
                    rows, where = recorded(backbone, model, samples, number, names)
                    with sealed_dir(place) as part:
                        save_file(rows, part / FILE, metadata={"inputs": json.dumps(where, sort_keys=True)})
            yield place
        model = None  # gone before the base comes back to its device


@torch.no_grad()
def recorded(
    backbone: Backbone, model: torch.nn.Module, samples: TaskSamples, number: int, names: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """R [≤ n, n] of the inputs of each matrix on sample ``number``, fp32 on the CPU, and tensor → whose R is its own:
    layers that are given one tensor, as queries, keys and values are, share it."""
    indices = [i for i, sample in enumerate(samples.sample_of) if sample == number]
    device = next(model.parameters()).device
    rows: dict[str, torch.Tensor] = {}
    where: dict[str, str] = {}
    for batch in batches([len(samples.sequences[i].ids) for i in indices], TEACHER_TOKENS):
        chosen = [indices[i] for i in batch]
        fields, taken = collate([samples.sequences[i] for i in chosen])
        real = torch.zeros_like(taken)  # [B, S]: no padding
        for row, i in enumerate(chosen):
            real[row, : len(samples.sequences[i].ids)] = True
        fields, taken, real = (
            {name: value.to(device) for name, value in fields.items()},
            taken.to(device),
            real.to(device),
        )
        features = torch.cat([samples.features[i] for i in chosen]).to(device, model.dtype)
        with headless(model), _watched(model, backbone, names, partial(_take, rows, where, real)):
            backbone.forward(model, fields, features=features, positions=taken)
    return {name: found.cpu().contiguous() for name, found in rows.items()}, where


def _take(
    rows: dict[str, torch.Tensor], where: dict[str, str], real: torch.Tensor, name: str, owner: str, x: torch.Tensor
) -> None:
    """Add an input x [..., n] of the tensor ``name``, which ``owner`` was given first, to what is recorded.

    ``real`` [B, S] is True at places that are no padding; an input of another shape is of images, whose rows all count.
    """
    where[name] = owner
    if name == owner:
        here = (x[real] if x.shape[:2] == real.shape else x.flatten(0, -2)).float()  # [N, n]
        rows[name] = _added(rows.get(name), here)


@contextlib.contextmanager
def _watched(
    model: torch.nn.Module, backbone: Backbone, names: Sequence[str], take: Callable[[str, str, torch.Tensor], None]
) -> Iterator[None]:
    """Inside, ``take`` gets every input of a merged linear layer: the tensor's name, that of the first that was given
    the very same, and the input."""
    last: list = [None, ""]  # the input that came last, and whose it was first

    def note(name: str, x: torch.Tensor) -> None:
        if x is not last[0]:
            last[:] = [x, name]
        take(name, last[1], x)

    modules, handles = dict(model.named_modules()), []
    for name in names:
        owner, _, kind = backbone.parameter_name(name).rpartition(".")
        layer = modules.get(owner)
        if kind == "weight" and isinstance(layer, torch.nn.Linear):
            handles.append(layer.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _added(rows: torch.Tensor | None, more: torch.Tensor) -> torch.Tensor:
    """R' [≤ n, n] with R'ᵀR' = RᵀR + XᵀX, of ``rows`` R and ``more`` X [N, n]."""
    together = more if rows is None else torch.cat([rows, more])
    return together if len(together) <= together.shape[1] else torch.linalg.qr(together, mode="r").R
