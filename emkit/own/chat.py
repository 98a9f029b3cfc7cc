"""A quick look at a model: its answers to single questions, as a table's rows are asked (greedy, the model's own chat
template, each question by itself)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from emkit import backbones, words
from emkit.backbones.base import Backbone
from emkit.errors import UserError, reason
from emkit.own import checks, hub, tokens
from emkit.own.adapters import is_adapter

_THE_MODEL = "the model"


@dataclass(frozen=True)
class Chat:
    """A model that is loaded and can be asked; ``image`` is what every question is about, None for nothing."""

    name: str
    backbone: Backbone
    model: Any
    processor: Any
    image: Image.Image | None

    def ask(self, question: str, max_new_tokens: int) -> str:
        """The answer to one question; ``UserError`` for one that the model cannot take."""
        try:
            (answer,) = self.backbone.generate(
                self.model, self.processor, [self.image], [question], max_new_tokens, batch_size=1
            )
        except UserError:
            raise
        except Exception as error:  # whatever a model raises over a question, such as one that is too long for it
            raise UserError(f"{self.name} cannot answer: {reason(error)}") from error
        return words.block(answer)

    def answers(self, questions: Iterable[str], max_new_tokens: int) -> Iterator[str]:
        """The answers, each when it is there."""
        for question in questions:
            yield self.ask(question, max_new_tokens)

    def __str__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        amount = f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
        return f"{self.name}: {self.backbone.name}, {amount} parameters, on {self.model.device}"


def load(name: str, image: Path | None = None, device: str | None = None, dtype: str | None = None) -> Chat:
    """The model in a folder or of a hub id. ``device``: None for a GPU where there is one; ``dtype``: None for fp32 on
    a CPU and bf16 elsewhere.

    ``UserError``, before any weight is read where that can be told, for a model that is not there, is an adapter, needs
    its own code or has no tokenizer, and for a picture that cannot be read or is shown to a language model.
    """
    picture = None if image is None else read_image(image)
    folder = hub.folder(name, _THE_MODEL, hub.SMALL)
    if is_adapter(folder):
        raise UserError(f"{name} is a LoRA adapter: merge it first (`emkit merge`), and give the merged model's folder")
    kind = checks.config(folder, _THE_MODEL).kind
    reading = backbones.reading(kind)
    if not reading:
        raise UserError(f"{name} is a '{kind}', which only a model's own code can run: emkit runs none")
    backbone = backbones.get(reading[0])
    if picture is not None and not backbone.VISION:
        raise UserError(f"{name} is a language model ({kind}), which sees no pictures: leave out --image")
    if not tokens.has_tokenizer(folder):
        raise UserError(f"{name} has no tokenizer, without which it cannot be asked: put its files beside the weights")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    folder = hub.folder(name, _THE_MODEL, (*hub.SMALL, *hub.WEIGHTS))
    try:
        model, processor = backbone.load(folder, getattr(torch, dtype), device)
    except Exception as error:  # whatever a wrong folder or a device that is not there raises in transformers
        raise UserError(f"{name} cannot be loaded: {reason(error)}") from error
    return Chat(name, backbone, model, processor, picture)


def typed() -> Iterator[str]:
    """Questions from a prompt, up to an empty line, the end of input, or Ctrl-C."""
    with contextlib.suppress(ImportError):  # not everywhere; where it is, lines can be edited and called back
        import readline  # noqa: F401
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while question := input("> ").strip():
            yield question
        return
    print(file=sys.stderr)


def read_image(path: Path) -> Image.Image:
    """A picture, RGB; ``UserError`` where there is none."""
    try:
        return Image.open(path).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"there is no picture {path}") from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture: {reason(error)}") from error
