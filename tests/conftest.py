"""Tiny random models as checkpoint folders: the real architecture, three blocks of width 16, nothing trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emkit.backbones import internvl
from emkit.checkpoints import Checkpoint
from emkit.task_vectors import TaskVectors
from emkit.zoo.data import lexicon
from emkit.zoo.model import create
from emkit.zoo.tokenizer import create_processor

torch.set_num_threads(1)  # tiny tensors: threads that wait for each other cost more than they do
BLOCKS = 3
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "vision": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    "text": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
    },
}
EXPERTS = ("VQA", "Chart")


def write_tiny_zoo(folder: Path) -> Path:
    """``base`` and one folder per expert (every tensor of it differs from the base's), bf16, with processor."""
    processor = create_processor(TINY, lexicon()["words"])
    model = create(TINY, processor, seed=1)
    for number, name in enumerate(("base", *EXPERTS)):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=0.3 if number == 0 else 0.05)
        model.to(torch.bfloat16).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        model.float()
    return folder


@pytest.fixture(scope="session")
def tiny_zoo(tmp_path_factory) -> Path:
    """Folder with ``base``, ``VQA`` and ``Chart``."""
    return write_tiny_zoo(tmp_path_factory.mktemp("tiny-zoo"))


def open_task_vectors(zoo: Path) -> TaskVectors:
    """Base and experts of a tiny zoo, opened."""
    experts = {name: Checkpoint.open(zoo / name) for name in EXPERTS}
    return TaskVectors(Checkpoint.open(zoo / "base"), experts, internvl.merged_names)


@pytest.fixture
def task_vectors(tiny_zoo) -> TaskVectors:
    """:func:`open_task_vectors` of the session's tiny zoo."""
    return open_task_vectors(tiny_zoo)


def recipe_data(zoo: Path) -> dict:
    """A whole recipe for the tiny zoo, as YAML would give it."""
    return {
        "profile": "tiny",
        "backbone": "internvl",
        "models": {"base": str(zoo / "base"), "experts": {name: str(zoo / name) for name in EXPERTS}},
        "calibration": {"samples": 2, "response_tokens": 12, "split": "train", "max_new_tokens": 6},
        "scale": {"grid": [0.1, 0.3], "rule": "best mean"},
        "methods": {
            "expert_merging": {
                "initial": "scale of task_arithmetic",
                "parameterisation": "plain",
                "temperature": 1.0,
                "beta": {"VQA": 1.0, "Chart": 2.0},
                "gamma": 0.1,
                "regulariser": "paper",
                "hidden_loss": "mean_squared",
                "hidden_layer": "middle",
                "tokens": "response",
                "optimiser": {"name": "adamw", "lr": 0.02, "weight_decay": 0.0, "steps": 4, "schedule": "cosine"},
            },
            "expert_merging_pp": {"kappa": 1.2, "budget": 1.0, "fixed": "stage1", "start": "stage1"},
        },
        "rows": [
            {"id": "base", "label": "Base", "method": "checkpoint", "model": "base"},
            {"id": "vqa", "label": "VQA Expert", "method": "checkpoint", "model": "VQA"},
            {"id": "vqa_reset", "label": "VQA Expert (merged tensors only)", "method": "reset_expert", "model": "VQA"},
            {"id": "weight_average", "label": "Weight Average", "method": "weight_average"},
            {"id": "task_arithmetic", "label": "Task Arithmetic", "method": "task_arithmetic"},
            {"id": "ties", "label": "TIES Merging", "method": None},
            {"id": "expert_merging", "label": "Expert Merging", "method": "expert_merging"},
            {"id": "expert_merging_pp", "label": "Expert Merging++", "method": "expert_merging_pp"},
        ],
        "seeds": [0],
        "benchmarks": ["VizWiz"],
        "protocol": "none.yaml",
    }
