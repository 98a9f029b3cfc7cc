"""A merge that is killed at any of its moments, and loses what was not yet on the disk, ends in the same bytes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import own_models as own
import pytest
from power_cut import drop_unsynced

ROOT = Path(__file__).parent.parent
TIMES, LAST = 10, 4


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    """``merge(folder, moment)`` → status and number of moments; one process that forks: imports are paid once."""
    home = tmp_path_factory.mktemp("cuts")
    own.write_models(home / "models")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    script = Path(__file__).with_name("power_cut.py")
    command = [sys.executable, str(script)]
    given = ["merge", "--base", "../models/base", "--method", "expert_merging", "--out", "out", "--shard-size", "9KB"]
    for name in own.EXPERTS:
        given += ["--expert", f"{name}=../models/{name}", "--calibration", f"{name}=../models/{name}.jsonl"]
    given += ["--option", "optimiser.steps=1", "--samples", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True) as process:

        def merge(folder: Path, moment: int = 0) -> list[int]:
            folder.mkdir(exist_ok=True)
            process.stdin.write(json.dumps([str(folder), moment, str(folder.with_suffix(".log")), given]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        merge.home = home
        yield merge
        process.stdin.close()


def listing(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def undisturbed(merges):
    """The files of a merge that nothing happens to, and its moments."""
    status, moments = merges(merges.home / "undisturbed")
    assert status == 0, (merges.home / "undisturbed" / "said").read_text()
    return listing(merges.home / "undisturbed" / "out"), moments


@pytest.mark.parametrize("number", range(TIMES + LAST))
def test_a_power_cut_at_any_moment_changes_no_byte(merges, undisturbed, number):
    expected, moments = undisturbed
    folder = merges.home / f"cut-{number}"
    # in each tenth of the merge one, so that fits, shards and the check are all met; and the last ones, about which the
    # model gets its name: what was not synced by then would be lost for good
    tenth = range(moments * number // TIMES, moments * (number + 1) // TIMES)
    moment = random.Random(number).choice(tenth) + 1 if number < TIMES else moments - 2 * (number - TIMES)
    status, _ = merges(folder, moment)
    assert status == -9
    drop_unsynced(folder, folder.with_suffix(".log"), names=number % 2 == 1)  # a disk may do the one or the other
    assert not (folder / "out").exists() or listing(folder / "out").keys() >= expected.keys()
    status, _ = merges(folder)
    said = (folder / "said").read_text()
    if (folder / "out").is_dir() and "is there already" in said:  # the cut came after its last rename
        status = 0
    assert status == 0, said
    assert {name: data for name, data in listing(folder / "out").items() if name in expected} == expected


def test_what_a_cut_loses_is_really_lost(tmp_path):
    """The simulation itself: what is not synced becomes zeros, a name that is not goes back, what is synced stays."""
    folder = tmp_path / "loses"
    folder.mkdir()
    events = []
    for name in ("kept", "lost"):
        (folder / f"{name}.part").write_bytes(name.encode())
        status = (folder / f"{name}.part").stat()
        events.append([status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns])
        (folder / f"{name}.part").rename(folder / name)
        events.append([str(folder / f"{name}.part"), str(folder / name), False])
        if name == "kept":
            status = folder.stat()
            events.append([status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns])
    (folder / "late").write_bytes(b"never synced")
    (tmp_path / "log").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert drop_unsynced(folder, tmp_path / "log", names=True) == 2
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert found == {"kept": b"kept", "lost.part": b"lost", "late": bytes(12)}
