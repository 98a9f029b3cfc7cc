"""What a fit needs of a device's and of the host's memory, estimated, and what there is."""

from __future__ import annotations

from pathlib import Path

import torch

from emkit.alignment.arithmetic import BLOCK
from emkit.alignment.objectives import HELD
from emkit.alignment.options import EngineOptions
from emkit.task_vectors import TaskVectors, Transformed

# floats that a block keeps for each token and unit of width until its backward: inputs of norms, matrices, attention
# and of the gated activation (three times about three widths), as Llama-like blocks have them
KEPT_PER_WIDTH = 22
PASSING_PER_WIDTH = 10  # gradients within one block's backward, and what norms keep in fp32
LOGIT_BLOCKS = 8  # of HELD fp32 numbers: both models' logits, their logarithms and products
MOVING = 3  # tensors with all their vectors on a GPU at a time: in use, the next one, and one not yet let go
GPU_OWN = 2**30  # what a GPU's context, its libraries' workspaces and fragmentation take


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def activation_bytes(model: torch.nn.Module, options: EngineOptions) -> int:
    """About what one micro-batch keeps for its backward (an estimate from width, blocks and tokens).

    A single sequence of more than ``micro_tokens`` takes more.
    """
    config = model.config.get_text_config() if hasattr(model, "config") else None
    if config is None:
        return 0
    per_block = options.micro_tokens * config.hidden_size * next(model.parameters()).element_size()
    blocks, kept = config.num_hidden_layers, KEPT_PER_WIDTH * per_block
    return PASSING_PER_WIDTH * per_block + (blocks * per_block + kept if options.checkpointing else blocks * kept)


def held_bytes(task_vectors: TaskVectors, wide: torch.dtype | None) -> int:
    """Bytes of θ_base as stored and K task vectors in ``wide`` (None: K experts as stored)."""
    return sum(sum(_sizes(task_vectors, name, wide)) for name in task_vectors.names)


def pinned_bytes(task_vectors: TaskVectors) -> int:
    """Bytes of host memory that all of it takes as stored and pinned: each tensor the next power of two."""
    return sum(1 << (size - 1).bit_length() for name in task_vectors.names for size in _sizes(task_vectors, name, None))


def _sizes(task_vectors: TaskVectors, name: str, wide: torch.dtype | None) -> list[int]:
    """Bytes of one tensor of θ_base as stored, and of each expert's vector."""
    base = task_vectors.base.info(name).nbytes
    if wide is None and not isinstance(task_vectors, Transformed):
        return [base, *(expert.info(name).nbytes for expert in task_vectors.checkpoints.values())]
    vector = task_vectors.numel(name) * (wide or torch.float32).itemsize
    return [base] + [vector] * len(task_vectors.experts)


def fixed_bytes(
    task_vectors: TaskVectors, model, options: EngineOptions, wide: torch.dtype, device: str | None = None
) -> int:
    """What a fit needs besides task vectors: the model, activations, logits, one gradient, working blocks, and on a GPU
    an expert's head and what the GPU takes for itself. ``device``: where, if not where the model is."""
    device = device or next(model.parameters()).device.type
    largest = max(task_vectors.numel(name) for name in task_vectors.names)
    gradient = largest * next(model.parameters()).element_size()
    needed = model_bytes(model) + activation_bytes(model, options) + gradient
    needed += 4 * BLOCK.get(device, BLOCK["cuda"]) * wide.itemsize
    needed += LOGIT_BLOCKS * HELD.get(device, HELD["cuda"]) * wide.itemsize
    return needed + (_head_bytes(model) + GPU_OWN if device == "cuda" else 0)


def gpu_bytes(task_vectors: TaskVectors, outline, options: EngineOptions) -> int:
    """The least that a fit takes of a GPU, its task vectors streamed; ``outline`` is the model in the dtype of the fit,
    on the meta device where it is only to be told."""
    return fixed_bytes(task_vectors, outline, options, torch.float32, "cuda") + moving_bytes(task_vectors)


def moving_bytes(task_vectors: TaskVectors) -> int:
    """What streamed task vectors take on a GPU: the largest tensor with all its vectors, :data:`MOVING` times."""
    return MOVING * max(sum(_sizes(task_vectors, name, None)) for name in task_vectors.names)


def _head_bytes(model) -> int:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return 0 if head is None else sum(parameter.nbytes for parameter in head.parameters())


def room(device: torch.device) -> int | None:
    """Bytes that this process may take on a GPU, what it has already included; None on the CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def available() -> int | None:
    """Bytes of host memory that can be had without swapping, on Linux: the machine's, or what a control group (a
    container) leaves of its limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*found, *_left_in_group()], default=None)


def _left_in_group(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What a limit on memory leaves, if there is one (version 2 of control groups, as a container sees its own)."""
    try:
        limit, used = ((folder / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        return [max(0, int(limit) - int(used))]
    except (OSError, ValueError):  # no such file, or "max"
        return []
