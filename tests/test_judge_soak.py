"""64 threads against a judge that fails in every way, for as long as is asked: ``EMKIT_SOAK=60`` for a minute."""

import os
import random
import resource
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_judge_server import post
from test_judge_service import (
    HTML,
    PRICE,
    asking,
    bomb,
    completion,
    cut_off,
    endless,
    error,
    hang_up,
    steadily,
    upstream,
)

from eval import judge
from eval.judge.spending import Ledger

__all__ = ["upstream"]  # a fixture
SECONDS = float(os.environ.get("EMKIT_SOAK", "5"))
THREADS, EACH = 64, PRICE.of(100, 10)
FREE = [error(429), error(500), error(503), (502, HTML, {})]  # a service charges nothing for these
CHARGED = [(200, b"{}", {}), (200, b"[" * 5000, {}), cut_off, hang_up, steadily, endless, bomb]


class Hostile:
    """Fails the first two tries of each request in two ways of its own, then answers; counts what it would charge."""

    def __init__(self):
        self.tries, self.charged, self.lock = Counter(), 0, threading.Lock()

    def __call__(self, handler):
        text = handler.asked["messages"][0]["content"]
        with self.lock:
            self.tries[text] += 1
            number = self.tries[text]
            act = (200, completion(), {})
            if number <= 2:
                # the slow ones are rare, as each holds a thread until its deadline
                ways = random.Random(f"{text}, try {number}")
                act = ways.choice(FREE) if ways.random() < 0.85 else ways.choice(CHARGED)
            self.charged += act not in FREE
        return act(handler) if callable(act) else act


@pytest.mark.parametrize("cap", ["ample", "tight"])
def test_never_above_the_cap_and_all_that_can_be_paid_are_answered(tmp_path, upstream, monkeypatch, cap):
    hostile, bound = Hostile(), PRICE.bound(asking("000000"))
    upstream.script = [hostile]
    dollars = 100.0 if cap == "ample" else 2 * THREADS * bound
    monkeypatch.setenv("EMKIT_MAX_USD", str(dollars))
    memory, numbers, lock = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, iter(range(10**6)), threading.Lock()
    ends, found = time.monotonic() + (SECONDS if cap == "ample" else 120), Counter()

    def ask(_):
        while time.monotonic() < ends and not found[402]:
            with lock:
                number = next(numbers)
            status, _ = post(proxy.url, asking(f"{number:06d}"))
            with lock:
                found[status] += 1

    with judge.opened(tmp_path, upstream.url) as proxy, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(ask, range(THREADS)))
    spent = Ledger(tmp_path, dollars).spent()
    assert hostile.charged * EACH <= spent <= dollars
    assert found[200] >= THREADS
    if cap == "ample":
        assert set(found) == {200}
    else:
        assert set(found) == {200, 402} and spent > dollars - THREADS * bound - bound
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 600 * 1024  # kB: 64 times 4 MiB, twice
