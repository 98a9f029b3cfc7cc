"""The one merge job, of a table's row and of one's own models: run a method, write the model, keep what was learned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emkit.alignment.learner import Learned
from emkit.checkpoints import Checkpoint
from emkit.content import processor
from emkit.determinism import deterministic
from emkit.errors import UserError
from emkit.files import sha256_json, write_json
from emkit.imports import SILENT, code_sha256
from emkit.merging import Context, Merge
from emkit.methods import Method
from emkit.saving import write_checkpoint
from emkit.shards import SHARD_BYTES


@dataclass(frozen=True)
class Job:
    """A method, and everything that it runs with."""

    method: Method
    context: Context

    def run(self) -> Merge:
        """The merge: tensors are made when they are asked for, coefficients are fitted now.

        ``UserError`` where that takes more memory than a device has.
        """
        with self._on_the_device():
            return self.method.run(self.context)

    @contextlib.contextmanager
    def _on_the_device(self) -> Iterator[None]:
        """Deterministic kernels; one line where memory runs out."""
        try:
            with deterministic():
                yield
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {self.context.device}: a fit takes less with --dtype bfloat16, --checkpointing or "
                "fewer --micro-tokens (of a table's profile: `fits`), a merge by matrices with `device: cpu`; other "
                "programs may have some (`nvidia-smi`); what was finished is kept"
            ) from error

    def write(
        self,
        merge: Merge,
        out: Path,
        card: str | None = None,
        like: Checkpoint | None = None,
        shard_bytes: int = SHARD_BYTES,
        finish: Callable[[Path], None] | None = None,
        allowed: Callable[[], None] | None = None,
    ) -> None:
        """Write the merged model as the folder ``out``, with the side files of ``like`` (the merge's own unless given).

        A killed job goes on at its first unfinished shard; the same job gives the same bytes. ``finish`` and
        ``allowed`` are those of :func:`emkit.saving.write_checkpoint`. ``UserError`` as of :meth:`run`.
        """
        with self._on_the_device():
            write_checkpoint(
                out, merge.tensors, like or merge.like, card, shard_bytes, self.key(merge), finish, allowed
            )

    def key(self, merge: Merge) -> str:
        """Hash over the method with all its values, the input files, the code behind it, and what else decides a bit.

        Input files count as the same while nobody has touched them (:meth:`emkit.checkpoints.Checkpoint.identity`).
        Threads and processor are in it because matrix products and SVDs add in an order that may depend on them.
        """
        context = self.context
        code = [self.method.run.__module__, "emkit.saving", "emkit.layouts"]
        if context.backbone is not None:
            code.append(f"emkit.backbones.{context.backbone.name}")
        checkpoints = [merge.like, context.base, *context.task_vectors.checkpoints.values()]
        return sha256_json(
            {
                "method": self.method.name,
                "options": context.options.model_dump(),
                "model": None if context.model is None else context.model.identity(),
                "seed": context.seed,
                "scale": merge.scale,
                "coefficients": None if merge.coefficients is None else merge.coefficients.to_json(),
                "experts": context.task_vectors.experts,
                "inputs": [checkpoint.identity() for checkpoint in checkpoints],
                "names": context.task_vectors.names,
                "code": code_sha256(tuple(code), (*SILENT, "emkit.zoo")),
                **({"identity": merge.identity} if merge.identity else {}),
                "machine": [torch.__version__, torch.get_num_threads(), processor(context.device)],
            }
        )


def save_learned(learned: Learned, folder: Path) -> dict[str, Any]:
    """Write the coefficients and the history of a fit into ``folder``; what a report says of them."""
    learned.coefficients.save(folder / "coefficients.json")
    write_json(folder / "history.json", {"stages": learned.stages, "calibration": learned.calibration})
    return {
        "coefficients": "coefficients.json",
        "history": "history.json",
        "trainable_coefficients": len(learned.coefficients.flat()),
        "calibration": learned.calibration,
    }
