"""Where θ_base and the task vectors of a fit live: on the device, in host memory, or in the memory-mapped files."""

from __future__ import annotations

from collections.abc import Callable

import torch

from emkit.engine.arithmetic import BLOCK, Rows
from emkit.engine.options import EngineOptions, activation_bytes, model_bytes
from emkit.errors import UserError
from emkit.task_vectors import TaskVectors
from emkit.transforms import View


class Placement:
    """Gives one tensor's :class:`Rows` on ``device`` at a time; ``kind`` says from where.

    Making one reads every tensor once, for NaN and infinity (``UserError``). Every placement has the same numbers.
    What is not on the device already is copied there for one tensor, and the tensor that came next the last time is
    copied meanwhile (CUDA). That takes twice K + 1 tensors of memory; on the CPU nothing is copied.
    """

    kind = "files"

    def __init__(self, task_vectors: TaskVectors | View, device: torch.device | str):
        self.task_vectors, self.device = task_vectors, torch.device(device)
        self.names, self.experts = list(task_vectors.names), tuple(task_vectors.experts)
        self._next: dict[str, str] = {}  # name → the name that followed it
        self._last: str | None = None
        self._ahead: tuple[str, Rows, object] | None = None
        for name in self.names:
            _check(task_vectors, name)

    def rows(self, name: str) -> Rows:
        """θ_base and K vectors of one tensor, flattened, on the device; good until the next call."""
        if self.device.type != "cuda":
            return self.stored(name)
        if self._last is not None:
            self._next[self._last] = name
        self._last = name
        rows = self._taken(name)
        following = self._next.get(name)
        if following is not None:
            self._ahead = (following, *self._copied(following))
        return rows

    def stored(self, name: str) -> Rows:
        """The tensor where it lives."""
        vectors = self.task_vectors
        base = vectors.base.read(name).reshape(-1)
        if isinstance(vectors, View):
            return Rows(base, [tau.reshape(-1) for tau in vectors.taus(name)], given=True)
        return Rows(base, [expert.read(name).reshape(-1) for expert in vectors.checkpoints.values()], given=False)

    def _taken(self, name: str) -> Rows:
        if self._ahead is not None and self._ahead[0] == name:
            _, rows, event = self._ahead
        else:
            rows, event = self._copied(name)
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        for tensor in (rows.base, *rows.vectors):
            tensor.record_stream(current)
        return rows

    def _copied(self, name: str) -> tuple[Rows, object]:
        """The tensor on its way to the device, on a stream of its own, and the event of its arrival."""
        stored = self.stored(name)
        if not hasattr(self, "_stream"):
            self._stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            moved = [_pinned(t).to(self.device, non_blocking=True) for t in (stored.base, *stored.vectors)]
            event = self._stream.record_event()
        return Rows(moved[0], moved[1:], stored.given), event


class InHost(Placement):
    """All of it in host memory, pinned where the device is a GPU, as stored."""

    kind = "host"

    def __init__(self, task_vectors: TaskVectors | View, device: torch.device | str):
        super().__init__(task_vectors, device)
        keep: Callable = _pinned if self.device.type == "cuda" else torch.clone
        self._held = {}
        for name in self.names:
            rows = super().stored(name)
            self._held[name] = Rows(keep(rows.base), [keep(vector) for vector in rows.vectors], rows.given)

    def stored(self, name: str) -> Rows:
        return self._held[name]


class OnDevice(Placement):
    """All of it on the device: τ_k as ``wide`` numbers where ``wide`` is given, else θ_k as stored."""

    kind = "device"

    def __init__(self, task_vectors: TaskVectors | View, device: torch.device | str, wide: torch.dtype | None):
        super().__init__(task_vectors, device)
        self.wide = wide
        self._held = {}
        for name in self.names:
            rows = super().stored(name)
            base = rows.base.to(self.device, copy=True)
            if wide is None:
                vectors, given = [vector.to(self.device, copy=True) for vector in rows.vectors], rows.given
            else:
                vectors, given = [_tau(rows, vector, base, wide) for vector in rows.vectors], True
            self._held[name] = Rows(base, vectors, given)

    def rows(self, name: str) -> Rows:
        return self._held[name]

    stored = rows


