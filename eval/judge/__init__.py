"""The judge: a proxy on 127.0.0.1 that speaks OpenAI's chat-completions protocol.

Every harness gets its address and a dummy key; the proxy alone reads a real key (``OPENAI_API_KEY``, and only when it
asks a service), keeps every request and reply, tries again what may pass, and stops at the cap on spending. Upstream
is ``rules``, a judge that grades by rule (:mod:`eval.judge.rules`, :mod:`eval.judge.pairs`), or the base URL of an
OpenAI-compatible service. ``JUDGE=replay`` answers from what was kept and asks no service.
"""

from eval.judge.server import Judge, opened, running

__all__ = ["Judge", "opened", "running"]
