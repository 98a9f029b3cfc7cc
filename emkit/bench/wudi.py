"""WUDI's iterations in the direct form, as it is written and as its authors run it, to measure ours against."""

from __future__ import annotations

import json
import sys
import time

import torch

from emkit.content import default_device
from emkit.methods.wudi import wudi, wudi_matrix

FORMS = ("emkit", "direct")


def iterate(form: str, rows: int, columns: int, experts: int, iterations: int) -> dict:
    """Seconds that one form takes for random task vectors [experts, rows, columns], and a few entries of its M."""
    device = default_device()
    generator = torch.Generator().manual_seed(0)
    taus = (torch.randn(experts, rows, columns, generator=generator) * 5e-4).to(device)
    run = wudi if form == "direct" else lambda *given: wudi_matrix(given[0], "adam", *given[1:])
    run(taus[:, :8, :8], 1e-5, 1)  # what torch imports at the first step is not part of it
    started = time.perf_counter()
    found = run(taus, 1e-5, iterations)
    entries = found.reshape(-1)[:: max(found.numel() // 100, 1)].tolist()  # waits for the device, too
    return {"seconds": time.perf_counter() - started, "entries": entries}


if __name__ == "__main__":
    print(json.dumps(iterate(sys.argv[1], *(int(word) for word in sys.argv[2:]))))
