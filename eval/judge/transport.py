"""An HTTP transport for a service that may be hostile: a deadline for a whole try, a limit on bytes, no redirects."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpcore
import httpx

LARGEST_REPLY = 4 * 2**20  # bytes of a whole reply, headers included

_try = threading.local()  # the deadline of the try that this thread makes, and the bytes that it may still read


@contextlib.contextmanager
def limited(seconds: float, size: int = LARGEST_REPLY) -> Iterator[None]:
    """In the block, what this thread reads ends after ``seconds`` in all, and after ``size`` bytes."""
    _try.deadline, _try.left = time.monotonic() + seconds, size
    try:
        yield
    finally:
        del _try.deadline, _try.left


def client(seconds: float) -> httpx.Client:
    """A client whose requests are :func:`limited` where they are made so; ``seconds``: for any one step."""
    transport = _Plain(trust_env=False)
    # httpx has no way to say by what its connections read: the pool is told
    transport._pool._network_backend = _Backend(transport._pool._network_backend)
    headers = {"Accept-Encoding": "identity"}
    return httpx.Client(transport=transport, headers=headers, timeout=seconds, follow_redirects=False, trust_env=False)


class _Plain(httpx.HTTPTransport):
    """A reply that is compressed, though nobody asked for it, could grow without a limit: it is not read."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            response.close()
            raise httpx.RemoteProtocolError("a compressed reply, which nobody asked for", request=request)
        return response


class _Backend(httpcore.NetworkBackend):
    """Connections whose every step ends with the try."""

    def __init__(self, backend: httpcore.NetworkBackend):
        self._backend = backend

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options=None
    ) -> httpcore.NetworkStream:
        return _Stream(self._backend.connect_tcp(host, port, _within(timeout), local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream):
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        found = self._stream.read(max_bytes, timeout=_within(timeout))
        if hasattr(_try, "left"):
            _try.left -= len(found)
            if _try.left < 0:
                raise httpcore.ReadError("the reply is larger than any judge's")
        return found

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout=_within(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> _Stream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _within(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _within(timeout: float | None) -> float | None:
    """The time that a step may take: what is left of the try, if that is less."""
    if not hasattr(_try, "deadline"):
        return timeout
    left = _try.deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the whole try took too long")
    return left if timeout is None else min(timeout, left)
