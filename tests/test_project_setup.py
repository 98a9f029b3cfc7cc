"""Set-up by `make`, with installers that do nothing: what an interrupted one leaves is built again."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UV = re.search(r"^UV +:= (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
FAKE_UV = """#!/bin/sh
echo "$@" >> calls
case "$1 $2" in
  venv*) mkdir -p .venv/bin && touch .venv/from-scratch ;;
  "pip sync") [ ! -e interrupt ] || kill -9 $PPID $$ ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text("", encoding="utf-8")
    uv = tmp_path / ".uv" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(FAKE_UV, encoding="utf-8")
    uv.chmod(0o755)
    (tmp_path / ".uv" / f"ready-{UV}").touch()

    def run(target="setup"):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        return subprocess.run(
            ["make", target], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    run.folder = tmp_path
    run.calls = lambda: (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    return run


def touch(path: Path, later: int) -> None:
    """Give a file a time ``later`` seconds after now."""
    stamp = path.stat().st_mtime + later
    os.utime(path, (stamp, stamp))


def test_setup_happens_once(make):
    assert make().returncode == 0
    calls = make.calls()
    assert [call.split()[0] for call in calls] == ["venv", "pip", "pip"]
    assert "--require-hashes requirements.lock" in calls[1]
    assert make().returncode == 0 and make.calls() == calls


def test_another_lock_is_installed_without_starting_over(make):
    make()
    touch(make.folder / "requirements.lock", 5)
    assert make().returncode == 0
    assert [call.split()[0] for call in make.calls()] == ["venv", "pip", "pip", "pip", "pip"]


def test_a_killed_setup_starts_over(make):
    (make.folder / "interrupt").touch()
    assert make().returncode != 0
    assert not (make.folder / ".venv" / "ready").exists()
    (make.folder / ".venv" / "half-installed").touch()
    (make.folder / "interrupt").unlink()
    assert make().returncode == 0
    assert (make.folder / ".venv" / "ready").exists() and not (make.folder / ".venv" / "half-installed").exists()


def test_a_setup_killed_while_updating_starts_over(make):
    make()
    touch(make.folder / "requirements.lock", 5)
    (make.folder / "interrupt").touch()
    assert make().returncode != 0
    (make.folder / ".venv" / "half-installed").touch()
    (make.folder / "interrupt").unlink()
    assert make().returncode == 0
    assert not (make.folder / ".venv" / "half-installed").exists()
