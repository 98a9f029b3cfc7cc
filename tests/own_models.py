"""A base and experts of two blocks for the tests of ``emkit merge``, and one way to run it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tiny_models as tiny
import torch
from safetensors.torch import load_file, save_file

from emkit import cli
from emkit.methods import get

EXPERTS = ("math", "code")


def write_models(folder: Path, dtype=torch.bfloat16, **changes) -> Path:
    """``base``, ``math`` (one file) and ``code`` (several shards), Llamas or another ``kind`` in
    ``dtype``, and prompts for both."""
    for number, name in enumerate(("base", *EXPERTS)):
        model = tiny.language_model(seed=1, **changes)
        if number:
            tiny.spread(model, seed=number + 1, size=0.05)
        tiny.save(model, folder / name, dtype=dtype, shard="5KB" if name == "code" else "1GB")
    for name in EXPERTS:
        lines = [json.dumps({"prompt": f"Tell {name} number {i}."}) for i in range(3)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def rewrite(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Write a folder's tensors anew, as one file, with some changed, added or (None) left out."""
    kept = {name: tensor for name, tensor in {**tensors(folder), **changes}.items() if tensor is not None}
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        file.unlink()
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def set_json(file: Path, **changes) -> None:
    """Change keys of a JSON file; None takes one away."""
    content = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def copied(models: Path, to: Path) -> Path:
    """The models in a folder of their own, to be damaged."""
    shutil.copytree(models, to / "models")
    return to / "models"


def flags(models: Path, out: Path, method: str = "task_arithmetic", *more: str) -> list[str]:
    """Arguments of a merge of the two experts."""
    given = ["merge", "--base", str(models / "base"), "--method", method, "--out", str(out), *more]
    for name in EXPERTS:
        given += ["--expert", f"{name}={models / name}"]
    if get(method).learned:
        for name in EXPERTS:
            given += ["--calibration", f"{name}={models / name}.jsonl"]
    return given


def merge(models: Path, out: Path, method: str = "task_arithmetic", *more: str) -> Path:
    """Run a merge of the two experts, which has to succeed."""
    assert cli.main(flags(models, out, method, *more)) == 0
    return out
