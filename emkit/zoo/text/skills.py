"""What a text model can do, without any harness and without running what it wrote.

A coarse yardstick for building and checking a zoo; the tables' scores come from the real harnesses.
"""

from __future__ import annotations

import re

from emkit import backbones
from emkit.zoo.text import Item, instructions, items

NEW_TOKENS = 40  # more than any right answer has


def final_number(reply: str) -> str | None:
    """The number behind the last `####`."""
    found = re.findall(r"#### *(-?[0-9]+)", reply)
    return found[-1] if found else None


def boxed(reply: str) -> str | None:
    r"""What stands in the last `\boxed{}` (braces inside it included)."""
    found = re.findall(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", reply)
    return found[-1].strip() if found else None


def correct(item: Item, reply: str) -> bool:
    """Whether a reply answers an item: instructions by rule, problems by their final answer, code letter by letter."""
    if item.subtask == "alpaca_eval":
        return instructions.quality(item.prompt, reply) == 1.0
    if item.subtask in ("gsm8k", "word_problems"):
        return final_number(reply) == item.fields["answer"]
    if item.subtask == "math":
        return boxed(reply) == item.fields["answer"]
    return reply.strip() == item.response.strip()


def skills(
    model,
    tokenizer,
    subtasks: tuple[str, ...],
    n: int,
    seed: int,
    split: str = "validation",
    new_tokens: int = NEW_TOKENS,
) -> dict[str, float]:
    """Percent correct per sub-task, over ``n`` items of ``split``."""
    found = {}
    for subtask in subtasks:
        asked = items(subtask, split, n, seed)
        questions = [item.prompt for item in asked]
        given = backbones.get("mistral").generate(model, tokenizer, [None] * n, questions, new_tokens)
        found[subtask] = round(100 * sum(map(correct, asked, given)) / n, 1)
    return found
