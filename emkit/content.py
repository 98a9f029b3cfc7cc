"""What results depend on besides weights and settings, as hashes: side files, emkit's own code, libraries, device."""

from __future__ import annotations

import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path

import torch

import emkit
from emkit.checkpoints import SIDE_FILES
from emkit.files import sha256_file, sha256_json


def side_files_sha256(folder: Path) -> str:
    """Hash of a model folder's configuration, tokenizer, processor and chat template: what its prompts are made by."""
    files = sorted(f for f in folder.iterdir() if f.is_file() and any(f.match(pattern) for pattern in SIDE_FILES))
    return sha256_json({file.name: sha256_file(file) for file in files})


@cache
def code_sha256() -> str:
    """Hash of every module of emkit."""
    root = Path(emkit.__file__).parent
    return hashlib.sha256("".join(sha256_file(file) for file in sorted(root.rglob("*.py"))).encode()).hexdigest()


def surroundings(device: torch.device | str) -> dict:
    """Code, libraries, device and threads, for the keys of what is kept between runs: sums depend on them."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    return {"code": code_sha256(), "device": processor(device), "threads": torch.get_num_threads(), **versions}


def processor(device: torch.device | str) -> str:
    """The GPU's name, or what vector instructions the CPU has: what decides the order of sums."""
    on_gpu = torch.device(device).type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability()
