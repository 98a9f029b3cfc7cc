"""Which of two answers to an instruction is better, as AlpacaEval asks it and as the rule judge says it.

AlpacaEval's annotator ``weighted_alpaca_eval_gpt-4o-mini-2024-07-18`` shows the judge an instruction and the answers
of two models, called ``m`` (the first) and ``M`` (the second), and reads from the log-probabilities of these two tokens
how probable it is that each is the better one. The rule judge says it the same way, of the miniature benchmark's own
instructions: they state demands that are known in full (:mod:`emkit.zoo.text.instructions`).
"""

from __future__ import annotations

import math

TOKENS = ("m", "M")  # the first answer is better, the second is
UNREADABLE = "?"  # the rule judge on what it cannot read or does not know the demands of; no name of AlpacaEval's
# AlpacaEval's own prompt (alpaca_eval_clf.txt), the text between its three fields
_BEFORE = '## Instruction\n\n{\n    "instruction": """'
_FIRST = (
    '""",\n}\n\n## Model Outputs\n\nHere are the unordered outputs from the models. Each output is associated with a '
    "specific model, identified by a unique model identifier.\n\n{\n    {\n"
    '        "model_identifier": "m",\n        "output": """'
)
_SECOND = '"""\n    },\n    {\n        "model_identifier": "M",\n        "output": """'
_AFTER = '"""\n    }\n}\n\n## Task\n\n'
_MOST = 0.99  # the rule judge's probabilities are never 0 or 1, and their logarithms stay finite
_START = "I require a leaderboard for various large language models."


def is_request(prompt: str) -> bool:
    """Whether ``prompt`` is AlpacaEval's comparison of two answers."""
    return prompt.lstrip().startswith(_START)


def parse(prompt: str) -> tuple[str, str, str] | None:
    """(instruction, first answer, second answer), or None when the prompt can be read in more than one way.

    The answers are what models wrote, and may hold the very text that separates them: then it is not guessed which
    part is whose.
    """
    fields: list[str] = []
    rest = prompt
    for marker in (_BEFORE, _FIRST, _SECOND, _AFTER):
        if rest.count(marker) != 1 or prompt.count(marker) != 1:
            return None
        field, rest = rest.split(marker)
        fields.append(field)
    _, instruction, first, second = fields
    return instruction, first, second


def grade(instruction: str, first: str, second: str) -> float | None:
    """Probability, in [0.01, 0.99], that ``first`` answers better: 1/2 plus 0.49 times how many more of the
    instruction's demands it meets, as a share of them. None where the demands are not known: nothing is guessed."""
    from emkit.zoo.text import instructions  # here, for it imports all that draws pictures

    if instructions.parse(instruction) is None:
        return None
    ours, theirs = (instructions.quality(instruction, answer) for answer in (first, second))
    return 0.5 + (_MOST - 0.5) * (ours - theirs)


def choice(prompt: str) -> dict:
    """``{"content", "logprobs"}`` of the rule judge's reply, as the service would give them for one token."""
    fields = parse(prompt)
    first = None if fields is None else grade(*fields)
    if first is None:
        return {"content": UNREADABLE, "logprobs": _logprobs({UNREADABLE: 1.0})}
    odds = dict(zip(TOKENS, (first, 1.0 - first)))
    return {"content": TOKENS[0] if first >= 0.5 else TOKENS[1], "logprobs": _logprobs(odds)}


def _logprobs(odds: dict[str, float]) -> dict:
    entries = [
        {"token": token, "bytes": list(token.encode()), "logprob": math.log(probability)}
        for token, probability in sorted(odds.items(), key=lambda pair: -pair[1])
    ]
    return {"content": [{**entries[0], "top_logprobs": entries}], "refusal": None}


def probability(reply: dict) -> float | None:
    """The probability that the first answer is better, from a reply's first token; None when it names neither answer.

    That of ``m`` divided by those of ``m`` and ``M`` together, as AlpacaEval's ``logprob_parser`` computes it.
    """
    try:
        top = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = {entry["token"]: math.exp(entry["logprob"]) for entry in top if entry["token"] in TOKENS}
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError):
        return None
    total = sum(found.values())
    return found.get(TOKENS[0], 0.0) / total if total > 0 else None
