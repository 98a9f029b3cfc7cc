"""What is kept between runs and believed by its hash: a folder, tensors in a file, a JSON value.

A disk that zeroes a block, or somebody who changes a digit, must not change a later result in silence: what does not
have the hash that was written with it counts as not kept, after a line on stderr (:func:`emkit.files.read_kept`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from emkit.files import atomic_dir, atomic_write, read_json, read_kept, sha256_file, sha256_json, write_json
from emkit.hashes import sha256_tensors

T = TypeVar("T")
SEAL = ".sealed.json"  # in a kept folder: the hash of every other file


class Broken(Exception):
    """Kept bytes are not those that were written."""


@contextlib.contextmanager
def sealed_dir(path: Path) -> Iterator[Path]:
    """A folder as :func:`emkit.files.atomic_dir` makes it, with the hashes of its files."""
    with atomic_dir(path) as part:
        yield part
        write_json(part / SEAL, hashes(part))


def read_dir(path: Path, read: Callable[[Path], T]) -> T | None:
    """``read(path)`` of a sealed folder; None where there is none, or it is not what was written."""

    def checked(folder: Path) -> T:
        if read_json(folder / SEAL) != hashes(folder):
            raise Broken("its files are not those that were written")
        return read(folder)

    return read_kept(path, checked)


def hashes(folder: Path, but: Collection[str] = (SEAL,), of: Callable[[Path], str] = sha256_file) -> dict[str, str]:
    """File → hash of everything in a folder but files of these names; ``of`` makes the hash."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in but)
    return {str(file.relative_to(folder)): of(file) for file in files}


def write_value(path: Path, value: Any) -> None:
    """A JSON value with its hash."""
    write_json(path, {"sha256": sha256_json(value), "value": value})


def read_value(path: Path) -> Any:
    """The value; None where there is none, or it is not what was written."""

    def checked(file: Path) -> Any:
        found = read_json(file)
        if sha256_json(found["value"]) != found["sha256"]:
            raise Broken("it does not have the hash that was written with it")
        return found["value"]

    return read_kept(path, checked)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file with the hash of its tensors."""
    with atomic_write(path) as part:
        save_file(tensors, part, metadata={"sha256": sha256_tensors(sorted(tensors.items()))})


def read_tensors(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors; None where there are none, or they are not what was written."""

    def checked(file: Path) -> dict[str, torch.Tensor]:
        with safe_open(file, framework="pt") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            written = (opened.metadata() or {}).get("sha256")
        if sha256_tensors(sorted(found.items())) != written:
            raise Broken("its tensors are not those that were written")
        return found

    return read_kept(path, checked)
