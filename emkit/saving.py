"""Writing a merged model as a checkpoint folder, tensor by tensor, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from emkit import shards
from emkit.checkpoints import Checkpoint, check_finite, copy_side_files
from emkit.files import PLAN, atomic_dir, keep_only, resumable_dir, sha256_json
from emkit.shards import SHARD_BYTES, Shard


def write_checkpoint(
    out: str | Path,
    tensors: Callable[[str], torch.Tensor],
    like: Checkpoint,
    card: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    key: str | None = None,
    finish: Callable[[Path], None] | None = None,
    allowed: Callable[[], None] | None = None,
) -> None:
    """Write a checkpoint folder ``out`` with the configuration, tokenizer and templates of ``like``.

    ``tensors`` makes the tensor of a name of ``like``, which must have the dtype and shape it has there
    (``ValueError``) and be finite (``UserError``). It is called once for each, in the order in which they are stored,
    and each is written before the next is made. ``card`` becomes README.md, ``shard_bytes`` bounds a file's tensors.
    The folder appears whole or not at all.

    ``key`` names everything that the tensors depend on. With it, a killed run's finished shards are found again by a
    run with the same key, which calls ``tensors`` for the others alone (see :func:`emkit.files.resumable_dir`).

    ``finish`` is called with the whole folder before it has its name, to check it and to add to it. ``allowed``, which
    only a run with a key can have, is called last, as described there.
    """
    if allowed is not None and key is None:
        raise ValueError("only a folder with a key can be kept when it may not take its name")
    out = Path(out)
    planned = shards.plan({name: like.info(name) for name in like.names}, shard_bytes)

    def checked(name: str) -> torch.Tensor:
        tensor = tensors(name)
        check_finite(name, tensor, str(out))
        return tensor

    with atomic_dir(out) if key is None else resumable_dir(out, _written_key(key, planned), allowed) as part:
        keep_only(part, {PLAN, shards.WRITTEN, *(shard.file for shard in planned)})
        shards.write(part, planned, checked, keep_record=True)  # the checks below may be interrupted
        copy_side_files(like.configured, part)
        if card is not None:
            (part / "README.md").write_text(card, encoding="utf-8")
        if finish is not None:
            finish(part)
    (out / shards.WRITTEN).unlink(missing_ok=True)  # not before: until the folder has its name it may be gone on with


def _written_key(key: str, planned: Sequence[Shard]) -> str:
    """``key`` and the files' layout."""
    return sha256_json([key, [[shard.file, shard.header.hex()] for shard in planned]])
