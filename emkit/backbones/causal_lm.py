"""Any transformers causal language model that is a stack of numbered blocks: Llama, Mistral, Qwen2, GPT-NeoX and kin.

Text only: there are no images, and image features are empty. The merged tensors are the weight matrices of the blocks:
every tensor under a block's number whose name ends in ``weight``, unless its name says that it is a norm, a bias or an
embedding. For the layout of Llama, Mistral and Qwen2 these are the 7 matrices q, k, v, o, gate, up and down. The rule
reads names, never shapes, so that it can be told from a header.

Tensors are called on disk what they are called in memory, which is true of what ``save_pretrained`` writes for the
architectures above.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from emkit.backbones.output import Output
from emkit.errors import UserError
from emkit.progress import passes

VISION = ()

_IN_BLOCK = re.compile(r"(?:[a-z_]\w*\.)*?(?P<block>\d+)\.(?P<rest>.+\.weight)")
_STAYS = re.compile(r"norm|bias|embed|rotary|(?:^|[._])ln(?:[._]|$)")


def merged_names(names: Iterable[str]) -> list[str]:
    """The tensors that merging touches, block by block."""
    found = [(match, name) for name in names if (match := _IN_BLOCK.fullmatch(name))]
    chosen = [(int(match["block"]), name) for match, name in found if not _STAYS.search(match["rest"])]
    return [name for _, name in sorted(chosen)]


def parameter_name(name: str) -> str:
    """The ``named_parameters`` name of a tensor that is called ``name`` on disk: the same."""
    return name


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu"):
    """Open a checkpoint folder as ``(model, tokenizer)``, in eval mode; a checkpoint's own code is never run."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return model.to(device).eval(), tokenizer


def blocks(model) -> int:
    """Transformer blocks of the model."""
    return model.config.get_text_config().num_hidden_layers


def prompt_ids(tokenizer, question: str) -> list[int]:
    """A question as one user turn of the chat template, up to where the assistant begins.

    A tokenizer without a chat template (most base models') gets the question as it is, after its usual first tokens.
    """
    if tokenizer.chat_template is None:
        return list(tokenizer(question)["input_ids"])
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode(
    processor, images: Sequence[Image | None], questions: Sequence[str], responses: Sequence[str] | None = None
) -> dict:
    """Tokenise single-turn chats; B chats give tensors of B rows. ``images`` are all None.

    With ``responses`` the rows are right-padded and end with the response and the end token; ``response_mask``
    (bool [B, S]) is True where the token *at* that position belongs to the response, the end token included. Without,
    rows are left-padded and end where the assistant begins. Also ``input_ids`` and ``attention_mask`` (int64 [B, S]).
    Prompt and response are tokenised apart, so that it is known where one ends. ``UserError`` for an image.
    """
    if any(image is not None for image in images):
        raise UserError("this backbone is a language model, which sees no images: leave them out of the calibration")
    prompts = [prompt_ids(processor, question) for question in questions]
    ends: list[list[int]] = [[]] * len(prompts)
    if responses is not None:
        ends = [processor(text, add_special_tokens=False)["input_ids"] + _end(processor) for text in responses]
    width = max(len(start) + len(end) for start, end in zip(prompts, ends, strict=True))
    ids = torch.full((len(prompts), width), _padding(processor), dtype=torch.int64)
    mask, response_mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (start, end) in enumerate(zip(prompts, ends, strict=True)):
        tokens = torch.tensor([*start, *end], dtype=torch.int64)
        here = slice(0, len(tokens)) if responses is not None else slice(width - len(tokens), width)
        ids[row, here], mask[row, here] = tokens, 1
        response_mask[row, len(start) : len(start) + len(end)] = bool(end)
    batch = {"input_ids": ids, "attention_mask": mask}
    return batch if responses is None else {**batch, "response_mask": response_mask}


def _end(tokenizer) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _padding(tokenizer) -> int:
    """The id in padded places, which nothing looks at."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


def image_features(model) -> torch.Tensor:
    """There is no image: an empty tensor, fp32 [0]."""
    return torch.zeros(0)


def vision_state(model) -> dict[str, torch.Tensor]:
    """The tensors that :func:`image_features` depends on: none."""
    return {}


def forward(
    model,
    batch: dict,
    features: torch.Tensor | None = None,
    hidden_layer: int | None = None,
    positions: torch.Tensor | None = None,
) -> Output:
    """One pass through the model.

    ``hidden_layer`` j asks for the output of block j (1-based: ``hidden_states[j]``, index 0 being the embeddings)
    as ``hidden`` [B, S, d]. ``positions`` (bool [B, S]) keeps logits at those positions only, [N, V] in row-major
    order; without it logits are [B, S, V]. ``UserError`` for a folded sequence longer than a sliding window.
    """
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=_mask(model, batch["attention_mask"]),
        position_ids=batch.get("position_ids"),
        use_cache=False,
        output_hidden_states=hidden_layer is not None,
        **({} if positions is None else {"logits_to_keep": positions}),
    )
    return Output(outputs.logits, outputs.hidden_states[hidden_layer] if hidden_layer is not None else None)


def _mask(model, mask: torch.Tensor) -> torch.Tensor:
    """A mask [B, 1, S, S] (True: may look at) as the model's attention takes it; one of [B, S] is left to the model."""
    if mask.ndim != 4:
        return mask
    window = getattr(model.config, "sliding_window", None)
    if window is not None and mask.shape[-1] > window:
        raise UserError(
            f"a calibration sequence of {mask.shape[-1]} tokens is longer than this model's sliding window ({window}): "
            "give shorter prompts, or lower calibration.max_new_tokens"
        )
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UserError(
            f"{type(model).__name__} takes no positions, which learned methods need; merge it by one that needs none"
        )
    if model.config._attn_implementation == "eager":  # which adds its mask to the scores
        closed = torch.finfo(model.dtype).min
        return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(~mask, closed)
    return mask


@torch.no_grad()
def generate(
    model,
    processor,
    images: Sequence[Image | None],
    questions: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 64,
    features: Callable[[int, int], torch.Tensor] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy answers to single-turn questions, in the order asked; special tokens are dropped.

    White space is kept, at both ends too: a function's body begins with its indentation, and a calibration response
    without it would not be what its expert says. ``progress`` is told how many items were just answered. Items are
    answered in order of question length, so that batches need little padding.
    """
    order = sorted(range(len(questions)), key=lambda i: (len(questions[i]), i))
    answers = [""] * len(questions)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = encode(processor, [images[i] for i in rows], [questions[i] for i in rows])
        with passes(model, "answers", start, len(order)):
            tokens = model.generate(
                **{key: value.to(model.device) for key, value in batch.items()},
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=_padding(processor),
            )
        texts = processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(rows, texts, strict=True):
            answers[i] = text
        if progress is not None:
            progress(len(rows))
    return answers
