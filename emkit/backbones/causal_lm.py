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
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from emkit.backbones.base import Backbone, Batch, Images, Output, Texts, last, padding
from emkit.errors import UserError
from emkit.pretrained import chat_text


class CausalLM(Backbone):
    """A language model; its answers keep their white space, at both ends too: a function's body begins with its
    indentation, and a calibration response without it would not be what its expert says."""

    AUTO = "AutoModelForCausalLM"
    MERGED = re.compile(
        r"(?:[a-z_]\w*\.)*?(?P<block>\d+)\."  # the first number in a name is its block's
        r"(?!.*(?:norm|bias|embed|rotary|(?<=[._])ln[._]))"  # what stays at the base
        r".+\.weight"
    )

    def reads(self, kind: str) -> bool:
        return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    def processor(self, folder: str | Path) -> Any:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def prompt_ids(self, tokenizer: Any, question: str) -> list[int]:
        """A question as one user turn of the chat template, up to where the assistant begins.

        A tokenizer without a chat template (most base models') gets the question as it is, after its usual first
        tokens.
        """
        if tokenizer.chat_template is None:
            return list(tokenizer(question)["input_ids"])
        messages = [{"role": "user", "content": question}]
        text = chat_text(tokenizer, messages, tokenizer.name_or_path)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode(self, processor: Any, images: Images, questions: Texts, responses: Texts | None = None) -> Batch:
        """As every backbone's. Prompt and response are tokenised apart, so that it is known where one ends.

        ``UserError`` for an image.
        """
        if any(image is not None for image in images):
            raise UserError("this backbone is a language model, which sees no images: remove them from the calibration")
        starts = [self.prompt_ids(processor, question) for question in questions]
        ends: list[list[int]] = [[]] * len(questions)
        if responses is not None:
            final = [] if processor.eos_token_id is None else [processor.eos_token_id]
            ends = [processor(text, add_special_tokens=False)["input_ids"] + final for text in responses]
        rows = [torch.tensor([*start, *end], dtype=torch.int64) for start, end in zip(starts, ends, strict=True)]
        shape = (len(rows), max(map(len, rows)))
        batch = {
            "input_ids": torch.full(shape, padding(processor), dtype=torch.int64),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
        }
        for row, tokens in enumerate(rows):
            here = slice(0, len(tokens)) if responses is not None else slice(shape[1] - len(tokens), shape[1])
            batch["input_ids"][row, here], batch["attention_mask"][row, here] = tokens, 1
        if responses is not None:
            batch["response_mask"] = last(batch["attention_mask"], [len(end) for end in ends])
        return batch

    def image_features(self, model: Any, *inputs: torch.Tensor | None) -> torch.Tensor:
        """There is no image: an empty tensor, fp32 [0]."""
        return torch.zeros(0)

    def vision_state(self, model: Any) -> dict[str, torch.Tensor]:
        """There is none."""
        return {}

    def forward(
        self,
        model: Any,
        batch: Batch,
        features: torch.Tensor | None = None,
        hidden_layer: int | None = None,
        positions: torch.Tensor | None = None,
    ) -> Output:
        """As every backbone's; ``UserError`` for a folded sequence longer than a sliding window."""
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
