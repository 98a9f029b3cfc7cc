"""Hashes of tensors; those of large files are computed once, as reading 15 GB for every row of a table takes longer
than some rows do."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from emkit.disk import user_cache
from emkit.errors import UserError
from emkit.files import read_json, read_kept, sha256_json, write_json

FORMAT = 1  # of what is hashed, and how
LARGE = 2**30  # bytes; what is smaller is read each time


def once(files: Iterable[Path], about: Sequence[str], make: Callable[[], str]) -> str:
    """``make()``, a hash of ``files`` and of what ``about`` says of them; of large files as it was computed before.

    A file counts as the same for as long as its path, size, inode, and the times of its last change and of its inode's
    are the same, as git has it with its index: whoever writes to it changes one of them.
    """
    states = [(file, file.stat()) for file in sorted({file.resolve() for file in files})]
    if sum(state.st_size for _, state in states) < LARGE:
        return make()
    seen = [[str(file), state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns] for file, state in states]
    path = user_cache() / "hashes" / f"{sha256_json([FORMAT, seen, list(about)])}.json"
    found = read_kept(path, read_json)
    if isinstance(found, str) and re.fullmatch(r"[0-9a-f]{64}", found):
        return found
    made = make()
    with contextlib.suppress(UserError):  # a home that cannot be written to costs time, no more
        write_json(path, made)
    return made


def sha256_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hex SHA-256 over name, dtype, shape and bytes of each tensor, in the order given."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
