"""A GPU's memory: given back to the process that is to use it next, and what is said where it is full."""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Iterator

import torch

from emkit.errors import UserError


def let_go() -> None:
    """Give back what this process keeps of a GPU's memory and does not use."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@contextlib.contextmanager
def answering(batch: int) -> Iterator[None]:
    """In the block ``batch`` questions are answered at once: ``UserError`` where that takes more than there is."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # which hold the model
        raise UserError(
            f"out of memory on the device with {batch} questions answered at once: answer fewer (the profile's "
            "`protocol.generation.batch`), or with fewer new tokens; other programs may have some (`nvidia-smi`)"
        ) from error
    finally:
        let_go()
