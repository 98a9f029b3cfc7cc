"""What rows whose models see and read alike share of a benchmark's items: image features, and encoded questions.

Merging leaves the vision tower alone, so every merge of a zoo gives an image the same features up to the projector; on
a small machine they are half the price of an answer, and on Qwen2-VL resizing, cutting and tokenising the same pictures
and questions again is up to a quarter of the rest. A protocol asks for both with ``keep_image_features`` (features take
space: tiles × tokens × width for every item). They belong to a tower or a processor, a file of items and a state of the
code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from emkit.backbones.base import PIXELS, Backbone, Batch, Encoded, Features
from emkit.files import sha256_json
from emkit.hashes import sha256_tensors
from emkit.locks import lock
from emkit.sealed import read_tensors, write_tensors

TILES = 64  # (or patches) in one pass of the tower, unless an image alone has more


def encodings(folder: Path, identity: dict, processor: Any, questions: Sequence[str]) -> Encoded:
    """``encoded(items, encode)`` of ``questions``, as :meth:`emkit.backbones.base.Backbone.generate` takes it.

    A batch's tensors but its pixels are read from ``folder`` where they are of this processor, its tokenizer and
    template, these questions in this order and ``identity``; else made and written.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    reads = [processor.to_json_string(), _rules(tokenizer), tokenizer.padding_side]
    templates = [getattr(each, "chat_template", None) for each in (processor, tokenizer)]
    shared = sha256_json({**identity, "reads": reads, "templates": templates})

    def encoded(items: Sequence[int], encode: Callable[[], Batch]) -> Batch:
        key = sha256_json([shared, list(items), [questions[i] for i in items]])
        path = folder / f"{key[:32]}.safetensors"
        found = read_tensors(path)
        if found is None:
            found = {name: tensor.contiguous() for name, tensor in encode().items() if name != PIXELS}
            write_tensors(path, found)
        return found

    return encoded


def _rules(tokenizer: Any) -> dict:
    """What a tokenizer does, without how its last call had it pad or cut, which its own text holds too."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: part for name, part in rules.items() if name not in ("padding", "truncation")}


def kept(folder: Path, identity: dict, backbone: Backbone, model, processor, images: Sequence[Image]) -> Features:
    """``features(start, stop)`` of ``images``, as :meth:`emkit.backbones.base.Backbone.generate` takes them.

    Read from ``folder`` when a file there has the key of this tower and ``identity`` (a JSON value: items, versions),
    else computed and written; a file that cannot be read is written again. fp32 or the model's dtype, on its device.
    """
    tower = sha256_tensors(sorted(backbone.vision_state(model).items()))
    how = {"dtype": str(model.dtype), "device": model.device.type, "processor": processor.to_json_string()}
    key = sha256_json({**identity, "tower": tower, "config": model.config.vision_config.to_dict(), **how})
    path = folder / f"{key[:32]}.safetensors"
    with lock(path.with_suffix(".lock")):
        found = read_tensors(path)
        if found is None:
            found = _compute(backbone, model, processor, images)
            write_tensors(path, found)
    starts = found["starts"].tolist()
    return lambda start, stop: found["features"][starts[start] : starts[stop]].to(model.device)


def _compute(backbone: Backbone, model, processor, images: Sequence[Image]) -> dict[str, torch.Tensor]:
    """``features`` of all images, one tile or token a row, and ``starts`` [images + 1]: where each image's begin."""
    parts, counts = [], [0]
    for group in _groups([_seen(backbone, processor, image) for image in images]):
        together = [torch.cat(of_images).to(model.device) for of_images in zip(*group, strict=True)]
        parts.append(backbone.image_features(model, *together).cpu())
        rows = len(parts[-1]) / len(together[0])  # of features for a tile or patch: the same for every image
        counts += [round(len(seen[0]) * rows) for seen in group]
    return {"features": torch.cat(parts).contiguous(), "starts": torch.tensor(counts).cumsum(0)}


def _seen(backbone: Backbone, processor, image: Image) -> list[torch.Tensor]:
    """What the backbone's tower takes of one image."""
    encoded = backbone.encode(processor, [image], [""])
    return [encoded[name] for name in backbone.VISION]


def _groups(seen: list[list[torch.Tensor]]) -> list[list[list[torch.Tensor]]]:
    """Consecutive images that pass through the tower together, of at most TILES tiles or patches."""
    groups: list[list[list[torch.Tensor]]] = []
    for of_image in seen:
        if groups and sum(len(other[0]) for other in groups[-1]) + len(of_image[0]) <= TILES:
            groups[-1].append(of_image)
        else:
            groups.append([of_image])
    return groups
