"""What a text model can do, without any harness and without running what it wrote.

A coarse yardstick for building and checking a zoo; the tables' scores come from the real harnesses.
"""

from __future__ import annotations

import re

import torch

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
    if item.subtask == "gsm8k":
        return final_number(reply) == item.fields["answer"]
    if item.subtask == "math":
        return boxed(reply) == item.fields["answer"]
    return reply.strip() == item.response.strip()


@torch.no_grad()
def replies(model, tokenizer, prompts: list[str], batch: int = 100) -> list[str]:
    """Greedy replies to single-turn dialogues, in the order asked; batches of prompts of like length."""
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True, tokenize=False)
        for p in prompts
    ]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    answers = [""] * len(texts)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        inputs = tokenizer([texts[i] for i in rows], padding=True, padding_side="left", return_tensors="pt")
        inputs.pop("token_type_ids", None)
        tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        for i, new in zip(rows, tokens[:, inputs["input_ids"].shape[1] :], strict=True):
            answers[i] = tokenizer.decode(new, skip_special_tokens=True)
    return answers


def skills(
    model, tokenizer, subtasks: tuple[str, ...], n: int, seed: int, split: str = "validation"
) -> dict[str, float]:
    """Percent correct per sub-task, over ``n`` items of ``split``."""
    asked = [item for subtask in subtasks for item in items(subtask, split, n, seed)]
    given = replies(model, tokenizer, [item.prompt for item in asked])
    hits = dict.fromkeys(subtasks, 0)
    for item, reply in zip(asked, given, strict=True):
        hits[item.subtask] += correct(item, reply)
    return {subtask: round(100 * hits[subtask] / n, 1) for subtask in subtasks}
