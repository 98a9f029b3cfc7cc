"""Checkpoints as lazily read safetensors: open a folder, check its headers, write a merged one.

A checkpoint's own code is never executed and pickled weights are refused: a pickle can run anything when loaded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from emkit.errors import UserError
from emkit.files import atomic_dir, unwritable

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# configuration, tokenizer, processor and chat template; never a card, a log or code
SIDE_FILES = (
    *("*config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*", "merges.txt", "chat_template*", "*.model"),
)
SHARD_BYTES = 5 * 10**9
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor: ``dtype`` as torch calls it, ``shape``."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Checkpoint:
    """The tensors of one folder, read one at a time (only headers are read on opening)."""

    def __init__(self, path: Path, files: dict[str, Path]):
        self.path = path
        self._files = files
        self._open: dict[Path, safe_open] = {}

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open a folder with ``model.safetensors`` or a sharded index; ``UserError`` for anything else."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"no checkpoint at {path}: there is no such folder; build or download it first")
        if (path / INDEX).is_file():
            return cls(path, _indexed(path))
        if (path / SINGLE).is_file():
            return cls(path, dict.fromkeys(_reader(path / SINGLE).keys(), path / SINGLE))
        pickled = sorted(file.name for file in path.iterdir() if file.suffix in PICKLED)
        if pickled:
            raise UserError(
                f"{path} holds pickled weights ({pickled[0]}), which emkit refuses because loading a pickle can run "
                "any code: convert them to safetensors first"
            )
        raise UserError(f"no checkpoint at {path}: neither {SINGLE} nor {INDEX} is in that folder")

    @property
    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self._files)

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape of a tensor, from the header."""
        found = self._reader(name).get_slice(name)
        if found.get_dtype() not in DTYPES:
            raise UserError(f"{self.path}: tensor '{name}' has the unsupported dtype {found.get_dtype()}")
        return TensorInfo(DTYPES[found.get_dtype()], tuple(found.get_shape()))

    def read(self, name: str) -> torch.Tensor:
        """A tensor as it is stored (CPU)."""
        return self._reader(name).get_tensor(name)

    def without(self, names: Iterable[str]) -> Checkpoint:
        """The same checkpoint as if it did not have the tensors ``names``."""
        dropped = set(names)
        return Checkpoint(self.path, {name: file for name, file in self._files.items() if name not in dropped})

    def with_side_files(self, folder: Path) -> Checkpoint:
        """The same tensors with the configuration, tokenizer and templates of another ``folder``."""
        return Checkpoint(folder, self._files)

    def scan(self, where: str) -> None:
        """Read every tensor once, for its hash, and raise ``UserError`` for NaN or infinity in one."""
        self.__dict__["_sha256"] = sha256_tensors(self._finite(where))

    def _finite(self, where: str) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self.names:
            tensor = self.read(name)
            check_finite(name, tensor, where)
            yield name, tensor

    def sha256(self) -> str:
        """Hash over every tensor's name, dtype, shape and bytes: the same however the tensors are sharded."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        return sha256_tensors((name, self.read(name)) for name in self.names)

    def _reader(self, name: str) -> safe_open:
        if name not in self._files:
            raise UserError(f"{self.path} has no tensor '{name}'")
        file = self._files[name]
        if file not in self._open:
            self._open[file] = _reader(file)
        return self._open[file]


def _reader(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}): download or build it again") from error


def sha256_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hex SHA-256 over name, dtype, shape and bytes of each tensor, in the order given."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _indexed(path: Path) -> dict[str, Path]:
    """Tensor name → shard of a sharded checkpoint, with every shard's header checked against the index."""
    try:
        weight_map = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): path / Path(shard).name for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / INDEX} is not a safetensors index: download or build it again") from error
    for shard in sorted(set(files.values())):
        if not shard.is_file():
            raise UserError(f"{path}: shard {shard.name}, which the index names, is missing; download it again")
        present = set(_reader(shard).keys())
        missing = sorted(name for name, file in files.items() if file == shard and name not in present)
        if missing:
            raise UserError(f"{path}: tensor '{missing[0]}' is in the index but not in {shard.name}; download it again")
    return files


