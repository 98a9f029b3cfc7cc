"""The proxy itself: POST /v1/chat/completions on 127.0.0.1, answered from the cache or by the upstream."""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from emkit.errors import UserError
from eval.judge.cache import Cache
from eval.judge.replies import is_unparsable
from eval.judge.service import UpstreamError
from eval.judge.upstream import open_upstream

PATH = "/v1/chat/completions"
_LARGEST_REQUEST = 8 * 2**20  # bytes
_READ = 60.0  # seconds that a client may take to send its request


class Judge(ThreadingHTTPServer):
    """The listening proxy. ``counts`` says what it has done, ``failure`` why it last failed to answer ("": it did not).

    ``model`` is what the upstream is asked for, whatever a request names; None leaves the request's own.
    """

    daemon_threads = True
    request_queue_size = 256  # a harness calls from 64 threads at once

    def __init__(self, port: int, cache: str | Path, upstream: str, model: str | None, max_usd: float | None):
        self.upstream = open_upstream(upstream, Path(cache), model, max_usd)
        self.cache = Cache(cache, self.upstream.name)
        self.model, self.failure = model, ""
        self.counts = {"requests": 0, "asked": 0, "unparsable": 0, "failed": 0}
        self._lock, self._under_way = threading.Lock(), dict[str, Future]()
        self.path = f"/{secrets.token_urlsafe(24)}{PATH}"  # known to who was given it: nobody else is answered
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """The whole path, as VLMEvalKit wants it in OPENAI_API_BASE. It is a secret, new for each judge."""
        return f"http://127.0.0.1:{self.server_address[1]}{self.path}"

    @property
    def base_url(self) -> str:
        """The base, as the ``openai`` client and so AlpacaEval want it in OPENAI_BASE_URL."""
        return self.url.removesuffix("/chat/completions")

    def answer(self, request: dict) -> dict:
        """The reply to ``request``; the same request, asked by many at once, reaches the upstream once."""
        if self.model:  # before the cache is asked: it holds what the upstream was asked
            request = {**request, "model": self.model}
        key = self.cache.key(request)
        with self._lock:
            self.counts["requests"] += 1
            future, ours = self._under_way.get(key), False
            if future is None:
                future, ours = self._under_way.setdefault(key, Future()), True
        if ours:
            try:
                future.set_result(self._look_up_or_ask(request))
            except BaseException as error:
                future.set_exception(error)
            finally:
                del self._under_way[key]
        try:
            reply = future.result()
            unparsable = is_unparsable(request, reply)
        except Exception as error:
            with self._lock:
                self.counts["failed"] += 1
                self.failure = str(error)
            raise
        with self._lock:
            self.counts["unparsable"] += unparsable
        return reply

    def _look_up_or_ask(self, request: dict) -> dict:
        kept = self.cache.get(request)
        if kept is not None:
            return kept
        reply = self.cache.put(request, self.upstream(request))
        with self._lock:
            self.counts["asked"] += 1
        return reply

    def handle_error(self, request, client_address):
        """A client that went away, or a defect of ours, is one line without a traceback: those could quote headers."""
        kind = sys.exc_info()[0]
        if kind is not None and not issubclass(kind, (ConnectionError, TimeoutError)):
            print(f"judge: {kind.__name__} while answering a request", file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    server: Judge
    timeout = _READ

    def do_POST(self):
        if why := self._stranger():
            return self._fail(*why)
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = 0
        if not 0 < length <= _LARGEST_REQUEST:
            return self._fail(413, f"a request needs 1 to {_LARGEST_REQUEST} bytes")
        try:
            request = json.loads(self._body(length))
        except (ValueError, RecursionError):
            return self._fail(400, "the request is not JSON")
        except TimeoutError:
            return self._fail(408, f"the request took more than {_READ:g} s to arrive")
        if wrong := _wrong(request):
            return self._fail(400, wrong)
        try:
            return self._send(200, self.server.answer(request))
        except UpstreamError as error:
            return self._fail(error.status, str(error))
        except UserError as error:  # no price, or the cache cannot be written
            return self._fail(424, str(error))
        except Exception as error:  # its text could quote a header
            return self._fail(424, f"the judge failed: {type(error).__name__}")

    def _stranger(self) -> tuple[int, str] | None:
        """Status and reason for whoever is not the harness that was told the path: another user, a browser's page."""
        if not hmac.compare_digest(self.path.encode(), self.server.path.encode()):
            return 404, "no such path"
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            return 403, "a judge is asked by its own address alone"
        if any(name in self.headers for name in ("Origin", "Referer", "Sec-Fetch-Site")):
            return 403, "a judge answers no browser"
        return None

    def _body(self, length: int) -> bytes:
        """The request's bytes; ``TimeoutError`` when they take too long to come, however steadily."""
        deadline, parts = time.monotonic() + _READ, []
        while length:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.connection.settimeout(left)
            part = self.rfile.read1(length)
            if not part:
                raise ValueError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def send_error(self, code, message=None, explain=None):
        """Whatever the library refuses by itself (another verb, a header too long) is JSON, too."""
        self.close_connection = True
        self._fail(code, str(message or "refused"))

    def _fail(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": "judge_error", "code": status}})

    def _send(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Keep quiet: the cache is the log, and headers hold keys."""


# keys of a request whose cost is that of its messages and its reply's length
KNOWN = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "n"}
KNOWN |= {"user", "stream", "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty"}


def _wrong(request) -> str:
    """Why ``request`` cannot be served, or ""."""
    if not isinstance(request, dict) or not isinstance(request.get("model"), str):
        return "the request names no model"
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return "the request has no messages"
    if not all(_is_text(message.get("content")) for message in messages):
        return "a judge reads text only: what a picture costs could not be bounded"
    if unknown := sorted(set(request) - KNOWN):
        return f"'{unknown[0]}' is no key that a judge's request may have: what it costs could not be bounded"
    if request.get("stream") or request.get("n") not in (None, 1):
        return "only one reply, not streamed, is supported"
    limits = (request.get("max_tokens"), request.get("max_completion_tokens"))
    if not all(limit is None or (type(limit) is int and limit > 0) for limit in limits):
        return "max_tokens must be a whole number above 0"
    return ""


def _is_text(content) -> bool:
    if isinstance(content, list):
        return all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content)
    return content is None or isinstance(content, str)


@contextlib.contextmanager
def opened(
    cache_dir: str | Path, upstream: str = "rules", model: str | None = None, max_usd: float | None = None
) -> Iterator[Judge]:
    """Run a judge in threads of this process for the time of the block.

    ``max_usd``: the most that a service may cost, over all runs that share ``cache_dir``, where the environment's
    ``EMKIT_MAX_USD`` does not say another. Raises ``UserError`` for an upstream that cannot be.
    """
    judge = Judge(0, cache_dir, upstream, model, max_usd)
    thread = threading.Thread(target=judge.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        judge.shutdown()
        judge.server_close()
        thread.join()


@contextlib.contextmanager
def running(*arguments, **options) -> Iterator[str]:
    """:func:`opened`, for those who want its URL (the whole path) alone."""
    with opened(*arguments, **options) as judge:
        yield judge.url
