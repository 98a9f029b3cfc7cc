"""Checking a merged model after it was written: every tensor there and finite, and a forward pass runs."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError, reason

PROMPT = "The capital of France is"


def verify(folder: Path, like: Checkpoint, merged: list[str], backbone: Backbone, device: str) -> str:
    """Check the model in ``folder`` and say what was done; ``UserError`` for whatever is wrong.

    Its tensors must be those of ``like`` in name, shape and dtype, and finite. transformers must load it, with every
    merged tensor at its place in the module, and give finite logits for a short prompt (and a grey image, where the
    backbone sees).
    """
    written = Checkpoint.open(folder)
    if written.names != like.names:
        raise _wrong(folder, f"it has {len(written.names)} tensors, not the base's {len(like.names)}")
    for name in written.names:
        if written.info(name) != like.info(name):
            raise _wrong(folder, f"'{name}' is {written.info(name)}, not {like.info(name)}")
    written.scan(str(folder))
    done = f"{len(written.names)} tensors are there and finite"
    logits = _pass(folder, written, merged, backbone, device)
    if not bool(torch.isfinite(logits).all()):
        raise _wrong(folder, "a forward pass gives logits that are not finite")
    return f"{done}; a forward pass of transformers' own class gives finite logits"


@torch.no_grad()
def _pass(folder: Path, written: Checkpoint, merged: list[str], backbone: Backbone, device: str) -> torch.Tensor:
    dtype = written.info(merged[0]).dtype
    try:
        model, processor = backbone.load(folder, dtype=dtype, device=device)
        parameters = dict(model.named_parameters())
        image = Image.new("RGB", (64, 64), (127, 127, 127)) if backbone.VISION else None
        batch = backbone.encode(processor, [image], [PROMPT])
        if not batch["input_ids"].shape[1]:  # a tokenizer that knows nothing of the prompt
            batch |= {"input_ids": torch.zeros(1, 1, dtype=torch.int64), "attention_mask": torch.ones(1, 1).long()}
        output = backbone.forward(model, {name: value.to(device) for name, value in batch.items()})
    except UserError:
        raise
    except Exception as error:  # whatever a model that cannot be loaded raises in transformers
        raise _wrong(folder, f"transformers cannot run it ({reason(error, 300)})") from error
    for name in merged:
        parameter = parameters.get(backbone.parameter_name(name))
        # a module may hold several tensors as one (the experts of a mixture); those are checked by the pass alone
        # and is of one dtype, that of the pass, where a checkpoint's tensors may be of several
        if parameter is not None and not torch.equal(parameter.cpu(), written.read(name).to(parameter.dtype)):
            raise _wrong(folder, f"transformers loads '{name}' with other values than those written")
    return output.logits


def _wrong(folder: Path, what: str) -> UserError:
    return UserError(f"the merged model did not pass its check and was removed: {what} ({folder.name})")
