"""The judge: a proxy on 127.0.0.1 that speaks OpenAI's chat-completions protocol.

Every harness gets its address and a dummy key; the proxy alone would read a real key (from ``OPENAI_API_KEY``,
and only when its upstream is a URL), and keeps every request and reply.  Upstream is ``rules``, a small judge
that grades by rule (:mod:`eval.judge.rules`), or the base URL of an OpenAI-compatible service.
"""

from eval.judge.server import cli, running

__all__ = ["cli", "running"]
