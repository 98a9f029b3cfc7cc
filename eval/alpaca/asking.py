"""A column of AlpacaEval: the backbone answers in batches, the judge compares the answers with the reference's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from emkit.progress import report
from eval.alpaca import client
from eval.asking import Judged, Merged, Prompt
from eval.columns.kinds import AlpacaEval


def prompts(data: Path, column: AlpacaEval, seconds: float | None) -> list[Prompt]:
    """Every instruction."""
    return [Prompt(one.index, one.text) for one in client.prompts(data, column)]


def untemplated(tokenizer: Any) -> Any:
    """The tokenizer without its chat template, so that a question is asked as plain text; the one given stays."""
    plain = copy.copy(tokenizer)
    plain.chat_template = None
    return plain


def ask(merged: Merged, column: AlpacaEval, judged: Judged) -> tuple[list[dict], dict]:
    """Items and harness of one column."""
    plan = merged.plan
    data, limit = plan.data(merged.job.split), plan.protocol.request_seconds or client.REQUEST_SECONDS
    prompts = client.prompts(data, column)
    texts = [prompt.text for prompt in prompts]
    tokenizer = merged.opened[1] if column.chat else untemplated(merged.opened[1])
    answers = merged.answers(column, tokenizer, [None] * len(texts), texts)
    report("compared by AlpacaEval")
    with judged.counted() as (opened, counts):
        given = {prompt.index: answer for prompt, answer in zip(prompts, answers)}
        result = client.evaluate(data, column, given, opened.base_url, limit)
    return result.items, {**result.harness, "judge": counts}
