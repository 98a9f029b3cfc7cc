"""What a request to a paid judge costs: at most, before it is sent, and in fact, from the reply's token counts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from emkit.errors import UserError
from emkit.schema import nearest

FILE = Path(__file__).with_name("prices.yaml")
_PER_MESSAGE = 16  # tokens that a message costs besides its text: role, separators, the reply's opening
_LONGEST_REPLY = 16_384  # tokens, where a request sets no limit


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens, with where and when they were read."""

    input: float
    output: float
    source: str
    date: str

    def of(self, prompt: float, reply: float) -> float:
        """Dollars for so many tokens of prompt and reply."""
        return (prompt * self.input + reply * self.output) / 1e6

    def bound(self, request: dict) -> float:
        """Dollars that ``request`` cannot exceed: no tokenizer makes more tokens than a text has UTF-8 bytes."""
        text = json.dumps(request, ensure_ascii=False)
        prompt = _PER_MESSAGE * len(request["messages"]) + len(text.encode(errors="surrogatepass"))
        limit = request.get("max_completion_tokens", request.get("max_tokens"))
        return self.of(prompt, _LONGEST_REPLY if limit is None else limit)

    def used(self, usage: Any) -> float | None:
        """Dollars for a reply's ``usage``; None when it does not say."""
        try:
            counts = [float(usage["prompt_tokens"]), float(usage["completion_tokens"])]
        except (TypeError, KeyError, ValueError):
            return None
        return self.of(*counts) if all(0 <= count < math.inf for count in counts) else None


@cache
def _all() -> dict[str, Price]:
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {model: Price(**entry | {"date": str(entry["date"])}) for model, entry in entries.items()}


def of_model(model: str) -> Price:
    """The price of a snapshot; raises ``UserError`` for one that is not in ``prices.yaml``."""
    if model not in _all():
        raise UserError(f"no price is known for judge {model!r}: {nearest(model, list(_all()))}; add it to {FILE}")
    return _all()[model]


def text(message: dict) -> str:
    """The text of one chat message, whose content is a text or a list of text parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
