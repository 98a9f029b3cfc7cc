"""What all families of models share. A backbone says how one family is loaded, asked and merged; its file holds no more
than what differs from here. transformers is imported only where a model is opened: whoever names a backbone, in a
recipe or in a type, need not wait for it."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from PIL.Image import Image

from emkit import pretrained
from emkit.errors import UserError
from emkit.progress import passes

# the 7 matrices of a block of Llama, Mistral and Qwen2
BLOCK = r"layers\.(?P<block>\d+)\.(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)\.weight"

Images = Sequence[Image | None]
Texts = Sequence[str]
Batch = dict[str, torch.Tensor]
Features = Callable[[int, int], torch.Tensor]  # image features of the items start … stop − 1
Encoded = Callable[[Sequence[int], Callable[[], Batch]], Batch]  # a batch of these items: what is kept, or made now
Answered = Callable[[Sequence[int], Callable[[], list[str]]], list[str]]  # answers to these items: the same
Picturing = Callable[[Any, int], dict[str, Any]]  # an image processor, a value: its attributes that are then others
PIXELS = "pixel_values"  # what only a vision tower reads


@dataclass
class Output:
    """``logits`` [B, S, V] (or [N, V] at selected positions) and ``hidden`` [B, S, d], both in the model's dtype."""

    logits: torch.Tensor
    hidden: torch.Tensor | None


