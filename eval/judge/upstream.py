"""Who really answers the judge's requests: the rules, or an OpenAI-compatible service."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from emkit.errors import UserError
from emkit.files import sha256_file, sha256_json
from eval.judge import rules

KEY_VARIABLE = "OPENAI_API_KEY"


class UpstreamError(Exception):
    """The upstream gave no reply; the message is safe to show (it holds no key)."""


class Rules:
    """Grades by rule; costs nothing and asks nobody."""

    name = f"rules {sha256_file(Path(rules.__file__))[:16]}"

    def __call__(self, request: dict) -> dict:
        """A chat completion whose only content is :func:`eval.judge.rules.reply` to the last user message."""
        message = {"role": "assistant", "content": rules.reply(_last_user_text(request["messages"]))}
        return {
            "id": f"chatcmpl-{sha256_json(request)[:24]}",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }


def _last_user_text(messages: list[dict]) -> str:
    content = next((m.get("content") for m in reversed(messages) if m.get("role") == "user"), "")
    if isinstance(content, list):
        content = "\n".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


class Service:
    """An OpenAI-compatible service at ``url``, with the key from the environment and a cap on calls."""

    def __init__(self, url: str, calls: int):
        key = os.environ.get(KEY_VARIABLE)
        if not key:
            raise UserError(f"the judge's upstream {url} needs a key: set {KEY_VARIABLE} in the environment")
        from openai import OpenAI

        self.name, self._key, self._left, self._lock = url, key, calls, threading.Lock()
        self._client = OpenAI(base_url=url, api_key=key, max_retries=5)

    def __call__(self, request: dict) -> dict:
        """Forward the request; :class:`UpstreamError` when it fails or the cap is reached."""
        with self._lock:
            if self._left <= 0:
                raise UpstreamError("the cap on judge calls is reached: raise it with --calls")
            self._left -= 1
        from openai import OpenAIError

        try:
            return self._client.chat.completions.create(**request).model_dump(mode="json")
        except (OpenAIError, TypeError) as error:
            text = f"{type(error).__name__}: {error}".replace(self._key, "<key>")
        raise UpstreamError(text)  # outside the handler: the cause could carry the key


def open_upstream(upstream: str, calls: int) -> Callable[[dict], dict]:
    """``rules``, or the base URL of a service (``https://…/v1``; plain http only on this machine)."""
    if upstream == "rules":
        return Rules()
    address = urlsplit(upstream)
    if address.scheme == "https" or (address.scheme == "http" and address.hostname in ("127.0.0.1", "localhost")):
        return Service(upstream, calls)
    raise UserError(f"unknown judge upstream {upstream!r}: use rules, or the https:// base URL of a service")
