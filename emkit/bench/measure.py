"""What a program costs, seen from outside: wall time, processor time, and peak anonymous and resident memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from emkit.errors import UserError

INTERVAL_S = 0.005
MB = 10**6


@dataclass(frozen=True)
class Cost:
    """Seconds and megabytes (10⁶ bytes) of one run of a program.

    ``anonymous_mb`` is the largest RssAnon seen: memory that the process itself allocated. ``resident_mb`` also counts
    the pages of files that it had mapped, which the system takes back when it needs them. ``output`` is its stdout.
    """

    wall_s: float
    cpu_s: float
    anonymous_mb: float
    resident_mb: float
    output: str = ""

    def to_json(self) -> dict:
        return {key: round(value, 2) for key, value in asdict(self).items() if key != "output"}


def run(command: Sequence[object], environment: Mapping[str, str] | None = None) -> Cost:
    """Run ``command`` to its end, looking at its memory every 5 ms; ``UserError`` with its last words if it fails."""
    if not sys.platform.startswith("linux"):
        raise UserError("emkit bench reads /proc for a process' memory, which only Linux has")
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        child = subprocess.Popen(words, stdout=out, stderr=err, env={**os.environ, **(environment or {})})
        anonymous = resident = 0
        try:
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                anonymous, resident = map(max, (anonymous, resident), _memory(child.pid))
                time.sleep(INTERVAL_S)
        except BaseException:
            child.kill()
            raise
        wall = time.monotonic() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        for stream in (out, err):
            stream.seek(0)
        said, wrong = (stream.read().decode(errors="replace") for stream in (out, err))
    if child.returncode:
        last = (wrong.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{Path(words[0]).name} failed with status {child.returncode}: {last}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, anonymous / MB, resident / MB, said)


def _memory(pid: int) -> tuple[int, int]:
    """RssAnon and VmHWM of a process in bytes; zeros when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0, 0
    kilobytes = dict(re.findall(r"^(RssAnon|VmHWM):\s+(\d+) kB", status, re.MULTILINE))
    return int(kilobytes.get("RssAnon", 0)) * 1024, int(kilobytes.get("VmHWM", 0)) * 1024
