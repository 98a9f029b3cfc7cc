"""What fits are measured on: an InternVL of a stated shape with random weights, and samples of random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from emkit import backbones
from emkit.alignment.calibration import Calibration
from emkit.alignment.heads import Head, headless
from emkit.alignment.samples import TaskSamples, load_samples, save_samples
from emkit.alignment.sequences import Folded, collate
from emkit.backbones.base import Backbone
from emkit.bench.models import Shape
from emkit.checkpoints import Checkpoint
from emkit.coefficients import Coefficients
from emkit.files import atomic_dir, read_json, write_json
from emkit.task_vectors import TaskVectors

BACKBONE = "internvl"
IMAGE_TOKENS = 16  # of a sequence
IMAGE_TOKEN = 3  # its id


TOY = Shape(32, 64, 3, 97, 4, 2, 0.2, 0.05)  # so large that models differ clearly
FIFTY_MILLION = Shape(512, 2752, 8, 16000, 8, 2, step=0.002)


def create(shape: Shape) -> torch.nn.Module:
    """An untrained model (fp32)."""
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = InternVLConfig(
        vision_config=vision | {"image_size": [32, 32], "patch_size": [4, 4]},
        text_config={"model_type": "qwen2", "tie_word_embeddings": True, **shape.text()},
        image_token_id=IMAGE_TOKEN,
        initializer_range=shape.weight,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return InternVLForConditionalGeneration(config)


@dataclass(frozen=True)
class Workload:
    """Base and experts as checkpoint folders, with samples of every task."""

    backbone: Backbone
    folder: Path
    experts: int
    calibration: Calibration

    @classmethod
    def open(cls, folder: Path, experts: int) -> Workload:
        """What :func:`make` wrote; ``experts`` beyond those written are the written ones again under other names."""
        stated = read_json(folder / "workload.json")
        tasks = {task: load_samples(folder / "samples" / task, folder / "heads", task) for task in stated["tasks"]}
        return cls(backbones.get(BACKBONE), folder, experts, Calibration(tasks, stated["hidden_layer"], {}))

    @property
    def tasks(self) -> list[str]:
        return [f"task{k}" for k in range(self.experts)]

    def task_vectors(self) -> TaskVectors:
        """Opened anew."""
        written = sum(1 for path in self.folder.glob("expert*"))
        experts = {task: Checkpoint.open(self.folder / f"expert{k % written}") for k, task in enumerate(self.tasks)}
        return TaskVectors(Checkpoint.open(self.folder / "base"), experts, self.backbone.merged_names)

    def model(self, member: str = "base") -> torch.nn.Module:
        """The base's or an expert's model (fp32, evaluation mode)."""
        kind = InternVLForConditionalGeneration
        return kind.from_pretrained(self.folder / member, dtype=torch.float32, local_files_only=True).eval()

    def start(self, by_row: bool = False) -> Coefficients:
        """0.1 to 0.3 everywhere: one of every tensor, or ``by_row`` of a matrix."""
        rng, vectors, values = np.random.default_rng(0), self.task_vectors(), {}
        for name in vectors.names:
            shape = vectors.base.info(name).shape
            values[name] = rng.uniform(0.1, 0.3, (self.experts, shape[0] if by_row and len(shape) == 2 else 1))
        return Coefficients(tuple(self.tasks), values)


def make(shape: Shape, folder: Path, experts: int, samples: int, tokens: int, taken: int) -> Workload:
    """Write base and experts (bf16) and draw ``samples`` sequences over the tasks in turn, each of ``tokens`` tokens
    with losses at the last ``taken``, with the experts' states."""
    model = create(shape)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    for k in range(-1, experts):
        model.float().load_state_dict(base)
        generator = torch.Generator().manual_seed(k + 1)
        with torch.no_grad():
            for parameter in model.parameters() if k >= 0 else ():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=shape.step)
        model.to(torch.bfloat16).save_pretrained(folder / ("base" if k < 0 else f"expert{k}"))
    write_json(folder / "workload.json", {"hidden_layer": shape.middle, "tasks": []})
    workload = Workload.open(folder, experts)
    for k, task in enumerate(workload.tasks[:samples]):
        rng, teacher = np.random.default_rng(k), workload.model(f"expert{k}")
        sequences, features = [], []
        for _ in range(k, samples, experts):
            sequences.append(sequence(rng, shape.vocabulary, tokens, taken, IMAGE_TOKENS))
            seen = rng.normal(size=(1, IMAGE_TOKENS, 4 * teacher.config.vision_config.hidden_size))
            features.append(torch.tensor(seen, dtype=torch.float32))
        made = recorded(workload.backbone, teacher, task, sequences, features, shape.middle)
        with atomic_dir(folder / "samples" / task) as part:
            save_samples(made, part, folder / "heads")
    write_json(folder / "workload.json", {"hidden_layer": shape.middle, "tasks": workload.tasks[:samples]})
    return Workload.open(folder, experts)


def sequence(rng: np.random.Generator, words: int, tokens: int, taken: int, image_tokens: int = 0) -> Folded:
    """Random tokens, the first ``image_tokens`` an image's, with losses at the last ``taken``."""
    ids, at = rng.integers(4, words, tokens), np.arange(tokens)
    ids[:image_tokens] = IMAGE_TOKEN
    return Folded(ids, at, np.zeros(tokens, np.int64), (at >= tokens - taken).astype(float))


def batched(sequences: Sequence[Folded], device: torch.device) -> tuple[dict, torch.Tensor]:
    """:func:`collate` on a device."""
    batch, taken = collate(sequences)
    return {name: value.to(device) for name, value in batch.items()}, taken.to(device)


def recorded(
    backbone: Backbone, teacher, task: str, sequences: list[Folded], features: list[torch.Tensor], layer: int
) -> TaskSamples:
    """Samples of one sequence each with the teacher's states, all in host memory as what is kept of a teacher is."""
    final, hidden = [], []
    with torch.no_grad(), headless(teacher) as head:
        for one, seen in zip(sequences, features, strict=True):
            batch, at = batched([one], next(teacher.parameters()).device)
            out = backbone.forward(teacher, batch, seen if seen.numel() else None, layer, at)
            final.append(out.logits.float().cpu().clone())
            assert out.hidden is not None  # it was asked for
            hidden.append(out.hidden[at].float().cpu().clone())
    numbers = list(range(len(sequences)))
    return TaskSamples(task, sequences, numbers, features, final, hidden, [[]] * len(numbers), Head(head.weight.cpu()))
