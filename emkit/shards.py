"""Safetensors shards that are written tensor by tensor, as each is computed: headers first, nothing held back.

Names, dtypes and shapes are known before the first tensor is, so the shards can be planned and their headers written
at once; memory holds one tensor at a time, whatever the size of a shard.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from emkit.disk import sync
from emkit.files import read_json, read_kept, sha256_file, write_json
from emkit.progress import report

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
WRITTEN = ".written.json"  # in a folder that is being written: the hash of each finished shard
# in the order in which safetensors stores them: larger alignment first
DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor: ``dtype`` as torch calls it, ``shape``."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as it is stored."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A file of a checkpoint and the tensors that it will hold."""

    file: str
    tensors: Mapping[str, TensorInfo]

    @cached_property
    def order(self) -> list[str]:
        """Names in the order in which safetensors itself stores them: by dtype, then by name."""
        return sorted(self.tensors, key=lambda name: (_RANK[self.tensors[name].dtype], name))

    @cached_property
    def header(self) -> bytes:
        """Length and header, as safetensors itself writes them."""
        entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name in self.order:
            info = self.tensors[name]
            stop = start + info.nbytes
            entries[name] = {"dtype": _CODES[info.dtype], "shape": list(info.shape), "data_offsets": [start, stop]}
            start = stop
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return len(self.header) + sum(info.nbytes for info in self.tensors.values())

    def is_in(self, folder: Path) -> bool:
        """Whether ``folder`` has the file as it was written: with the header of these very tensors, and its hash."""
        path, written = folder / self.file, _written(folder).get(self.file)
        if written is None or not path.is_file() or path.is_symlink() or path.stat().st_size != self.nbytes:
            return False
        with open(path, "rb") as file:
            if file.read(len(self.header)) != self.header:
                return False
        return sha256_file(path) == written

    def write(self, folder: Path, tensors: Callable[[str], torch.Tensor]) -> None:
        """Write the file, each tensor as soon as ``tensors`` has made it; it takes its name when it is whole, on the
        disk, and its hash is recorded."""
        part, digest = folder / f"{self.file}.part", hashlib.sha256(self.header)
        part.unlink(missing_ok=True)  # a link there would lead the bytes elsewhere
        try:
            with open(part, "xb") as file:
                file.write(self.header)
                for number, name in enumerate(self.order, 1):
                    report(f"{self.file}, tensor", number, len(self.order))
                    tensor = tensors(name)
                    _check(name, tensor, self.tensors[name])
                    made = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                    digest.update(made)
                    file.write(made)
                file.flush()
                os.fsync(file.fileno())
            write_json(folder / WRITTEN, _written(folder) | {self.file: digest.hexdigest()})
            part.rename(folder / self.file)
            sync(folder)
        finally:
            part.unlink(missing_ok=True)


def _written(folder: Path) -> dict[str, str]:
    """File → hash of the shards that were finished in a folder."""
    found = read_kept(folder / WRITTEN, read_json)
    return found if isinstance(found, dict) else {}


def _check(name: str, tensor: torch.Tensor, info: TensorInfo) -> None:
    if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
        raise ValueError(f"'{name}' is {tensor.dtype} {tuple(tensor.shape)}, not {info.dtype} {info.shape}")


def plan(tensors: Mapping[str, TensorInfo], shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Shards of at most ``shard_bytes`` of tensors each (a larger tensor has one to itself), filled by sorted name."""
    groups: list[dict[str, TensorInfo]] = [{}]
    filled = 0
    for name in sorted(tensors):
        if groups[-1] and filled + tensors[name].nbytes > shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = tensors[name]
        filled += tensors[name].nbytes
    if len(groups) == 1:
        return [Shard(SINGLE, groups[0])]
    return [Shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", group) for i, group in enumerate(groups, 1)]


def write(
    folder: Path, shards: Sequence[Shard], tensors: Callable[[str], torch.Tensor], keep_record: bool = False
) -> None:
    """Write the shards that ``folder`` does not have yet, and the index if there are several.

    ``tensors`` makes the tensor of a name; it is called for the tensors of unfinished shards alone, once each.
    ``keep_record``: leave the hashes of the shards (:data:`WRITTEN`) to whoever has more to do before the folder is
    finished. ``ValueError`` for another dtype or shape than planned.
    """
    for shard in shards:
        if not shard.is_in(folder):
            shard.write(folder, tensors)
    if not keep_record:
        (folder / WRITTEN).unlink(missing_ok=True)
    if len(shards) > 1:
        weight_map = {name: shard.file for shard in shards for name in shard.tensors}
        total = sum(info.nbytes for shard in shards for info in shard.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, sort_keys=True, indent=1) + "\n", encoding="utf-8")
