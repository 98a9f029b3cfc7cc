"""Nothing half-written under a final name, whatever goes wrong."""

import contextlib
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from emkit import files, locks
from emkit.errors import UserError
from emkit.files import atomic_dir, atomic_write, read_json, sha256_file, sha256_json, write_json
from emkit.locks import lock


def in_child(action) -> None:
    """Run ``action`` in a forked process that may give up rights or take on limits; fails if it fails there."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "value.json"
    with pytest.raises(RuntimeError), atomic_write(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with atomic_write(target) as part:
        part.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"


def test_a_folder_replaces_an_older_one_as_a_whole(tmp_path):
    target = tmp_path / "model"
    for content in ("first", "second"):
        with atomic_dir(target) as part:
            (part / content).write_text(content)
    assert [file.name for file in target.iterdir()] == ["second"]
    with pytest.raises(RuntimeError), atomic_dir(target) as part:
        (part / "third").write_text("third")
        raise RuntimeError
    assert [file.name for file in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, OSError])
def test_the_older_folder_is_back_when_the_new_one_cannot_take_its_name(tmp_path, monkeypatch, fatal):
    """The renames are: the new one (refused), the older one aside, the new one; the last fails."""
    part, target, real, calls = tmp_path / "part", tmp_path / "model", os.rename, []
    for folder in (part, target):
        folder.mkdir()
        (folder / "from").write_text(folder.name)

    def rename(old, new):
        calls.append(old)
        if len(calls) == 3:
            assert not target.exists()
            raise fatal
        real(old, new)

    monkeypatch.setattr(files.os, "rename", rename)
    with pytest.raises(fatal):
        files.replace_dir(part, target)
    assert (target / "from").read_text() == "model" and (part / "from").read_text() == "part"
    assert sorted(tmp_path.iterdir()) == [target, part]
    files.replace_dir(part, target)
    assert (target / "from").read_text() == "part" and list(tmp_path.iterdir()) == [target]


def test_the_older_folder_is_removed_only_after_the_new_one_has_its_name(tmp_path, monkeypatch):
    part, target, real = tmp_path / "part", tmp_path / "model", shutil.rmtree
    for folder in (part, target):
        folder.mkdir()
        (folder / "from").write_text(folder.name)
    found = []

    def rmtree(*arguments, **others):
        found.append((target / "from").read_text())
        real(*arguments, **others)

    monkeypatch.setattr(files.shutil, "rmtree", rmtree)
    files.replace_dir(part, target)
    assert found == ["part"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, kind):
    """A limit on file size stands in for the full disk: the system refuses the write in the same way."""

    def write():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(UserError, match=r"cannot write .*free some space"):
            if kind == "file":
                write_json(tmp_path / "big.json", "x" * 100_000)
            else:
                with atomic_dir(tmp_path / "big") as part:
                    (part / "weights").write_bytes(bytes(100_000))
        assert list(tmp_path.iterdir()) == []

    in_child(write)


def test_a_read_only_folder_is_one_line():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)

    def write():
        if os.getuid() == 0:
            os.setuid(65534)  # nobody: root may write anywhere
        for attempt in (lambda: write_json(folder / "a.json", 1), lambda: write_json(folder / "new" / "a.json", 1)):
            with pytest.raises(UserError, match="permission denied: choose a folder"):
                attempt()

    try:
        in_child(write)
        assert list(folder.iterdir()) == []
    finally:
        shutil.rmtree(folder)


def test_json_is_always_the_same_bytes_and_exact(tmp_path):
    value = {"b": [0.1, 1e-300, 2 / 3], "a": "α"}
    write_json(tmp_path / "1.json", value)
    write_json(tmp_path / "2.json", dict(reversed(value.items())))
    assert sha256_file(tmp_path / "1.json") == sha256_file(tmp_path / "2.json")
    assert read_json(tmp_path / "1.json") == value
    assert sha256_json(value) == sha256_json(dict(reversed(value.items())))


def test_a_lock_is_released_when_its_holder_is_killed(tmp_path):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with lock(tmp_path / "lock"):
            os.write(writer, b"held")
            signal.pause()
    assert os.read(reader, 4) == b"held"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with lock(tmp_path / "lock"):
        pass


# ---- locks in turn
@contextlib.contextmanager
def held_by_another(paths, seconds=None):
    """A process that holds the locks ``paths``, until the block ends or for ``seconds``."""
    wait = "input()" if seconds is None else f"time.sleep({seconds})"
    code = "import contextlib, sys, time; from emkit.locks import lock\nwith contextlib.ExitStack() as held:\n"
    code += f"    [held.enter_context(lock(p)) for p in sys.argv[1:]]\n    print('held', flush=True)\n    {wait}\n"
    command = [sys.executable, "-c", code, *map(str, paths)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_locks_are_taken_in_turn_free_ones_first(tmp_path):
    paths, waited = [tmp_path / name for name in "abc"], []
    with held_by_another(paths[:1], seconds=1):
        assert list(locks.locks_in_turn(paths, waited.append)) == [1, 2, 0] and waited == [0]
    assert list(locks.locks_in_turn(paths, waited.append)) == [0, 1, 2] and waited == [0]


def test_a_lock_of_the_turn_is_held_and_then_let_go(tmp_path):
    paths = [tmp_path / name for name in "ab"]
    with contextlib.closing(locks.locks_in_turn(paths)) as turns:
        for index in turns:
            for other, path in enumerate(paths):
                assert is_held(path) == (other == index)
    with pytest.raises(ZeroDivisionError), contextlib.closing(locks.locks_in_turn(paths)) as turns:
        for _ in turns:
            raise ZeroDivisionError
    with held_by_another(paths):
        pass


def is_held(path) -> bool:
    """Whether a lock is held, by whichever process."""
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
