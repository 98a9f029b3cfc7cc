"""A base model that a package ships as GGUF: found, checked by its hash, and opened as a plain transformers model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from emkit.errors import UserError
from emkit.files import sha256_file


def file_of(package: str, name: str) -> Path:
    """The file ``name`` in an installed package, which is not imported; ``UserError`` where it is not there."""
    found = importlib.util.find_spec(package)
    folders = found.submodule_search_locations if found is not None else None
    file = Path(next(iter(folders or [""]))) / name
    if found is None or not file.is_file():
        raise UserError(f"the package {package.replace('_', '-')} is not installed here: run `make setup-small`")
    return file


def opened(settings: dict):
    """``(model, tokenizer)`` of a recipe's ``base``: ``package`` and ``file`` (GGUF) with its ``sha256``, and the
    ``name`` that the model has on the hub. fp32, on the CPU.

    Quantised weights are what they stand for: nothing is added to what the file says. ``UserError`` for a file that is
    not there or another.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    file = file_of(settings["package"], settings["file"])
    if sha256_file(file) != settings["sha256"]:
        raise UserError(f"{file} is not the file that the recipe names (sha256): install the package again")
    if importlib.util.find_spec("gguf") is None:
        raise UserError("reading GGUF needs the package gguf: run `make setup-small`")
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # a plain model of the same class: what came from GGUF refuses to be saved
    config = read.config.to_dict()
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "_name_or_path")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**plain))
    model.load_state_dict(read.state_dict())
    model.config._name_or_path = settings["name"]
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "left"
    return model.eval(), tokenizer
