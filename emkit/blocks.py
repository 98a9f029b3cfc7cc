"""Work on a tensor in blocks of entries, so that temporaries are bounded by a block and not by the tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

Block = Callable[[int, int], torch.Tensor]  # start, stop → these entries of K flattened τ_k: [K, stop − start]
Terms = Callable[[int, int], torch.Tensor | Sequence[torch.Tensor]]  # the same of any number of terms

# Entries of K task vectors in one block: a few fp32 buffers of it fit a core's cache, and a torch call on it takes
# long against the call itself.
BLOCK_ENTRIES = 2**18
GPU_BLOCK_ENTRIES = 2**26


def in_blocks(entries: int, rows: int, device: torch.device, work: Callable[[int, int], None]) -> None:
    """Call ``work(start, stop)`` for all contiguous blocks of ``range(entries)``, on all of torch's threads.

    ``rows`` numbers of every entry are held at once (K for K task vectors); a block is so small that their product
    with its length is about ``BLOCK_ENTRIES``. ``work`` must treat entries one by one, or count in integers: then
    neither the blocks nor the number of threads can be seen in the result. The first exception is raised.
    """
    size = max(1, (BLOCK_ENTRIES if device.type == "cpu" else GPU_BLOCK_ENTRIES) // max(rows, 1))
    bounds = [(start, min(start + size, entries)) for start in range(0, entries, size)]
    if device.type != "cpu":
        _one_by_one(bounds, work)
        return
    # each thread has its own block, rather than all of them a share of each operation: they never wait for each other
    with _single_threaded_operations() as threads:
        if min(threads, len(bounds)) <= 1:
            _one_by_one(bounds, work)
        else:
            with ThreadPoolExecutor(min(threads, len(bounds))) as pool:
                list(pool.map(lambda block: work(*block), bounds))


def _one_by_one(bounds: Sequence[tuple[int, int]], work: Callable[[int, int], None]) -> None:
    for start, stop in bounds:
        work(start, stop)


@contextmanager
def _single_threaded_operations() -> Iterator[int]:
    """This thread, and those that it starts inside the block, run torch operations alone; yields how many it had."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
