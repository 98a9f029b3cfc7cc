"""Tiny random models as checkpoint folders: the real architecture, three blocks of width 16, nothing trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_plan import write
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from emkit import backbones
from emkit.alignment.calibration import Calibration, calibrate
from emkit.alignment.sources import ZooSource
from emkit.alignment.teacher import Recording
from emkit.checkpoints import Checkpoint
from emkit.coefficients import Coefficients
from emkit.task_vectors import TaskVectors
from emkit.zoo.data import lexicon
from emkit.zoo.model import create
from emkit.zoo.tokenizer import create_processor
from eval import merging
from eval.places import Job
from eval.plan import Plan

internvl = backbones.get("internvl")

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


def pytest_collection_modifyitems(items):
    """The file that takes longest begins first: the others fill the time beside it (``make test`` keeps this order)."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


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
    """Profile and rows of a table of the tiny zoo, as YAML would give them."""
    return {
        "name": "tiny",
        "backbone": "internvl",
        "models": {"base": str(zoo / "base"), "experts": {name: str(zoo / name) for name in EXPERTS}},
        "calibration": {"samples": 2, "response_tokens": 12, "split": "train", "max_new_tokens": 6},
        "grid": [0.1, 0.3],
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
                "optimiser": {
                    "name": "adamw",
                    "lr": 0.02,
                    "weight_decay": 0.0,
                    "steps": 4,
                    "schedule": "cosine",
                    "batch": "all",
                },
            },
            "expert_merging_pp": {"kappa": 1.2, "budget": 1.0, "fixed": "stage1", "start": "stage1"},
        },
        "rows": [
            {"id": "base", "label": "Base", "method": "checkpoint", "model": "base"},
            {"id": "vqa", "label": "VQA Expert", "method": "checkpoint", "model": "VQA"},
            {"id": "vqa_reset", "label": "VQA Expert (merged tensors only)", "method": "reset_expert", "model": "VQA"},
            {"id": "weight_average", "label": "Weight Average", "method": "weight_average"},
            {"id": "task_arithmetic", "label": "Task Arithmetic", "method": "task_arithmetic"},
            {"id": "ties", "label": "TIES Merging", "method": "ties"},
            {"id": "tsv", "label": "TSV Merging", "method": None},
            {"id": "expert_merging", "label": "Expert Merging", "method": "expert_merging"},
            {"id": "expert_merging_pp", "label": "Expert Merging++", "method": "expert_merging_pp"},
        ],
        "seeds": [0],
        "protocol": {"judge_upstream": "rules"},
    }


def save_recipe(folder: Path, data: dict) -> Plan:
    """``data`` as ``folder``/table1.yaml and ``folder``/profile.yaml, loaded."""
    table = {"title": "Tiny", "columns": ["VizWiz"], "rows": data["rows"]}
    paths = write(folder, table, {key: value for key, value in data.items() if key != "rows"})
    return Plan(*paths, folder / "results")


def merge_row(plan: Plan, row: str, seed: int, out: Path, cache: Path, scale: float | None = None, **more) -> dict:
    """A row of a plan, merged into ``out``; its report."""
    return merging.merge(plan, Job(row, seed, scale=scale), out, cache, **more)


def opened(zoo: Path) -> list[Checkpoint]:
    """Base and experts of a tiny zoo."""
    return [Checkpoint.open(zoo / name) for name in ("base", "VQA", "Chart")]


@pytest.fixture(scope="module")
def calibration(tiny_zoo, tmp_path_factory) -> Calibration:
    model, _ = internvl.load(tiny_zoo / "base")
    settings = Recording(samples=2, response_tokens=10, hidden_layer=1, max_new_tokens=5)
    cache = tmp_path_factory.mktemp("cache")
    return calibrate(internvl, model, open_task_vectors(tiny_zoo), ZooSource("train", "internvl"), settings, 0, cache)


@pytest.fixture
def float64_norms(monkeypatch):
    """transformers' RMSNorm always computes in fp32, whose rounding would drown a finite difference."""

    def forward(self, hidden):
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (hidden * scale)

    monkeypatch.setattr(Qwen2RMSNorm, "forward", forward)


def base_model(task_vectors: TaskVectors, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The base's model in ``dtype``."""
    return internvl.load(task_vectors.base.path)[0].to(dtype)


def chunked(task_vectors) -> Coefficients:
    """Different values everywhere; one, two or three chunks, and two fixed tensors."""
    rng = np.random.default_rng(3)
    values, fixed = {}, set()
    for i, name in enumerate(task_vectors.names):
        m = 1 + i % 3
        if i in (1, 9):
            m, _ = 1, fixed.add(name)
        values[name] = rng.uniform(0.1, 0.6, size=(2, m))
    return Coefficients(task_vectors.experts, values, frozenset(fixed))
