"""Checkpoints as lazily read safetensors: open a folder, check its headers (:mod:`emkit.saving` writes one).

A checkpoint's own code is never executed and pickled weights are refused: a pickle can run anything when loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from emkit import foreign
from emkit.blocks import in_blocks
from emkit.errors import UserError
from emkit.hashes import once, sha256_tensors
from emkit.shards import DTYPES, INDEX, SINGLE, TensorInfo

_ZOO = Path("results/zoo")  # of the repository, where commands are typed
Look = Callable[[str, torch.Tensor], None]
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# configuration, tokenizer, processor and chat template; never a card, a log or code
SIDE_FILES = (
    *("*config.json", "tokenizer*.json", "tokenizer.model*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*.json", "vocab*.txt", "vocab.bpe", "merges.txt", "chat_template*.jinja", "chat_template*.json"),
    *("*.model", "*.tiktoken"),
)


_CODE = re.compile(r"auto_map|_?(attn|experts)_implementation\w*")
TEMPLATES = "additional_chat_templates"  # a folder: the one that holds what belongs to a tokenizer


def copy_side_files(folder: Path, into: Path, wanted: Callable[[Path], bool] = lambda file: True) -> None:
    """Copy a model's configuration, tokenizer and templates that are ``wanted`` to ``into``.

    Configurations are written anew, without what chooses code (:func:`settings`). ``UserError`` for a file that leads
    out of the folder, or is no regular one.
    """
    for file in filter(wanted, side_files_in(folder)):
        foreign.check_inside(file, folder)
        copy = into / file.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        if file.match("*config.json"):
            text = json.dumps(settings(foreign.mapping(file)), indent=2, ensure_ascii=False)
            copy.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        else:
            copy.write_bytes(foreign.content(file))


def side_files_in(folder: Path) -> list[Path]:
    """The configuration, tokenizer, processor and templates of a model's folder."""
    files = {file for pattern in (*SIDE_FILES, f"{TEMPLATES}/*.jinja") for file in folder.glob(pattern)}
    return sorted(file for file in files if file.is_file())


def settings(found: Any) -> Any:
    """A configuration without what chooses code, at any depth: ``auto_map`` names files that a model made by emkit does
    not have, and the kernel of attention is whoever loads it to choose."""
    if isinstance(found, dict):
        return {key: settings(value) for key, value in found.items() if not _CODE.fullmatch(key)}
    return [settings(value) for value in found] if isinstance(found, list) else found


class Checkpoint:
    """The tensors of one folder, read one at a time (only headers are read on opening)."""

    def __init__(self, path: Path, files: dict[str, Path]):
        self.path = path
        self._files = files
        self._open: dict[Path, safe_open] = {}

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open a folder with ``model.safetensors`` or a sharded index; ``UserError`` for anything else.

        The order is transformers': a single file comes before an index. Where both are there and hold other weights,
        nobody can know which were meant (``UserError``).
        """
        path = Path(path)
        if not path.is_dir():
            how = "`git checkout results/zoo` brings the committed models back" if _ZOO in path.parents else ""
            raise UserError(f"no checkpoint at {path}: there is no such folder; {how or 'build or download it first'}")
        if (path / SINGLE).is_file():
            single = cls(path, dict.fromkeys(_reader(path / SINGLE).keys(), path / SINGLE))
            _check_one_set(path, single)
            return single
        if (path / INDEX).is_file():
            return cls(path, _indexed(path))
        pickled = sorted(file.name for file in path.iterdir() if file.suffix in PICKLED)
        if pickled:
            raise UserError(
                f"{path} holds pickled weights ({pickled[0]}), which emkit refuses because loading a pickle can run "
                "any code: convert them to safetensors first"
            )
        raise UserError(f"no checkpoint at {path}: neither {SINGLE} nor {INDEX} is in that folder")

    @property
    def configured(self) -> Path:
        """The folder with the configuration, tokenizer and templates that go with these tensors."""
        return self.path

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

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """The same checkpoint under other names: the key of ``names`` stands for the tensor stored as its value."""
        return Renamed(self, names)

    def with_side_files(self, folder: Path) -> Checkpoint:
        """The same tensors with the configuration, tokenizer and templates of another ``folder``."""
        return Beside(self, folder)

    def scan(self, where: str, look: Look | None = None) -> None:
        """Read every tensor once, for its hash, and raise ``UserError`` for NaN or infinity in one.

        ``look`` is shown each tensor by its name while it is at hand.
        """
        self.__dict__["_sha256"] = sha256_tensors(self._finite(where, look))

    def _finite(self, where: str, look: Look | None) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self.names:
            tensor = self.read(name)
            check_finite(name, tensor, where)
            if look is not None:
                look(name, tensor)
            yield name, tensor

    def identity(self) -> list[list]:
        """Path, size, time of change and inode of each file: other values where anybody may have put other weights.

        For telling whether a merge that was killed can go on; unlike :meth:`sha256` it reads nothing.
        """
        return file_identities(self._files.values())

    def sha256(self) -> str:
        """Hash over every tensor's name, dtype, shape and bytes: the same however the tensors are sharded.

        Large files are read for it once a machine (:mod:`emkit.hashes`).
        """
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        return once(self._files.values(), self.names, lambda: sha256_tensors((n, self.read(n)) for n in self.names))

    def _reader(self, name: str) -> safe_open:
        if name not in self._files:
            raise UserError(f"{self.path} has no tensor '{name}'")
        file = self._files[name]
        if file not in self._open:
            self._open[file] = _reader(file)
        return self._open[file]


class Renamed(Checkpoint):
    """A checkpoint read under other names; its hash stays that of what is stored."""

    def __init__(self, stored: Checkpoint, names: Mapping[str, str]):
        super().__init__(stored.path, {name: stored._files[own] for name, own in names.items()})
        self.stored, self._own = stored, dict(names)

    def info(self, name: str) -> TensorInfo:
        return self.stored.info(self._own[name])

    def read(self, name: str) -> torch.Tensor:
        return self.stored.read(self._own[name])

    def scan(self, where: str, look: Look | None = None) -> None:
        shown = {own: name for name, own in self._own.items()}
        self.stored.scan(where, None if look is None else lambda own, tensor: look(shown.get(own, own), tensor))

    def identity(self) -> list[list]:
        return self.stored.identity()

    def sha256(self) -> str:
        return self.stored.sha256()


class Beside(Checkpoint):
    """A checkpoint's tensors, however it makes them, beside the small files of another folder."""

    def __init__(self, stored: Checkpoint, folder: Path):
        super().__init__(folder, stored._files)
        self.stored = stored

    def info(self, name: str) -> TensorInfo:
        return self.stored.info(name)

    def read(self, name: str) -> torch.Tensor:
        return self.stored.read(name)

    def sha256(self) -> str:
        return self.stored.sha256()