def check_same_headers(base: Checkpoint, other: Checkpoint, label: str) -> None:
    """Raise ``UserError`` unless ``other`` has the base's tensor names and shapes (dtypes may differ)."""
    if base.names != other.names:
        missing, extra = sorted(set(base.names) - set(other.names)), sorted(set(other.names) - set(base.names))
        what = f"lacks '{missing[0]}'" if missing else f"has '{extra[0]}', which the base lacks"
        raise UserError(f"{label} ({other.path}) does not fit the base ({base.path}): it {what}; was it made from it?")
    for name in base.names:
        ours, theirs = base.info(name).shape, other.info(name).shape
        if ours != theirs:
            raise UserError(
                f"{label} ({other.path}) does not fit the base ({base.path}): '{name}' has shape {list(theirs)}, "
                f"the base's has {list(ours)}"
            )


def check_finite(name: str, tensor: torch.Tensor, where: str) -> None:
    """Raise ``UserError`` naming the tensor when it holds NaN or infinity."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        kind = "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
        raise UserError(f"{where}: tensor '{name}' contains {kind}; nothing was written")


def write_checkpoint(
    out: str | Path, tensors: Iterable[tuple[str, torch.Tensor]], like: Checkpoint, card: str | None = None
) -> None:
    """Write ``tensors`` as a checkpoint folder ``out`` with the configuration, tokenizer and templates of ``like``.

    Tensors are taken one at a time and must be exactly those of ``like`` in name, shape and dtype (``ValueError``),
    and finite (``UserError``). ``card`` becomes README.md. The folder appears whole or not at all.
    """
    out = Path(out)
    with atomic_dir(out) as part:
        for file in sorted(like.path.iterdir()):
            if file.is_file() and any(file.match(pattern) for pattern in SIDE_FILES):
                shutil.copyfile(file, part / file.name)
        if card is not None:
            (part / "README.md").write_text(card, encoding="utf-8")
        shards: list[list[str]] = []
        held: dict[str, torch.Tensor] = {}
        for name, tensor in tensors:
            _check_like(name, tensor, like)
            check_finite(name, tensor, str(out))
            if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > SHARD_BYTES:
                shards.append(_write_shard(part, len(shards), held))
                held = {}
            held[name] = tensor.detach().cpu().contiguous()
        shards.append(_write_shard(part, len(shards), held))
        written = [name for shard in shards for name in shard]
        if sorted(written) != like.names:
            raise ValueError(f"{out}: {len(written)} tensors given, {len(like.names)} wanted, or one given twice")
        _name_shards(part, shards, like)


def _check_like(name: str, tensor: torch.Tensor, like: Checkpoint) -> None:
    info = like.info(name)
    if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
        raise ValueError(f"'{name}' is {tensor.dtype} {tuple(tensor.shape)}, not {info.dtype} {info.shape}")


def _write_shard(part: Path, number: int, tensors: dict[str, torch.Tensor]) -> list[str]:
    file = part / f"shard-{number}"
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:  # safetensors wraps the system's error ("… No space left on device …")
        raise unwritable(part, OSError(None, str(error))) from error
    return list(tensors)


def _name_shards(part: Path, shards: list[list[str]], like: Checkpoint) -> None:
    """Give the shards their final names, now that their number is known, and write the index."""
    if len(shards) == 1:
        (part / "shard-0").rename(part / SINGLE)
        return
    final = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for i, name in enumerate(final):
        (part / f"shard-{i}").rename(part / name)
    weight_map = {name: file for file, names in zip(final, shards, strict=True) for name in names}
    total = sum(like.read(name).nbytes for name in weight_map)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (part / INDEX).write_text(json.dumps(index, sort_keys=True, indent=1) + "\n", encoding="utf-8")
