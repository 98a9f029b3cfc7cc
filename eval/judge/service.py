"""An OpenAI-compatible service as the judge's upstream: key, retries with back-off, and the cap on spending."""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import random
import re
import threading
import time
from typing import Any

from eval.judge import transport
from eval.judge.prices import Price, of_model
from eval.judge.spending import CapReached, Ledger

KEY_VARIABLE = "OPENAI_API_KEY"
AT_ONCE = 64  # requests; the harness asks from as many threads
TRIES = 7
SECONDS = 60.0  # for one try
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between tries, doubled each time
LONGEST_SAID = 300.0  # seconds that the service may say instead
_AGAIN = {408, 409, 425, 429}  # statuses worth another try, as are all from 500
_GIVE_UP = 3  # requests in a row that failed in every try: then the service is taken to be down


class UpstreamError(Exception):
    """The upstream gave no reply. The message is safe to show: it holds no key and no text of the service's.

    ``status`` is what the proxy answers with. Each is one that no client tries again: the tries were made here.
    """

    def __init__(self, message: str, status: int = 424):
        super().__init__(message)
        self.status = status


class Service:
    """The service at ``url``, asked by the ``openai`` client; what a request may cost is booked in ``ledger`` first.

    The key is read from the environment when the first request is sent, so a cache that answers them all needs none.
    """

    def __init__(self, url: str, ledger: Ledger):
        self.name, self._ledger = url, ledger
        self._lock, self._slots = threading.Lock(), threading.BoundedSemaphore(AT_ONCE)
        self._client: Any = None
        self._key = ""
        self._down: tuple[str, int] | None = None
        self._failed = 0  # requests in a row

    def __call__(self, request: dict) -> dict:
        """The reply as JSON, log-probabilities included; raises :class:`UpstreamError`."""
        price = of_model(request["model"])
        with self._slots:
            if self._down is not None:
                raise UpstreamError(*self._down)
            try:
                reply = self._persist(request, price)
            except UpstreamError as error:
                self._count_failure(error)
                raise
        self._failed = 0
        return reply

    def _count_failure(self, error: UpstreamError) -> None:
        """A refusal that holds for every request, or several failures in a row, end the asking."""
        with self._lock:
            self._failed += 1
            if error.status != 424 or self._failed >= _GIVE_UP:
                self._down = (str(error), error.status)

    def _persist(self, request: dict, price: Price) -> dict:
        """Try until there is a good reply, a failure that will not pass, or no try left."""
        self._opened()
        bound = price.bound(request)
        for attempt in range(TRIES):
            try:
                self._ledger.reserve(bound)
            except CapReached as error:
                raise UpstreamError(str(error), 402) from None
            cost = bound  # for as long as nobody knows whether it was charged, and how much
            try:
                status, headers, body = self._post(request)
                reply = _parsed(body, self._key) if status == 200 else None
                if status == 200:
                    used = price.used((reply or {}).get("usage"))
                    cost = bound if used is None else used
                elif status:
                    cost = 0.0
            finally:
                self._ledger.settle(bound, cost)
            if reply is not None:
                return _of_model(reply, request["model"])
            if status == 200:
                problem = "the service's replies are no chat completions"
            elif status == 0:
                problem = f"the service cannot be reached ({body})"
            else:
                problem = _refusal(status, body)
                if status not in _AGAIN and status < 500:
                    raise UpstreamError(problem, 401 if status in (401, 403) else 424)
                if _word(body, "code") == "insufficient_quota":
                    raise UpstreamError("the account has no credit left (insufficient_quota)", 402)
            if attempt < TRIES - 1:
                time.sleep(_wait(headers, FIRST_PAUSE * 2**attempt))
        raise UpstreamError(f"{problem}, {TRIES} times in a row")

    def _post(self, request: dict) -> tuple[int, dict, str]:
        """(status, headers, body) of one try; status 0 and the kind of error when there was no whole reply."""
        import httpx
        import openai

        client = self._opened()
        try:
            with transport.limited(SECONDS):
                got = client.post("/chat/completions", body=request, cast_to=httpx.Response)
            return got.status_code, dict(got.headers), got.text
        except openai.APIStatusError as error:
            return error.status_code, dict(error.response.headers), error.response.text
        except (openai.OpenAIError, httpx.HTTPError, UnicodeError) as error:
            kind = type(error).__name__  # its text, or that of what it was raised from, could hold the key
        return 0, {}, kind

    def _opened(self):
        with self._lock:
            if self._client is None:
                from openai import OpenAI

                key = os.environ.get(KEY_VARIABLE, "").strip()
                if not key:
                    raise UpstreamError(f"the judge at {self.name} needs a key: set {KEY_VARIABLE}", 401)
                if not key.isascii() or not key.isprintable() or " " in key:
                    raise UpstreamError(f"{KEY_VARIABLE} holds characters that no key has", 401)
                self._key = key
                http = transport.client(SECONDS)
                self._client = OpenAI(base_url=self.name, api_key=key, max_retries=0, timeout=SECONDS, http_client=http)
            return self._client


def _parsed(body: str, key: str) -> dict | None:
    """The chat completion in ``body``, ``key`` masked in whatever it says; None if it is none: garbage, cut off, or
    without a message."""
    try:
        reply = _masked(json.loads(body), key)
        message = reply["choices"][0]["message"]
        content = message["content"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return reply if content is None or isinstance(content, str) else None


def _masked(value: Any, key: str) -> Any:
    """A JSON value without the key, however it was spelt (an escaped letter is the letter by now)."""
    if isinstance(value, str):
        return value.replace(key, "<key>")
    if isinstance(value, list):
        return [_masked(part, key) for part in value]
    if isinstance(value, dict):
        return {name.replace(key, "<key>"): _masked(part, key) for name, part in value.items()}
    return value


def _of_model(reply: dict, model: str) -> dict:
    """``reply``, if the snapshot that was asked for gave it."""
    if reply.get("model") != model:
        by = re.sub(r"[^\w.:/-]", "", str(reply.get("model")))[:60]
        raise UpstreamError(f"asked for {model}, the service answered with {by}")
    return reply


def _refusal(status: int, body: str) -> str:
    if status in (401, 403):
        return f"the service refuses the key in {KEY_VARIABLE} (status {status})"
    return f"the service answers with status {status} ({_word(body, 'code') or _word(body, 'type') or 'no code'})"


def _word(body: str, key: str) -> str:
    """The service's own short name for an error; never its sentences, in which harnesses look for words."""
    try:
        value = json.loads(body)["error"][key]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return value if isinstance(value, str) and re.fullmatch(r"[a-z_]{1,40}", value) else ""


def _wait(headers: dict, pause: float) -> float:
    """Seconds until the next try: what ``Retry-After`` says (seconds or a date), else ``pause`` and a random part."""
    said, seconds = headers.get("retry-after", ""), -1.0
    with contextlib.suppress(TypeError, ValueError):
        seconds = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
    with contextlib.suppress(ValueError):
        seconds = float(said)
    if seconds >= 0:
        return min(seconds, LONGEST_SAID)
    return min(pause, LONGEST_PAUSE) * random.uniform(0.5, 1.0)
