"""Where θ_base and the task vectors of a fit live: on the device, in host memory, or in the memory-mapped files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from emkit.alignment.arithmetic import Rows
from emkit.alignment.memory import MOVING, available, fixed_bytes, held_bytes, moving_bytes, pinned_bytes, room
from emkit.alignment.options import EngineOptions
from emkit.alignment.prefetch import Prefetch
from emkit.errors import UserError
from emkit.task_vectors import TaskVectors, Transformed


class Placement:
    """Gives one tensor's :class:`Rows` on ``device`` at a time; ``kind`` says from where.

    Every placement has the same numbers. What is not on the device already is copied there for one tensor, and the
    tensor that is likely next is copied meanwhile (CUDA). The host waits until the tensor before the last one is done
    with, so that it does not run ahead of the GPU and copies do not pile up: there are at most
    :data:`emkit.alignment.memory.MOVING` times K + 1 tensors. On the CPU nothing is copied.
    """

    kind = "files"

    def __init__(self, task_vectors: TaskVectors, device: torch.device | str):
        self.task_vectors, self.device = task_vectors, torch.device(device)
        self.names, self.experts = list(task_vectors.names), tuple(task_vectors.experts)
        self._moved = Prefetch(self._copied)
        self._used: deque = deque()  # events: a tensor's last use was queued before

    def rows(self, name: str) -> Rows:
        """θ_base and K vectors of one tensor, flattened, on the device; good until the next call."""
        if self.device.type != "cuda":
            return self.stored(name)
        current = torch.cuda.current_stream(self.device)
        self._used.append(current.record_event())
        if len(self._used) > MOVING - 2:
            self._used.popleft().synchronize()
        rows, arrived = self._moved.take(name)
        current.wait_event(arrived)
        for tensor in (rows.base, *rows.vectors):
            tensor.record_stream(current)
        return rows

    def stored(self, name: str) -> Rows:
        """The tensor where it lives."""
        vectors = self.task_vectors
        base = vectors.base.read(name).reshape(-1)
        if isinstance(vectors, Transformed):
            return Rows(base, [tau.reshape(-1) for tau in vectors.taus(name)], given=True)
        return Rows(base, [expert.read(name).reshape(-1) for expert in vectors.checkpoints.values()], given=False)

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

    def __init__(self, task_vectors: TaskVectors, device: torch.device | str):
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

    def __init__(self, task_vectors: TaskVectors, device: torch.device | str, wide: torch.dtype | None):
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


def _tau(rows: Rows, vector: torch.Tensor, base: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    tau = vector.to(base.device).to(wide, copy=True)  # sent as stored: half of what fp32 would take on its way
    return tau if rows.given else tau.sub_(base.to(wide))


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_pinned() else tensor.contiguous().pin_memory()


def wide_dtype(model: torch.nn.Module) -> torch.dtype:
    """In what sums over task vectors are taken: float64 for a float64 model, else fp32."""
    return torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32


def place(task_vectors: TaskVectors, model: torch.nn.Module, options: EngineOptions) -> Placement:
    """The fastest placement that ``options.memory`` and the device allow, or the one that ``options.place`` names.

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
    there = [amount for amount in (options.memory, room(device)) if amount is not None]
    if options.place not in (None, "device") or not there:
        return plans[options.place or "device"]()
    sizes = {"device": held_bytes(task_vectors, wide), "stored": held_bytes(task_vectors, None)}
    fixed, moving = fixed_bytes(task_vectors, model, options, wide), 0
    if device.type == "cuda":
        sizes["host"], moving = pinned_bytes(task_vectors), moving_bytes(task_vectors)
    name = fastest(sizes, fixed, moving, min(there), available())
    if options.place == "device" and name not in ("device", "stored"):
        raise UserError("the task vectors do not fit the device (or --memory): leave out --place")
    return plans[name]()


def fastest(sizes: dict[str, int], fixed: int, moving: int, memory: int, host: int | None) -> str:
    """The first placement of ``sizes`` (bytes, the fastest first) that there is room for: beside ``fixed`` bytes in
    ``memory``, or, for "host", in what the host has (None: unknown); "files" where there is none.

    ``UserError`` if ``fixed``, with ``moving`` where task vectors are streamed, is more than ``memory``.
    """
    for name, size in sizes.items():
        if name != "host" and fixed + size <= memory:
            return name
    if fixed + moving > memory:
        raise UserError(
            f"the model and its activations need about {(fixed + moving) / 2**30:.1f} GiB, there are "
            f"{memory / 2**30:.1f} GiB (by --memory, or on the device): give more, or fewer tokens at a time "
            "(--micro-tokens), or --checkpointing"
        )
    return "host" if "host" in sizes and (host is None or sizes["host"] <= host) else "files"
