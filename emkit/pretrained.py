"""Models as transformers opens them, with nothing in their files choosing what code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from emkit.bounds import bounded
from emkit.errors import UserError, reason


def configuration(folder: str | Path) -> Any:
    """transformers' configuration of a folder.

    Nothing in it chooses code: none of the model's own is run, and attention is computed as transformers does by
    itself, whatever kernel of the hub the file names.
    """
    from transformers import AutoConfig

    with bounded(f"the configuration in {folder}"):  # some list what each block is, however many are said to be there
        found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    found._attn_implementation = found._experts_implementation = None  # and those of its parts
    return found


def chat_text(processor: Any, messages: list[dict[str, Any]], folder: str) -> str:
    """What the chat template of a ``folder``'s tokenizer or processor makes of messages, up to where the assistant
    begins. ``UserError`` for a template that fails over them, or does not end (:mod:`emkit.bounds`)."""
    template = f"the chat template of {folder}"
    try:
        with bounded(template):
            return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except UserError:
        raise
    except Exception as error:  # whatever a template raises
        raise UserError(f"{template} fails over a question ({reason(error)}): is it of this model?") from error


def load(auto: Any, folder: str | Path, dtype: torch.dtype) -> Any:
    """The model in a folder, opened by the class ``auto`` of transformers: its weights are safetensors, its code is
    transformers' own."""
    return auto.from_pretrained(
        folder,
        config=configuration(folder),
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
