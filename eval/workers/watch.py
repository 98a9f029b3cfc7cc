"""The time limit of a request: a worker that hangs must not hold up every row for ever."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

from emkit.files import read_json

_GLANCE = 0.2  # seconds between looks at what the worker is at


class Watch(threading.Thread):
    """For the time of the block, kill the process group ``worker`` when its time is up: then the reply ends.

    Requests queue, and each has a limit of its own, so waiting long is no sign of hanging. The worker notes in
    ``work`` which request it is at and until when it may be. Its time is up when that moment and ``seconds`` in the
    block have passed: a worker that has nothing to do, and still does not take our request, hangs too. Any client may
    find it so: the one whose request it is may be long dead.
    """

    def __init__(self, worker: int, work: Path, request: str, seconds: float):
        super().__init__(daemon=True)
        self.worker, self.work, self.request, self.seconds = worker, work, request, seconds
        self.killed_ours = False  # whether the worker was killed over this very request
        self._over = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self.join()

    def run(self):
        """Look at the worker until the block ends or the worker's time is up."""
        began = time.monotonic()
        while not self._over.wait(_GLANCE):
            request, until = self._noted()
            if time.monotonic() > max(until, began + self.seconds):
                self.killed_ours = request == self.request
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.worker, signal.SIGKILL)
                return

    def _noted(self) -> tuple[str, float]:
        """The request that the worker is at ("": none) and the end of its time."""
        try:
            noted = read_json(self.work)
            return noted["id"], noted["until"]
        except FileNotFoundError:
            return "", 0.0