def _check(task_vectors: TaskVectors | View, name: str) -> None:
    """``UserError`` where a tensor of the base or an expert is not finite."""
    if isinstance(task_vectors, View):
        _check(task_vectors.inner, name)
    else:
        task_vectors.read(name)


def _tau(rows: Rows, vector: torch.Tensor, base: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    tau = vector.to(base.device, wide, copy=True)
    return tau if rows.given else tau.sub_(base.to(wide))


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_pinned() else tensor.contiguous().pin_memory()


def wide_dtype(model: torch.nn.Module) -> torch.dtype:
    """In what sums over task vectors are taken: float64 for a float64 model, else fp32."""
    return torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32


def place(task_vectors: TaskVectors | View, model: torch.nn.Module, options: EngineOptions) -> Placement:
    """The fastest placement that ``options.memory`` allows, or the one that ``options.place`` names.

    On the device as fp32 task vectors; on the device as stored; in host memory (a GPU's); else from the files. On the
    CPU device and host memory are one. ``UserError`` where not even the model fits.
    """
    device, wide = next(model.parameters()).device, wide_dtype(model)
    plans: dict[str, Callable[[], Placement]] = {
        "device": lambda: OnDevice(task_vectors, device, wide),
        "stored": lambda: OnDevice(task_vectors, device, None),
        "host": lambda: InHost(task_vectors, device),
        "files": lambda: Placement(task_vectors, device),
    }
    if options.place is not None and (options.memory is None or options.place != "device"):
        return plans[options.place]()
    if options.memory is None:
        return plans["device"]()
    free = options.memory - fixed_bytes(task_vectors, model, options, wide)
    if free < 0:
        raise UserError(
            f"the model and its activations need about {(options.memory - free) / 2**30:.1f} GiB, --memory gives "
            f"{options.memory / 2**30:.1f} GiB: give more, or fewer tokens at a time (--micro-tokens), or "
            "--checkpointing"
        )
    sizes = {"device": held_bytes(task_vectors, wide), "stored": held_bytes(task_vectors, None)}
    for name, size in sizes.items():
        if size <= free:
            return plans[name]()
    if options.place == "device":
        raise UserError("the task vectors do not fit the device in --memory: leave out --place")
    return plans["host" if device.type == "cuda" else "files"]()


def held_bytes(task_vectors: TaskVectors | View, wide: torch.dtype | None) -> int:
    """Bytes of θ_base as stored and K task vectors in ``wide`` (None: K experts as stored)."""
    total = 0
    for name in task_vectors.names:
        total += task_vectors.base.info(name).nbytes
        if wide is None and not isinstance(task_vectors, View):
            total += sum(expert.info(name).nbytes for expert in task_vectors.checkpoints.values())
        else:
            total += task_vectors.numel(name) * len(task_vectors.experts) * (wide or torch.float32).itemsize
    return total


def fixed_bytes(task_vectors: TaskVectors | View, model, options: EngineOptions, wide: torch.dtype) -> int:
    """What a fit needs besides resident task vectors: the model, activations, one gradient, working blocks, and on a
    GPU two tensors with all their vectors on their way."""
    device = next(model.parameters()).device
    largest = max(task_vectors.numel(name) for name in task_vectors.names)
    moving = 2 * (len(task_vectors.experts) + 1) * largest * 2 if device.type == "cuda" else 0
    blocks = 4 * BLOCK.get(device.type, BLOCK["cuda"]) * wide.itemsize
    gradient = largest * next(model.parameters()).element_size()
    return model_bytes(model) + activation_bytes(model, options) + gradient + blocks + moving
