"""Run merges that are ended by SIGKILL at one of their moments, and tell what of their files was on the disk by then.

``python power_cut.py``: each line on stdin is JSON, ``[folder, moment, log, arguments]``; a child does the merge in
``folder`` and kills itself at its ``moment``-th step towards the disk (a sync, a rename, a removal), before it is done
or, at odd moments, after. ``log`` gets a line for each sync (device, inode, size, time of change of the file or folder)
and each rename (from, to, whether it replaced something). Answers ``[status, moments]`` a line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from emkit import cli


def watched(moment: int, log: str) -> list[int]:
    """Patch what leads to the disk; the list holds the number of steps so far."""
    steps, record = [0], open(log, "a", buffering=1)  # noqa: SIM115 - until the process ends

    def step(function, *given, **more):
        steps[0] += 1
        if steps[0] == moment and moment % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        there = function in renames and os.path.lexists(given[1])
        try:
            done = function(*given, **more)
            if function is sync:
                status = os.fstat(given[0])
                record.write(json.dumps([status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]) + "\n")
            elif function in renames:
                record.write(json.dumps([*map(os.path.abspath, given[:2]), there]) + "\n")
            return done
        finally:  # one that fails is a moment, too
            if steps[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sync, renames = os.fsync, (os.rename, os.replace)
    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        function = getattr(os, name)
        setattr(os, name, lambda *given, _function=function, **more: step(_function, *given, **more))
    return steps


def merge(folder: str, moment: int, log: str, arguments: list[str]) -> list[int]:
    """Status and number of steps of one merge, in a child."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        steps = watched(moment, log)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(os.open(f"{folder}/said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        status = cli.main(arguments)
        os.write(theirs, json.dumps([status, steps[0]]).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else [-signal.SIGKILL, moment]


def drop_unsynced(folder: Path, log: Path, names: bool) -> int:
    """What a power cut may do: files whose last state was never synced keep their lengths and hold zeros; and, with
    ``names``, those that were given after the last sync of their folder are taken back. Returns how many there were."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    synced = {tuple(event) for event in events if len(event) == 4}
    lost = 0
    for number, event in reversed(list(enumerate(events))) if names else ():
        if len(event) == 3 and not event[2] and os.path.lexists(event[1]) and not os.path.lexists(event[0]):
            parent = os.stat(os.path.dirname(event[1]))
            if [parent.st_dev, parent.st_ino] not in [later[:2] for later in events[number:] if len(later) == 4]:
                os.rename(event[1], event[0])
                lost += 1
    for file in folder.rglob("*"):
        status = file.lstat()
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if file.is_file() and not file.is_symlink() and file.name != "said" and state not in synced:
            file.write_bytes(bytes(status.st_size))
            lost += 1
    return lost


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(merge(*json.loads(line))), flush=True)
