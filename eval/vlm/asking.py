"""A column that VLMEvalKit scores: the backbone answers in batches, the data set's own class scores the answers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from emkit import backbones
from emkit.progress import report
from eval import features, keys
from eval.asking import Judged, Merged, Prompt
from eval.columns.kinds import VLMEvalKit
from eval.vlm import client


def ask(merged: Merged, column: VLMEvalKit, judged: Judged) -> tuple[list[dict], dict]:
    """Items and harness of one column."""
    plan = merged.plan
    data, limit = plan.data(merged.job.split), plan.protocol.request_seconds or client.REQUEST_SECONDS
    report("prompts from VLMEvalKit")
    prompts = client.prompts(data, column, limit)
    images, questions = client.Pictures(prompts), [prompt.text + column.suffix for prompt in prompts]
    processor = backbones.get(plan.profile.backbone).seeing(merged.opened[1], **column.pictures)
    kept = _kept(merged, column, processor, images, questions)
    answers = merged.answers(column, processor, images, questions, **kept)
    predictions = {prompt.index: answer for prompt, answer in zip(prompts, answers)}
    report("scored by VLMEvalKit")
    if not column.judge:
        result = client.evaluate(data, column, predictions, None, limit)
        return result.items, result.harness
    with judged.counted() as (opened, counts):
        result = client.evaluate(data, column, predictions, opened.url, limit)
    return result.items, {**result.harness, "judge": counts}


def prompts(data: Path, column: VLMEvalKit, seconds: float | None) -> list[Prompt]:
    """Every question with its picture's file, as the column asks it."""
    found = client.prompts(data, column, seconds or client.REQUEST_SECONDS)
    return [Prompt(one.index, one.text + column.suffix, base64.b64decode(one.picture)) for one in found]


def _kept(
    merged: Merged, column: VLMEvalKit, processor: Any, images: Sequence[Image], questions: list[str]
) -> dict[str, Any]:
    """The images' features and the encoded questions, where the protocol keeps them for all rows; else nothing: they
    are made with each answer."""
    plan, split = merged.plan, merged.job.split
    if not plan.protocol.keep_image_features:
        return {}
    backbone = plan.profile.backbone
    identity = {"items": plan.items_identity(split, column.name), "versions": keys.features(backbone)}
    folder, model = plan.run / "features" / split / column.name, merged.opened[0]
    return {
        "features": features.kept(folder, identity, backbones.get(backbone), model, processor, images),
        "encoded": features.encodings(folder / "encoded", identity, processor, questions),
    }
