"""Which GPU a job runs on: of several on a machine, one a job. Says in one line what is wrong where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from emkit.errors import UserError
from emkit.locks import locks_in_turn
from emkit.progress import report
from eval.workers.client import private_folder

VISIBLE = "CUDA_VISIBLE_DEVICES"  # CUDA's own: the GPUs that a process and its children see
_DRIVER = Path("/proc/driver/nvidia/version")


def visible() -> list[str]:
    """What names each GPU that this process sees, as ``CUDA_VISIBLE_DEVICES`` names them; [] where there is none."""
    count = torch.cuda.device_count()  # asks the driver's management library, and begins nothing
    given = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return given[:count] if given else [str(index) for index in range(count)]


def check(device: str) -> None:
    """``UserError`` where a profile's ``device`` is not to be had here."""
    if not device.startswith("cuda") or _usable():
        return
    way = "run it on a machine with one, or copy the profile and give it `device: cpu`, which takes very long"
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} is built without CUDA"
        way = "install a build of torch with CUDA into .venv"
    elif os.environ.get(VISIBLE, "unset").strip() in ("", "-1"):
        why, way = f"{VISIBLE} hides every GPU", f"unset {VISIBLE}, or name a GPU in it, such as {VISIBLE}=0"
    elif not _DRIVER.exists():
        why = "there is no NVIDIA driver on this machine"
    else:
        why = f"torch (for CUDA {torch.version.cuda}) cannot use the driver of this machine"
        way = "see what `nvidia-smi` says; an older driver has to be brought up to date"
    raise UserError(f"no GPU for `device: {device}`: {why}; {way}")


def _usable() -> bool:
    """Whether there is a GPU that torch can use. While CUDA has not begun, that is asked in another process: to ask
    here would begin it, and with it fix which GPUs this process sees."""
    if torch.cuda.is_initialized():
        return torch.cuda.is_available()
    if not torch.cuda.device_count():
        return False
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


_taken: list[Iterator[int]] = []  # the lock of this process's GPU, held for life


def take(device: str) -> None:
    """Let this process, and those it starts, see one GPU alone, which no other job of this user has until it ends.

    Where it sees one at most, as a cluster's job does, that is the one; a device with a number of its own is that one.
    CUDA reads what it may see when it is first used: this comes before that, and once a process.
    """
    names = visible() if device == "cuda" and not _taken else []
    if len(names) > 1:
        paths = [private_folder() / f"gpu-{name}.lock" for name in names]
        held = locks_in_turn(paths, lambda index: report("waiting for a free GPU"))
        os.environ[VISIBLE] = names[next(held)]
        _taken.append(held)
