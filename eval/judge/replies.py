"""Whether a judge's reply can be used at all; those that cannot are counted, and the count is shown with the score."""

from __future__ import annotations

from eval.judge import pairs, rules
from eval.judge.prices import text


def is_unparsable(request: dict, reply: dict) -> bool:
    """Whether ``reply`` holds nothing of what ``request`` asks for.

    A comparison of two answers must name one of them. An extracted answer must be of the kind that the question wants
    (an option, a number, a list); that there is none, said as the harness knows it, is an answer. Anything else must
    only say something.
    """
    prompt = next((text(m) for m in reversed(request["messages"]) if m.get("role") == "user"), "")
    content = reply["choices"][0]["message"].get("content") or ""
    if pairs.is_request(prompt):
        return pairs.probability(reply) is None if request.get("logprobs") else content.strip() not in pairs.TOKENS
    task = rules.parse(prompt)
    if task is not None:
        return content.strip() != rules.REFUSAL and rules.extract(task[0], content.strip()) is None
    return not content.strip()
