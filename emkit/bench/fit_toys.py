"""Models of three backbones' shapes with random weights, and samples of random tokens, to measure fits with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from emkit import backbones
from emkit.alignment.calibration import Calibration
from emkit.alignment.heads import headless
from emkit.alignment.samples import TaskSamples, load_samples, save_samples
from emkit.alignment.sequences import Folded, collate
from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint
from emkit.coefficients import Coefficients
from emkit.files import atomic_dir, read_json, write_json
from emkit.task_vectors import TaskVectors

IMAGE_TOKENS = 16  # of an InternVL sequence
IMAGE_TOKEN = 3  # its id


@dataclass(frozen=True)
class Shape:
    """A language model's shape: width, inner width, blocks, heads, key-value heads, words; and the standard deviations
    of its weights and of the experts' steps from them."""

    width: int
    inner: int
    blocks: int
    heads: int
    kv_heads: int
    words: int
    weight: float = 0.02
    step: float = 0.002

    def text(self) -> dict:
        return {
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.words,
            "max_position_embeddings": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "initializer_range": self.weight,
        }


TOY = Shape(32, 64, 3, 4, 2, 97, 0.2, 0.05)  # so large that models differ clearly
FIFTY_MILLION = Shape(512, 2752, 8, 8, 2, 16000)
MISTRAL_7B = Shape(4096, 14336, 32, 32, 8, 32000)


def create(backbone: str, shape: Shape) -> torch.nn.Module:
    """An untrained model (fp32, evaluation mode)."""
    torch.manual_seed(0)
    text = shape.text()
    if backbone == "mistral":
        model = MistralForCausalLM(MistralConfig(**text, sliding_window=None))
    elif backbone == "qwen2_vl":
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": _sections(shape)}
        vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": shape.width, "mlp_ratio": 2}
        ids = dict.fromkeys(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"), 3)
        config = Qwen2VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision, **ids)
        model = Qwen2VLForConditionalGeneration(config)
    else:
        vision = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        vision |= {"image_size": [32, 32], "patch_size": [4, 4]}
        config = InternVLConfig(
            vision_config=vision,
            text_config={"model_type": "qwen2", "tie_word_embeddings": True, **text},
            image_token_id=IMAGE_TOKEN,
            initializer_range=shape.weight,
            downsample_ratio=0.5,
            tie_word_embeddings=True,
        )
        model = InternVLForConditionalGeneration(config)
    return model.eval()


def _sections(shape: Shape) -> list[int]:
    """m-RoPE's division of half a head."""
    half = shape.width // shape.heads // 2
    return [half - 2 * (half // 3), half // 3, half // 3]


@dataclass(frozen=True)
class Workload:
    """Base and experts as checkpoint folders, with samples of every task."""

    name: str
    backbone: Backbone
    folder: Path
    experts: int
    calibration: Calibration

    @classmethod
    def open(cls, folder: Path, experts: int) -> Workload:
        """What :func:`make` wrote; ``experts`` beyond those written are the written ones again under other names."""
        stated = read_json(folder / "workload.json")
        tasks = {task: load_samples(folder / "samples" / task, folder / "heads", task) for task in stated["tasks"]}
        calibration = Calibration(tasks, stated["hidden_layer"], {})
        return cls(stated["name"], backbones.get(stated["name"]), folder, experts, calibration)

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
        kinds = {"internvl": InternVLForConditionalGeneration, "mistral": MistralForCausalLM}
        kind = kinds.get(self.name, Qwen2VLForConditionalGeneration)
        return kind.from_pretrained(self.folder / member, dtype=torch.float32, local_files_only=True).eval()

    def start(self, chunks: int = 1) -> Coefficients:
        """0.1 to 0.3 everywhere, ``chunks`` of them in every tensor and expert."""
        rng, names = np.random.default_rng(0), self.task_vectors().names
        shape = (self.experts, chunks)
        return Coefficients(tuple(self.tasks), {name: rng.uniform(0.1, 0.3, shape) for name in names})


def make(name: str, shape: Shape, folder: Path, experts: int, samples: int, tokens: int, taken: int) -> Workload:
    """Write base and experts (bf16) and draw ``samples`` sequences over the tasks in turn, each of ``tokens`` tokens
    with losses at the last ``taken``, with the experts' states."""
    model = create(name, shape)
    base = copy.deepcopy(model.state_dict())
    for k in range(-1, experts):
        model.load_state_dict(base)
        generator = torch.Generator().manual_seed(k + 1)
        with torch.no_grad():
            for parameter in model.parameters() if k >= 0 else ():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=shape.step)
        model.to(torch.bfloat16).save_pretrained(folder / ("base" if k < 0 else f"expert{k}"))
        model.float()
    layer = max(shape.blocks // 2, 1)
    write_json(folder / "workload.json", {"name": name, "hidden_layer": layer, "tasks": []})
    workload = Workload.open(folder, experts)
    tasks = {f"task{k}": len(range(k, samples, experts)) for k in range(min(experts, samples))}
    for k, (task, count) in enumerate(tasks.items()):
        made = _samples(workload, workload.model(f"expert{k}"), task, k, count, tokens, taken)
        with atomic_dir(folder / "samples" / task) as part:
            save_samples(made, part, folder / "heads")
    write_json(folder / "workload.json", {"name": name, "hidden_layer": layer, "tasks": list(tasks)})
    return Workload.open(folder, experts)


def _samples(workload: Workload, teacher, task: str, seed: int, count: int, tokens: int, taken: int) -> TaskSamples:
    rng, sequences, features = np.random.default_rng(seed), [], []
    words = teacher.get_output_embeddings().weight.shape[0]
    for _ in range(count):
        ids, seen = rng.integers(4, words, tokens), torch.zeros(0)
        if workload.name == "internvl":
            ids[:IMAGE_TOKENS] = IMAGE_TOKEN
            vision = teacher.config.vision_config
            seen = torch.tensor(rng.normal(size=(1, IMAGE_TOKENS, 4 * vision.hidden_size)), dtype=torch.float32)
        positions = np.arange(tokens) if workload.name != "qwen2_vl" else np.tile(np.arange(tokens), (3, 1))
        losses_at = np.zeros(tokens)
        losses_at[-taken:] = 1
        sequences.append(Folded(ids, positions, np.zeros(tokens, np.int64), losses_at))
        features.append(seen)
    final, hidden = [], []
    with torch.no_grad(), headless(teacher) as head:
        for sequence, seen in zip(sequences, features, strict=True):
            batch, at = collate([sequence])
            out = workload.backbone.forward(teacher, batch, seen, workload.calibration.hidden_layer, at)
            final.append(out.logits.clone())
            hidden.append(out.hidden[at].clone())
    return TaskSamples(task, sequences, list(range(count)), features, final, hidden, [[]] * count, head)
