"""The proxy itself: POST /v1/chat/completions on 127.0.0.1, answered from the cache or by the upstream."""

import argparse
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from emkit.errors import UserError
from eval.judge.cache import Cache
from eval.judge.upstream import UpstreamError, open_upstream

PATH = "/v1/chat/completions"
CALLS = 20_000  # most calls of a paid upstream while one proxy runs, which is as long as one row is scored
_LARGEST_REQUEST = 8 * 2**20  # bytes


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # the harness calls from 64 threads at once

    def __init__(self, port: int, cache: Path, upstream: str, calls: int, model: str | None):
        self.upstream = open_upstream(upstream, calls)
        self.cache = Cache(cache, self.upstream.name)
        self.model = model
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """The whole path, as the harness wants it in OPENAI_API_BASE."""
        return f"http://127.0.0.1:{self.server_address[1]}{PATH}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self):
        if self.path != PATH:
            return self._fail(404, f"no such path; post to {PATH}")
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= _LARGEST_REQUEST:
            return self._fail(413, f"a request needs 1 to {_LARGEST_REQUEST} bytes")
        try:
            request = json.loads(self.rfile.read(length))
        except ValueError:
            return self._fail(400, "the request is not JSON")
        if wrong := _wrong(request):
            return self._fail(400, wrong)
        if self.server.model:  # before the cache is asked: it holds what the upstream was asked
            request["model"] = self.server.model
        try:
            reply = self.server.cache.get(request)
            if reply is None:
                reply = self.server.upstream(request)
                self.server.cache.put(request, reply)
        except UpstreamError as error:
            return self._fail(502, str(error))
        except UserError as error:  # the cache cannot be written
            return self._fail(500, str(error))
        return self._send(200, reply)

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


def _wrong(request) -> str:
    """Why ``request`` cannot be served, or ""."""
    if not isinstance(request, dict) or not isinstance(request.get("model"), str):
        return "the request names no model"
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return "the request has no messages"
    if request.get("stream") or request.get("n") not in (None, 1):
        return "only one reply, not streamed, is supported"
    return ""


@contextlib.contextmanager
def running(
    cache_dir: str | Path, upstream: str = "rules", calls: int = CALLS, model: str | None = None
) -> Iterator[str]:
    """Run a judge in threads of this process for the time of the block; yields its URL (the whole path).

    ``model`` is what the upstream is asked for, whatever a request names; None leaves the request's own.
    """
    server = _Server(0, Path(cache_dir), upstream, calls, model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def cli(argv: list[str]) -> int:
    """``python -m eval judge``: print the judge's URL and serve until interrupted. Exit status 0, or 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m eval judge", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--cache", type=Path, required=True, help="folder of requests and replies")
    parser.add_argument("--upstream", default="rules", help="rules, or the https:// base URL of a service")
    parser.add_argument("--calls", type=int, default=CALLS, help=f"most calls of the service (default {CALLS})")
    parser.add_argument("--model", help="model to ask the service for (default: what a request names)")
    options = parser.parse_args(argv)
    try:
        server = _Server(options.port, options.cache, options.upstream, options.calls, options.model)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, OverflowError) as error:
        print(f"error: cannot listen on port {options.port}: {error}; choose another --port", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(server.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0