class Backbone(ABC):
    """A family of models: which tensors are merged, and how a model is loaded, given samples, run and asked.

    ``kinds``: the ``model_type`` of the configurations that it reads, once converted where only their own code opens
    them (:mod:`emkit.originals`). ``MERGED`` matches the merged tensors' names, with the number of the block as group
    ``block``. ``VISION`` names what :meth:`encode` gives of images, each with one row (or an equal number of rows) an
    image, in the order in which :meth:`image_features` takes them: nothing for a language model, whose image features
    are empty. ``PICTURES``: the settings of :meth:`seeing`, each as what it changes of an image processor. ``AUTO``
    names the class of transformers that opens a checkpoint.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    AUTO: ClassVar[str]
    MERGED: ClassVar[re.Pattern[str]]
    HEADED: ClassVar[re.Pattern[str]] = re.compile(r".*\.(q|k|v)_proj\.weight")  # rows belong to attention heads
    VISION: tuple[str, ...] = ()
    PICTURES: Mapping[str, Picturing] = MappingProxyType({})

    @property
    def name(self) -> str:
        """What recipes call it: the name of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def asked_as(self) -> str | None:
        """What names the tokenizer and template that all models are asked with; None: each has its own."""
        return None

    def reads(self, kind: str) -> bool:
        """Whether it takes models of this ``model_type``."""
        return kind in self.kinds

    def auto(self) -> Any:
        """The class of transformers that opens a checkpoint."""
        import transformers

        return getattr(transformers, self.AUTO)

    # ---- names
    def merged_block(self, name: str) -> int | None:
        """The block of a tensor that is merged, −1 for one before the blocks; None for a tensor that is not merged."""
        match = self.MERGED.fullmatch(name)
        return None if match is None else int(match["block"] or -1)

    def merged_names(self, names: Iterable[str]) -> list[str]:
        """The tensors that merging touches, block by block."""
        found = [(self.merged_block(name), name) for name in names]
        return [name for _, name in sorted((block, name) for block, name in found if block is not None)]

    def parameter_name(self, name: str) -> str:
        """The ``named_parameters`` name of a tensor that is called ``name`` on disk."""
        return name

    # ---- the model
    @abstractmethod
    def processor(self, folder: str | Path) -> Any:
        """The tokenizer, or the processor of texts and images, of a checkpoint folder."""

    def load(self, folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Any, Any]:
        """Open a checkpoint folder as ``(model, processor)``, in eval mode; a checkpoint's own code is never run."""
        model = pretrained.load(self.auto(), folder, dtype)
        model.generation_config = greedy(model.generation_config)
        return model.to(device).eval(), self.processor(folder)

    def seeing(self, processor: Any, **settings: int) -> Any:
        """The processor with other ``settings`` of how pictures are cut or scaled, those that ``PICTURES`` names; the
        one given stays as it is. ``UserError`` for a setting that this family has not."""
        for name in settings:
            if name not in self.PICTURES:
                known = f"it has {', '.join(self.PICTURES)}" if self.PICTURES else "it has none"
                raise UserError(f"{self.name} has no setting '{name}' of pictures: {known}")
        if settings:
            processor = copy.copy(processor)
            processor.image_processor = copy.copy(processor.image_processor)
        for name, value in settings.items():
            for attribute, changed in self.PICTURES[name](processor.image_processor, value).items():
                setattr(processor.image_processor, attribute, changed)
        return processor

    def blocks(self, model: Any) -> int:
        """Transformer blocks of the language model."""
        return model.config.get_text_config().num_hidden_layers

    def by_head(self, name: str) -> bool:
        """Whether the rows of a matrix, its outputs, belong to attention heads: those of queries, keys and values."""
        return self.HEADED.fullmatch(name) is not None

    def head_rows(self, model: Any) -> int:
        """Rows of such a matrix in one head of the language model."""
        config = model.config.get_text_config()
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    # ---- passes
    @abstractmethod
    def encode(self, processor: Any, images: Images, questions: Texts, responses: Texts | None = None) -> Batch:
        """Tokenise single-turn chats; B chats give tensors of B rows. An image may be None: a question about none.

        With ``responses`` the rows are right-padded and end with the response and the end token; ``response_mask``
        (bool [B, S]) is True where the token *at* that position belongs to the response, the end token included.
        Without, rows are left-padded and end where the assistant begins. Also ``input_ids`` and ``attention_mask``
        (int64 [B, S]) and, of the images, what ``VISION`` names.
        """

    @abstractmethod
    def image_features(self, model: Any, *inputs: torch.Tensor | None) -> torch.Tensor:
        """What the vision tower makes of images, given what ``VISION`` names; empty without images.

        Nothing of the tower is merged, so one result serves every merge of a zoo and every step of a fit.
        """

    @abstractmethod
    def vision_state(self, model: Any) -> dict[str, torch.Tensor]:
        """The tensors that :meth:`image_features` depends on, by name."""

    @abstractmethod
    def forward(
        self,
        model: Any,
        batch: Batch,
        features: torch.Tensor | None = None,
        hidden_layer: int | None = None,
        positions: torch.Tensor | None = None,
    ) -> Output:
        """One pass through the language model; ``features`` are the batch's :meth:`image_features`, where known.

        ``hidden_layer`` j asks for the output of block j (1-based: ``hidden_states[j]``, index 0 being the embeddings)
        as ``hidden`` [B, S, d]. ``positions`` (bool [B, S]) keeps logits at those positions only, [N, V] in row-major
        order; without it logits are [B, S, V].
        """

    # ---- answers
    @torch.no_grad()
    def generate(
        self,
        model: Any,
        processor: Any,
        images: Images,
        questions: Texts,
        max_new_tokens: int,
        batch_size: int = 64,
        features: Features | None = None,
        encoded: Encoded | None = None,
        answered: Answered | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Greedy answers to single-turn questions, in the order asked; special tokens are dropped.

        ``features(start, stop)`` may supply cached :meth:`image_features` of those items, with no row for an item
        without an image, and ``encoded(items, encode)`` what :meth:`encode` makes of some items together, pixels left
        out: an image is then not looked at. ``answered(items, answer)`` may supply the answers of a batch, so that a
        process that was killed asks for none twice. ``progress`` is told how many items were just answered. Items are
        answered in order of question length, so that batches need little padding.
        """

        def encode() -> Batch:
            return self.encode(processor, [images[i] for i in rows], [questions[i] for i in rows])

        def answer() -> list[str]:
            batch = encode() if encoded is None else encoded(rows, encode)
            known = None if features is None else [part for i in rows if len(part := features(i, i + 1))]
            with passes(model, "answers", start, len(order)):
                tokens = model.generate(
                    **self.asked(model, batch, known),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=padding(tokenizer),
                )
            texts = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            return [self.answer(text) for text in texts]

        tokenizer = getattr(processor, "tokenizer", processor)
        order = sorted(range(len(questions)), key=lambda i: (len(questions[i]), i))
        answers = [""] * len(questions)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            texts = answer() if answered is None else answered(rows, answer)
            for i, text in zip(rows, texts, strict=True):
                answers[i] = text
            if progress is not None:
                progress(len(rows))
        return answers

    def asked(self, model: Any, batch: Batch, features: list[torch.Tensor] | None) -> dict[str, Any]:
        """What transformers' ``generate`` is given of an encoded batch; ``features``, of each image, where known."""
        return {name: value.to(model.device) for name, value in batch.items()}

    def answer(self, text: str) -> str:
        """The answer in what was decoded."""
        return text


def greedy(folder: Any) -> Any:
    """Of a folder's settings of generation the tokens alone: its penalties and samplings are for chats, and the
    harnesses' own wrappers pass others."""
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    return type(folder)(**{name: getattr(folder, name, None) for name in ids})


def last(mask: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """True (bool [B, S]) at the last ``counts`` places of each right-padded row, whose places are ``mask`` [B, S]."""
    ends, at = mask.sum(1, keepdim=True), torch.arange(mask.shape[1])
    return (at < ends) & (at >= ends - torch.tensor(counts).unsqueeze(1))


def padding(tokenizer: Any) -> int:
    """The id in padded places, which nothing looks at."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)
