"""What results depend on besides weights and settings, as hashes: side files, emkit's own code, libraries, device."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import torch

from emkit.checkpoints import SIDE_FILES
from emkit.files import sha256_file, sha256_json
from emkit.imports import SILENT, code_sha256


def side_files_sha256(folder: Path) -> str:
    """Hash of a model folder's configuration, tokenizer, processor and chat template: what its prompts are made by."""
    files = sorted(f for f in folder.iterdir() if f.is_file() and any(f.match(pattern) for pattern in SIDE_FILES))
    return sha256_json({file.name: sha256_file(file) for file in files})


def surroundings(device: torch.device | str, *modules: str) -> dict:
    """Code, libraries, device and threads, for the keys of what is kept between runs: sums depend on them.

    The code is what ``modules`` reach (:mod:`emkit.imports`) but the drawing of items, whose own hash a source gives.
    """
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    code = code_sha256(modules, (*SILENT, "emkit.zoo"))
    return {"code": code, "device": processor(device), "threads": torch.get_num_threads(), **versions}


def processor(device: torch.device | str) -> str:
    """The GPU's name, or what vector instructions the CPU has: what decides the order of sums."""
    on_gpu = torch.device(device).type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability()


def default_device() -> str:
    """Where SVDs, iterations and fits run unless a recipe says otherwise: a GPU when there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
