"""The same arguments give the same bits: deterministic kernels, for as long as something is computed that is kept."""

from __future__ import annotations

import os

import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used, once a process


class deterministic:
    """Deterministic torch kernels inside the block, what was before after it.

    Where torch has no deterministic kernel it warns; with ``strict`` it raises, and only then do the attention kernels
    of a GPU sum their gradients in a fixed order. Fresh memory is not filled, which torch does then unless told
    otherwise: nothing here reads what it has not written.
    """

    def __init__(self, strict: bool = False):
        self.strict = strict

    def __enter__(self):
        self.before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        )
        torch.use_deterministic_algorithms(True, warn_only=not self.strict)
        torch.utils.deterministic.fill_uninitialized_memory = False

    def __exit__(self, *error):
        enabled, warn_only, fill = self.before
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill
