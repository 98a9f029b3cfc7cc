"""Who really answers the judge's requests: the rules, or an OpenAI-compatible service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from emkit.errors import UserError
from emkit.files import sha256_file, sha256_json
from eval.judge import pairs, rules, spending
from eval.judge.prices import of_model, text
from eval.judge.service import Service, UpstreamError

MODE_VARIABLE = "JUDGE"
MODES = ("live", "replay")
_HERE, _TEXT = Path(__file__).parent, Path(__file__).parents[2] / "emkit" / "zoo" / "text"
# the code that the rules are made of
_RULES = [
    *(_HERE / f"{name}.py" for name in ("rules", "pairs")),
    *(_TEXT / f"{name}.py" for name in ("instructions", "words")),
]


class Rules:
    """Grades by rule; costs nothing and asks nobody."""

    name = f"rules {sha256_json([sha256_file(path) for path in _RULES])[:16]}"

    def __call__(self, request: dict) -> dict:
        """A chat completion: which of two answers is better, with log-probabilities (:mod:`eval.judge.pairs`), or the
        content that :func:`eval.judge.rules.reply` makes of the last user message.
        """
        prompt = next((text(m) for m in reversed(request["messages"]) if m.get("role") == "user"), "")
        choice = pairs.choice(prompt) if pairs.is_request(prompt) else {"content": rules.reply(prompt)}
        message = {"role": "assistant", "content": choice["content"]}
        return {
            "id": f"chatcmpl-{sha256_json(request)[:24]}",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "finish_reason": "stop",
                    "logprobs": choice.get("logprobs") if request.get("logprobs") else None,
                }
            ],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }


class Replay:
    """A service of which only the kept replies are used."""

    def __init__(self, url: str):
        self.name = url

    def __call__(self, request: dict) -> dict:
        """Nothing: the cache, asked before, has no reply."""
        raise UpstreamError(f"no kept reply for a request, and {MODE_VARIABLE}=replay asks nobody", 424)


def mode() -> str:
    """``JUDGE`` from the environment: ``live`` (the default), or ``replay``, which asks no service for anything."""
    given = os.environ.get(MODE_VARIABLE) or MODES[0]
    if given not in MODES:
        raise UserError(f"{MODE_VARIABLE} is {given!r}; it must be {' or '.join(MODES)}")
    return given


def is_service(upstream: str) -> bool:
    """Whether ``upstream`` is a service (paid, with a key) rather than the rules; ``UserError`` if it is neither."""
    if upstream == "rules":
        return False
    address = urlsplit(upstream)
    if address.scheme == "https" or (address.scheme == "http" and address.hostname in ("127.0.0.1", "localhost")):
        return True
    raise UserError(f"unknown judge upstream {upstream!r}: use rules, or the https:// base URL of a service")


class Upstream(Protocol):
    """Who answers; ``name`` is that of its kept replies."""

    name: str

    def __call__(self, request: dict) -> dict: ...


def open_upstream(upstream: str, folder: Path, model: str | None = None, max_usd: float | None = None) -> Upstream:
    """``rules``, or the base URL of a service (``https://…/v1``; plain http only on this machine).

    ``folder`` holds the account of what was spent, ``max_usd`` is the most that may be (:mod:`eval.judge.spending`).
    """
    if not is_service(upstream):
        return Rules()
    if model is not None:
        of_model(model)
    if mode() == "replay":
        return Replay(upstream)
    limit = spending.cap(max_usd)
    if limit is None:
        raise UserError(f"the judge at {upstream} costs money: say with --max-usd how much it may cost at most")
    return Service(upstream, spending.Ledger(folder, limit))
