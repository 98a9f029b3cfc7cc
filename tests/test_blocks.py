"""Merging in blocks: neither blocks nor threads can be seen in a result, and memory is bounded by them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from memory import awkward, run

from emkit import blocks
from emkit.bench.models import Shape, write_models
from emkit.coefficients import mean_experts, merge_experts
from emkit.methods import get
from emkit.methods.dare import Dropped, drop_and_rescale, random_bits
from emkit.methods.ties import Elected, Trimmed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=[(1, 1), (7, 1), (30, 3), (2**18, 3)], ids=str)
def cut(request, monkeypatch):
    """Blocks of some entries, on some threads."""
    before = torch.get_num_threads()

    def apply():
        monkeypatch.setattr(blocks, "BLOCK_ENTRIES", request.param[0])
        torch.set_num_threads(request.param[1])

    yield apply
    torch.set_num_threads(before)


METHODS = {
    "weight_average": {},
    "task_arithmetic": {},
    "ta_dare": {"drop": 0.5},
    "ties": {},
    "ties_dare": {"scope": "tensor"},
}


@pytest.mark.parametrize("method", list(METHODS))
def test_neither_blocks_nor_threads_are_seen_in_a_merge(method, cut):
    task_vectors = awkward("ties", dtype=torch.float16)
    scale = 0.3 if "scale" in get(method).needs else None
    whole = run(method, task_vectors, scale, **METHODS[method])
    cut()
    found = run(method, task_vectors, scale, **METHODS[method])
    assert all(found[name].tobytes() == whole[name].tobytes() for name in whole)


@pytest.mark.parametrize("chunks", [1, 2, 5, 64])
def test_chunk_coefficients_do_not_depend_on_where_blocks_end(chunks, cut):
    """Against each element's own coefficient in float64, and bit for bit against one block."""
    task_vectors = awkward("generic", dtype=torch.float32)
    rng = np.random.default_rng(0)
    alpha = rng.normal(size=(3, chunks))
    view = Elected(Trimmed(Dropped(task_vectors, 0.2, 1), 0.5))
    base, experts = task_vectors.read("d.square")
    whole = merge_experts(base, experts, alpha), view.merged("d.square", alpha), mean_experts(base, experts)
    cut()
    again = merge_experts(base, experts, alpha), view.merged("d.square", alpha), mean_experts(base, experts)
    assert all(torch.equal(a, b) for a, b in zip(whole, again))
    bounds = [s * 64 // chunks for s in range(chunks + 1)]
    each = np.repeat(alpha, np.diff(bounds), axis=1).reshape(3, 8, 8)
    wanted = base.double().numpy() + (each * view.tau("d.square").double().numpy()).sum(0)
    np.testing.assert_allclose(again[1].double().numpy(), wanted, atol=2e-6)


def test_a_part_of_a_draw_is_that_part_of_the_whole():
    whole = random_bits(100, 3, "A", "x")
    tau = torch.randn(100, generator=torch.Generator().manual_seed(0))
    dropped = drop_and_rescale(tau, 0.4, 3, "A", "x")
    for start in (0, 1, 7, 8, 9, 63, 92):
        for count in (0, 1, 8, 100 - start):
            part = slice(start, start + count)
            assert random_bits(count, 3, "A", "x", start=start).tolist() == whole[part].tolist()
            assert torch.equal(drop_and_rescale(tau[part], 0.4, 3, "A", "x", start), dropped[part])


def test_dropped_entries_are_plain_zeros():
    """A negative zero would turn the sign of a zero in the base."""
    found = drop_and_rescale(torch.full((1000,), -1.0), 0.5, 0, "A", "x")
    assert (found == 0).any() and not torch.signbit(found[found == 0]).any()


def test_the_first_error_in_a_block_is_raised_and_threads_are_as_before(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []

    def work(start, stop):
        seen.append((start, stop, torch.get_num_threads()))
        if start == 4:
            raise RuntimeError("block 4")

    try:
        with pytest.raises(RuntimeError, match="block 4"):
            blocks.in_blocks(9, 1, torch.device("cpu"), work)
        assert torch.get_num_threads() == 2
        assert {threads for *_, threads in seen} == {1} and (4, 6, 1) in seen
    finally:
        torch.set_num_threads(before)


# ---- memory
SHAPE = Shape(1024, 2048, 2, 2048)  # 16 matrices of 2 to 4 MB
MODEL_MB = 2 * SHAPE.parameters / 1e6


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and six experts of 60 MB (two and their links: what is measured is not the disk)."""
    folder = tmp_path_factory.mktemp("models")
    base, experts = write_models(folder, SHAPE, 2)
    for k in range(3, 7):
        (folder / f"expert-{k}").symlink_to(experts[k % 2])
        experts.append(folder / f"expert-{k}")
    return base, experts


PEAKS = """
import json, os, re, sys, time
import torch
from emkit.bench import child
from emkit.determinism import deterministic

def anonymous(pid):
    return int(re.search(r"RssAnon:\\s+(\\d+)", open(f"/proc/{pid}/status").read())[1]) / 1000

torch.set_num_threads(2)
child.get("ties")  # imports every method's file
with deterministic():  # imports what torch needs to know whether it is
    pass
peaks = []
for words in json.loads(sys.argv[1]):
    pid = os.fork()
    if not pid:
        child.merge(*words)
        os._exit(0)
    start = peak = anonymous(pid)
    while not os.waitpid(pid, os.WNOHANG)[0]:
        try:
            peak = max(peak, anonymous(pid))
        except (TypeError, OSError):
            pass  # it has just ended
        time.sleep(0.002)
    peaks.append(peak - start)
print(json.dumps(peaks))
"""
MERGES = {"task_arithmetic": {}, "ties": {}, "ties_dare": {}}


@pytest.fixture(scope="module")
def peaks(models, tmp_path_factory):
    """Anonymous MB above the interpreter and its imports, by method and K, each merge in a process of its own."""
    folder = tmp_path_factory.mktemp("merged")
    base, experts = models
    cases = [(method, k) for method in MERGES for k in (2, 6)]
    words = [
        [method, str(base), str(folder / f"{method}-{k}"), [str(path) for path in experts[:k]], 0.3, MERGES[method]]
        for method, k in cases
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PEAKS, json.dumps(words)]
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    assert len(list(folder.glob("*/model.safetensors"))) == len(cases)
    return dict(zip(cases, json.loads(found), strict=True))


@pytest.mark.parametrize("method, bound", [("task_arithmetic", 45), ("ties", 100), ("ties_dare", 100)])
def test_memory_is_bounded_by_blocks_and_a_tensor_whatever_k(peaks, method, bound):
    """The largest tensor is 4 MB; two threads hold a few MB each, and the allocator as much again for each of them.
    A whole shard is 50 MB, base and experts are 150 to 350, and their task vectors in fp32 200 to 600."""
    assert MODEL_MB > 50
    assert 0 < peaks[method, 2] < bound and 0 < peaks[method, 6] < bound, peaks
    assert abs(peaks[method, 6] - peaks[method, 2]) < 30, peaks