def _reader(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}): download or build it again") from error


def file_identities(files: Iterable[Path]) -> list[list]:
    """[path, size, time of change, inode] of each file, sorted."""
    found = []
    for file in sorted({file.resolve() for file in files}):
        status = file.stat()
        found.append([str(file), status.st_size, status.st_mtime_ns, status.st_ino])
    return found


def _mapped(path: Path) -> dict[str, Path]:
    """Tensor name → shard, as the index says."""
    try:
        weight_map = foreign.mapping(path / INDEX)["weight_map"]
        return {str(name): path / Path(shard).name for name, shard in weight_map.items()}
    except (UserError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / INDEX} is not a safetensors index: download or build it again") from error


def _indexed(path: Path) -> dict[str, Path]:
    """Tensor name → shard of a sharded checkpoint, with every shard's header checked against the index."""
    files = _mapped(path)
    for shard in sorted(set(files.values())):
        if not shard.is_file():
            raise UserError(f"{path}: shard {shard.name}, which the index names, is missing; download it again")
        present = set(_reader(shard).keys())
        missing = sorted(name for name, file in files.items() if file == shard and name not in present)
        if missing:
            raise UserError(f"{path}: tensor '{missing[0]}' is in the index but not in {shard.name}; download it again")
    return files


def _check_one_set(path: Path, single: Checkpoint) -> None:
    """Raise ``UserError`` where an index beside ``model.safetensors`` leads to other weights.

    An index that cannot be read, whose shards are gone or are that very file leads nowhere else. Two copies of the
    same weights are compared to the last tensor: reading them is the only way to tell.
    """
    if not (path / INDEX).is_file():
        return
    try:
        sharded = Checkpoint(path, _indexed(path))
    except UserError:  # no second set, only what is left of one; transformers does not look at it either
        return
    if set(sharded._files.values()) == {path / SINGLE}:
        return
    same = single.names == sharded.names and all(single.info(n) == sharded.info(n) for n in single.names)
    if not same or not all(torch.equal(single.read(name), sharded.read(name)) for name in single.names):
        raise UserError(
            f"{path} holds two different sets of weights, {SINGLE} and the shards of {INDEX}; transformers would load "
            f"{SINGLE}: move away the set that is not meant"
        )


def check_same_headers(base: Checkpoint, other: Checkpoint, label: str, names: Iterable[str]) -> None:
    """Raise ``UserError`` unless ``other`` has the base's tensors ``names`` in the same shapes (dtypes may differ).

    These are the merged ones: a merge takes all others from the base, whatever another checkpoint has of them.
    """
    there = set(other.names)
    for name in names:
        if name not in there:
            unknown = sorted(there - set(base.names))
            stored = f" (it has '{unknown[0]}', which the base lacks)" if unknown else ""
            raise UserError(
                f"{label} ({other.path}) does not fit the base ({base.path}): it lacks '{name}', which is merged"
                + stored
            )
        ours, theirs = base.info(name).shape, other.info(name).shape
        if ours != theirs:
            raise UserError(
                f"{label} ({other.path}) does not fit the base ({base.path}): '{name}' has shape {list(theirs)}, "
                f"the base's has {list(ours)}"
            )


def check_finite(name: str, tensor: torch.Tensor, where: str) -> None:
    """Raise ``UserError`` naming the tensor when it holds NaN or infinity."""
    if tensor.is_floating_point() and not _is_finite(tensor.reshape(-1)):
        kind = "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
        raise UserError(f"{where}: tensor '{name}' contains {kind}; nothing was written")


def _is_finite(flat: torch.Tensor) -> bool:
    extremes = []  # a NaN is smaller and larger than anything else

    def look(start: int, stop: int) -> None:
        extremes.extend(torch.aminmax(flat[start:stop]))

    in_blocks(len(flat), 1, flat.device, look)
    return all(math.isfinite(float(value)) for value in extremes)
