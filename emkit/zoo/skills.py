"""What a zoo model can do: exact match (boxes: IoU ≥ 0.5) on examples of one split, without any harness.

A coarse yardstick for building and checking a zoo; the tables' scores come from the real harnesses.
"""

from __future__ import annotations

import re

from emkit import backbones
from emkit.zoo.data import examples, prompt

NEW_TOKENS = 24


def box(text: str) -> list[int] | None:
    """The four numbers of ``[x1,y1,x2,y2]``, or None when ``text`` is no such box."""
    numbers = re.fullmatch(r"\[(\d+),(\d+),(\d+),(\d+)\]", text.strip())
    return [int(n) for n in numbers.groups()] if numbers else None


def iou(a: list[int], b: list[int]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = [max(0, c[2] - c[0]) * max(0, c[3] - c[1]) for c in (a, b)]
    union = area[0] + area[1] - width * height
    return width * height / union if union else 0.0


def correct(answer: str, truth: str) -> bool:
    """Equal text, or for boxes an overlap of at least one half."""
    expected, got = box(truth), box(answer)
    if expected is None:
        return answer.strip() == truth
    return got is not None and iou(expected, got) >= 0.5


def skills(
    backbone: str,
    model,
    processor,
    subtasks: tuple[str, ...],
    n: int,
    seed: int,
    split: str = "validation",
    size: int | str = 96,
) -> dict:
    """Percent correct per sub-task, over ``n`` examples of ``split`` with one plain question each."""
    result = {}
    for subtask in subtasks:
        items = examples(subtask, split, n, seed, size)
        plain = [[qa for qa in item.qas if not qa.kind.startswith("dense/")] for item in items]
        asked = [qas[i % len(qas)] for i, qas in enumerate(plain)]
        questions = [prompt(subtask, qa, backbone) for qa in asked]
        images = [item.image for item in items]
        answers = backbones.get(backbone).generate(model, processor, images, questions, NEW_TOKENS)
        hits = sum(correct(answer, qa.answer) for answer, qa in zip(answers, asked, strict=True))
        result[subtask] = round(100 * hits / n, 1)
    return result
