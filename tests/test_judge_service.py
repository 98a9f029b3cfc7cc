"""A paid judge against a service on this machine that fails in every way a service can."""

import json
import resource
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_judge_server import post

from emkit.errors import UserError
from eval import judge
from eval.__main__ import main
from eval.judge import estimate, prices, server, service
from eval.judge.cache import Cache
from eval.judge.spending import CapReached, Ledger
from eval.plan import Plan

ROOT = Path(__file__).parent.parent
KEY = "sk-a-key-that-must-not-appear"
MODEL = "gpt-4o-mini-2024-07-18"
PRICE = prices.of_model(MODEL)
LOGPROBS = {
    "content": [{"token": "m", "logprob": -0.1, "bytes": [109], "top_logprobs": [{"token": "m", "logprob": -0.1}]}]
}
HTML = b"<html>502 Bad gateway</html>"


def asking(text: str, **more) -> dict:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 10, **more}


def completion(text: str = "fine", **more) -> dict:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "logprobs": LOGPROBS,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 7,
        "model": MODEL,
        "choices": [choice],
        "usage": usage,
    } | more


class Service(ThreadingHTTPServer):
    """Plays ``script``, one act a request, the last for ever: (status, body, headers), or a function of the handler."""

    daemon_threads, request_queue_size = True, 256

    def __init__(self):
        self.script, self.requests, self.times, self.lock = [(200, completion(), {})], [], [], threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *args):
        """Broken connections are part of the play."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked = request
        with self.server.lock:
            self.server.requests.append((request, self.headers["Authorization"]))
            self.server.times.append(time.monotonic())
            script = self.server.script
            act = script.pop(0) if len(script) > 1 else script[0]
        if callable(act):
            act = act(self)
        if act is not None:
            self.reply(*act)

    def reply(self, status, body, headers, missing=0):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) - missing])

    def log_message(self, *args):
        pass


def error(status: int, code: str = "some_code", headers=None) -> tuple:
    """What OpenAI sends, with sentences that AlpacaEval would take for a reason to go on without a score."""
    message = f"Rate limit reached for {KEY}. Please try again with a different prompt. Please reduce."
    return status, {"error": {"message": message, "code": code, "type": "t"}}, headers or {}


def cut_off(handler):
    handler.reply(200, completion(), {}, missing=40)
    handler.close_connection = True


def hang_up(handler):
    handler.connection.close()


def slow(handler):
    time.sleep(2)


@pytest.fixture
def upstream(monkeypatch):
    """The service; its tries follow each other at once."""
    monkeypatch.setattr(service, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(service, "SECONDS", 0.5)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("JUDGE", raising=False)
    monkeypatch.setenv("EMKIT_MAX_USD", "1")
    server = Service()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_whole_reply_is_kept_and_replayed_offline(tmp_path, upstream, monkeypatch):
    request = asking("which?", logprobs=True, top_logprobs=5)
    with judge.opened(tmp_path, upstream.url, model=MODEL) as proxy:
        assert post(proxy.url, request) == (200, completion())
    assert upstream.requests == [(request, f"Bearer {KEY}")]
    upstream.script = [error(500)]
    monkeypatch.delenv("OPENAI_API_KEY")
    with judge.opened(tmp_path, upstream.url) as proxy:  # a full cache needs no key
        assert post(proxy.url, request) == (200, completion())
    monkeypatch.setenv("JUDGE", "replay")
    monkeypatch.delenv("EMKIT_MAX_USD")
    with judge.opened(tmp_path, upstream.url) as proxy:
        assert post(proxy.url, request)[1]["choices"][0]["logprobs"] == LOGPROBS
        status, reply = post(proxy.url, asking("another"))
        assert status == 424 and "JUDGE=replay asks nobody" in reply["error"]["message"] == proxy.failure
    assert len(upstream.requests) == 1


TRIED_AGAIN = [
    *(error(500), error(503), error(408), error(409), error(429, "rate_limit_exceeded"), (502, HTML, {})),
    *((200, HTML, {}), (200, b"", {}), (200, b"[" * 10_000, {}), (200, b"\xff\xfe", {}), (200, {}, {})),
    *(
        (200, {"choices": []}, {}),
        (200, completion(choices=[{}]), {}),
        (200, json.dumps(completion()).encode()[:-30], {}),
    ),
    *(cut_off, hang_up, slow),
]


@pytest.mark.parametrize("act", TRIED_AGAIN, ids=lambda act: getattr(act, "__name__", str(act))[:30])
def test_what_may_pass_is_tried_again(tmp_path, upstream, act):
    upstream.script = [act, act, (200, completion(), {})]
    with judge.opened(tmp_path, upstream.url) as proxy:
        assert post(proxy.url, asking("x")) == (200, completion())
    assert len(upstream.requests) == 3
    assert proxy.counts == {"requests": 1, "asked": 1, "unparsable": 0, "failed": 0}


def test_a_service_that_is_down_is_given_up(tmp_path, upstream, monkeypatch):
    monkeypatch.setattr(service, "TRIES", 3)
    upstream.script = [error(503)]
    with judge.opened(tmp_path, upstream.url) as proxy:
        replies = [post(proxy.url, asking(str(i))) for i in range(5)]
    assert {status for status, _ in replies} == {424} and "status 503" in proxy.failure
    assert len(upstream.requests) == 9  # three requests in a row, three times each; then nobody is asked any more
    assert not list(tmp_path.rglob("??/*.json"))


@pytest.mark.parametrize(
    ("act", "status", "said"),
    [
        (error(401, "invalid_api_key"), 401, "refuses the key in OPENAI_API_KEY"),
        (error(403), 401, "refuses the key"),
        (error(429, "insufficient_quota"), 402, "no credit left"),
        (error(400, "context_length_exceeded"), 424, "status 400 (context_length_exceeded)"),
        ((200, completion(model="gpt-4o-mini-2026-01-01"), {}), 424, "answered with gpt-4o-mini-2026-01-01"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(tmp_path, upstream, act, status, said, capfd):
    upstream.script = [act]
    with judge.opened(tmp_path, upstream.url) as proxy:
        got, reply = post(proxy.url, asking("x"))
    assert got == status and said in proxy.failure == reply["error"]["message"]
    assert len(upstream.requests) == 1
    shown = json.dumps(reply) + "".join(capfd.readouterr())
    assert KEY not in shown and not list(tmp_path.rglob("??/*.json"))
    for word in (
        "rate ",
        "please reduce",
        "different prompt",
    ):  # AlpacaEval goes on without a score when it reads these
        assert word not in shown.lower()


@pytest.mark.parametrize("said", ["1", formatdate(time.time() + 3600, usegmt=True)], ids=["seconds", "a date"])
def test_the_service_says_when_to_come_again(tmp_path, upstream, said, monkeypatch):
    monkeypatch.setattr(service, "LONGEST_SAID", 1.0)
    upstream.script = [error(429, headers={"Retry-After": said}), (200, completion(), {})]
    with judge.opened(tmp_path, upstream.url) as proxy:
        assert post(proxy.url, asking("x"))[0] == 200
    first, second = upstream.times
    assert second - first >= 0.9


def test_thirty_two_requests_at_once(tmp_path, upstream, monkeypatch):
    together = threading.Barrier(32)

    def wait_for_the_others(handler):
        together.wait(30)  # breaks, and the test fails, unless 32 are under way at the same time
        return 200, completion(), {}

    upstream.script = [wait_for_the_others]
    monkeypatch.setattr(service, "SECONDS", 60)
    with judge.opened(tmp_path, upstream.url) as proxy, ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda i: post(proxy.url, asking(str(i)))[0], range(32)))
    assert replies == [200] * 32
    assert Ledger(tmp_path, 1).spent() == pytest.approx(32 * PRICE.of(100, 10))


def test_a_harness_with_the_openai_client_tries_nothing_again(tmp_path, upstream):
    """AlpacaEval's client would try 409, 429 and all from 500 twice more by itself."""
    import openai

    with judge.opened(tmp_path, upstream.url) as proxy:
        client = openai.OpenAI(base_url=proxy.base_url, api_key="none")
        reply = client.chat.completions.create(**asking("x", logprobs=True))
        assert reply.choices[0].logprobs.content[0].top_logprobs[0].token == "m"
        for act, status in ((error(401), 401), (error(400), 424), ((200, completion(model="other"), {}), 424)):
            proxy.upstream._down, upstream.script = None, [act]
            with pytest.raises(openai.APIStatusError) as raised:
                client.chat.completions.create(**asking(str(act)))
            assert raised.value.status_code == status
    assert proxy.counts["requests"] == 4


def test_the_same_request_at_once_is_asked_once(tmp_path, upstream):
    def later(handler):
        time.sleep(0.3)
        return 200, completion(), {}

    upstream.script = [later]
    with judge.opened(tmp_path, upstream.url) as proxy, ThreadPoolExecutor(8) as pool:
        assert {
            post(proxy.url, asking("x"))[0] for _ in pool.map(lambda i: post(proxy.url, asking("x")), range(8))
        } == {200}
    assert len(upstream.requests) == 1 and proxy.counts["requests"] == 16


def test_who_asks_second_gets_what_was_kept_first(tmp_path):
    one, other = (Cache(tmp_path, "judge") for _ in range(2))
    assert one.put({"a": 1}, {"reply": 1}) == {"reply": 1} == other.put({"a": 1}, {"reply": 2})


# ---------------------------------------------------------------------------------------------------- money
def test_the_cap_holds_before_a_request_is_sent(tmp_path, upstream, monkeypatch):
    each, bound = PRICE.of(100, 10), PRICE.bound(asking("0"))
    monkeypatch.setenv("EMKIT_MAX_USD", str(2 * each + bound))
    with judge.opened(tmp_path, upstream.url) as proxy:
        replies = [post(proxy.url, asking(str(i))) for i in range(6)]
        assert [status for status, _ in replies] == [200, 200, 200, 402, 402, 402]
        assert "the cap of $" in proxy.failure and len(upstream.requests) == 3
        assert post(proxy.url, asking("1"))[0] == 200  # what is kept costs nothing
    with judge.opened(tmp_path, upstream.url) as proxy:  # and a new process starts with what is left
        assert post(proxy.url, asking("9"))[0] == 402
    assert len(upstream.requests) == 3


def test_what_may_have_been_charged_counts(tmp_path, upstream):
    ledger = Ledger(tmp_path, 1)
    for number, (act, charged) in enumerate([(cut_off, True), ((200, HTML, {}), True), (error(500), False)]):
        before, request = ledger.spent(), asking(str(number))
        upstream.script = [act, (200, completion(), {})]
        with judge.opened(tmp_path, upstream.url) as proxy:
            assert post(proxy.url, request)[0] == 200
        assert ledger.spent() - before == pytest.approx(PRICE.of(100, 10) + charged * PRICE.bound(request))


def test_the_bound_is_one():
    assert PRICE.bound(asking("x" * 100)) >= PRICE.of(100, 10)
    assert PRICE.bound({"messages": [{"content": [{"type": "text", "text": "é" * 100}]}]}) >= PRICE.of(200, 16_384)
    assert PRICE.of(1_000_000, 1_000_000) == pytest.approx(0.75)  # 15 and 60 cents


def test_the_account_is_shared_and_never_overdrawn(tmp_path):
    """Whoever books and is gone without a word may have been charged."""

    def book(_):
        try:
            Ledger(tmp_path, 1.0).reserve(0.3)
            return 1
        except CapReached:
            return 0

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(book, range(8))) == 3
    with pytest.raises(CapReached, match=r"\$0\.9000 spent, and a request may cost \$0\.2000"):
        Ledger(tmp_path, 1.0).reserve(0.2)
    assert Ledger(tmp_path, 1.0).spent() == pytest.approx(0.9)
    assert not list((tmp_path / "booked").glob("*.json"))


def test_what_is_booked_is_not_spent_and_who_finds_all_booked_waits(tmp_path):
    first, second = Ledger(tmp_path, 1.0), Ledger(tmp_path, 1.0)
    first.reserve(0.9)
    assert first.spent() == 0
    done = threading.Event()

    def wait():
        second.reserve(0.9)
        done.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert not done.wait(0.5), "0.9 are booked of 1.0"
    first.settle(0.9, 0.05)
    assert done.wait(10) and first.spent() == pytest.approx(0.05)
    second.settle(0.9, 0.05)
    assert second.spent() == pytest.approx(0.1)
    with pytest.raises(CapReached, match=r"\$0\.1000 spent, and a request may cost \$0\.9500"):
        second.reserve(0.95)


def test_what_a_killed_process_had_booked_counts_as_spent(tmp_path):
    code = "import os, sys; from eval.judge.spending import Ledger; Ledger(sys.argv[1], 1.0).reserve(0.4); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode == 9
    ledger = Ledger(tmp_path, 1.0)
    assert ledger.spent() == 0  # nobody has looked yet
    ledger.reserve(0.1)
    assert ledger.spent() == pytest.approx(0.4)


@pytest.mark.parametrize(
    "content", ["nonsense", '{"usd": NaN}', '{"usd": -1}', '{"usd": Infinity}', '{"usd": true}', "[]"]
)
def test_an_account_that_is_no_amount_is_damaged_and_nothing_is_asked(tmp_path, content):
    ledger = Ledger(tmp_path, 1.0)
    ledger.path.write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        ledger.reserve(0.1)
    with pytest.raises(UserError, match="is damaged"):
        ledger.spent()


@pytest.mark.parametrize("content", ["nonsense", '{"usd": NaN}', '{"usd": -1}'])
def test_a_booking_that_is_no_amount_is_damaged(tmp_path, content):
    (tmp_path / "booked").mkdir()
    (tmp_path / "booked" / "x.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        Ledger(tmp_path, 1.0).reserve(0.1)


# ------------------------------------------------------------------------------------------- a hostile service
def steadily(handler):
    """A byte every twentieth of a second, for as long as anybody listens."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def steady_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(1000):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def endless(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(10**9))
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" " * 2**20)


def bomb(handler):
    """A gigabyte of blanks."""
    packed = zlib.compressobj(wbits=31)
    body = b"".join([*(packed.compress(b" " * 2**20) for _ in range(1024)), packed.flush()])
    handler.reply(200, body, {"Content-Encoding": "gzip"})


@pytest.mark.parametrize("act", [steadily, steady_headers, endless, bomb])
def test_a_service_that_never_ends_is_given_up(tmp_path, upstream, act, monkeypatch):
    monkeypatch.setattr(service, "TRIES", 2)
    upstream.script = [act]
    began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with judge.opened(tmp_path, upstream.url) as proxy:
        status, reply = post(proxy.url, asking("x"))
    assert status == 424 and "cannot be reached" in reply["error"]["message"]
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 * 1024  # kB


def test_a_prompt_goes_to_no_other_host(tmp_path, upstream):
    elsewhere = Service()
    threading.Thread(target=elsewhere.serve_forever, args=(0.02,), daemon=True).start()
    there = f"http://127.0.0.1:{elsewhere.server_address[1]}/v1/chat/completions"
    for status in (301, 302, 307, 308):
        upstream.script = [(status, {}, {"Location": there})]
        with judge.opened(tmp_path, upstream.url) as proxy:
            found, reply = post(proxy.url, asking(str(status)))
        assert found == 424 and f"status {status}" in reply["error"]["message"]
    assert elsewhere.requests == []
    elsewhere.shutdown()
    elsewhere.server_close()


def test_a_key_in_a_reply_is_masked_however_it_is_spelt(tmp_path, upstream):
    spelt = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
    body = json.dumps(completion("KEY"))
    upstream.script = [(200, body.replace("KEY", spelt).encode(), {})]
    with judge.opened(tmp_path, upstream.url) as proxy:
        status, reply = post(proxy.url, asking("x"))
    assert status == 200 and reply["choices"][0]["message"]["content"] == "<key>"
    assert KEY not in json.dumps(reply) and not [f for f in tmp_path.rglob("*.json") if KEY in f.read_text()]


def test_sixty_four_at_once_spend_no_more_than_the_cap_and_all_that_can_be_paid_are_answered(
    tmp_path, upstream, monkeypatch
):
    """200 requests that cost a hundredth of what they might: none is refused for what others have only booked."""
    each, bound = PRICE.of(100, 10), PRICE.bound(asking("0000"))
    monkeypatch.setenv("EMKIT_MAX_USD", str(200 * each + 2 * bound))
    with judge.opened(tmp_path, upstream.url) as proxy, ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda i: post(proxy.url, asking(f"{i:04d}"))[0], range(200)))
    assert found == [200] * 200
    assert Ledger(tmp_path, 1).spent() == pytest.approx(200 * each)


# --------------------------------------------------------------------------------------------------- the key
@pytest.mark.parametrize(("key", "said"), [(None, "needs a key: set OPENAI_API_KEY"), (KEY + "\nx", "no key has")])
def test_without_a_key_nobody_is_asked(tmp_path, upstream, monkeypatch, key, said):
    monkeypatch.delenv("OPENAI_API_KEY")
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with judge.opened(tmp_path, upstream.url) as proxy:
        assert post(proxy.url, asking("x"))[0] == 401
        assert said in proxy.failure and KEY not in proxy.failure
    assert upstream.requests == [] and Ledger(tmp_path, 1).spent() == 0


def test_the_key_is_nowhere(tmp_path, upstream, monkeypatch):
    """Not in any file, reply, log or traceback, with the client's own log at its most talkative."""
    monkeypatch.setenv("OPENAI_LOG", "debug")
    echo = completion(f"heard your key {KEY}")
    upstream.script = [
        error(429),
        cut_off,
        hang_up,
        (200, HTML, {"X-Echo": KEY}),
        (200, echo, {"X-Echo": KEY}),
        error(401),
    ]
    code = f"""
import json, urllib.request
from eval import judge
from eval.judge import service
service.FIRST_PAUSE = 0.001
with judge.opened({str(tmp_path / "cache")!r}, {upstream.url!r}) as proxy:
    for request in {[asking("x"), asking("y")]!r}:
        try:
            print(urllib.request.urlopen(proxy.url, json.dumps(request).encode()).read())
        except urllib.error.HTTPError as error:
            print(error.read())
    print(proxy.failure)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "heard" in done.stdout and "refuses the key" in done.stdout
    assert KEY not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 3 and not any(KEY in path.read_text(errors="replace") for path in files)
    assert {key for _, key in upstream.requests} == {f"Bearer {KEY}"}


# ---------------------------------------------------------------------------------------------- the estimate
def test_the_estimate_of_a_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("EMKIT_MAX_USD", raising=False)
    plan = Plan("table1", "paper", tmp_path)
    found = {line.benchmark: line for line in estimate.lines(plan)}
    assert set(found) == {"MathVista", "MATH-Vision"}
    assert found["MathVista"].requests == 1000 * len(plan.jobs) and found["MATH-Vision"].requests == 304 * len(
        plan.jobs
    )
    tokens = found["MathVista"].prompt_tokens * 0.15e-6 + found["MathVista"].reply_tokens * 0.60e-6
    assert found["MathVista"].dollars == pytest.approx(1000 * len(plan.jobs) * tokens)
    shown = estimate.text(plan)
    assert f"judge {MODEL} at https://api.openai.com/v1" in shown and "cap $10" in shown and "2024-07-18" in shown
    mini = Plan("table1", "mini", tmp_path)
    assert estimate.total(mini) == 0 and "costs nothing" in estimate.text(mini)
    assert main(["reproduce", "table1", "--max-usd", "much"]) == 2
    assert capsys.readouterr().err == "error: --max-usd is 'much'; it must be an amount in US dollars, such as 5\n"


def test_what_a_request_costs_is_bounded_by_all_of_it():
    price = prices.of_model("gpt-4o-mini-2024-07-18")
    short = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    assert price.bound({**short, "stop": ["x" * 100_000]}) >= price.bound(short) + price.of(100_000, 0)
    for wrong in (float("nan"), -5, float("inf"), None, "many"):
        assert price.used({"prompt_tokens": wrong, "completion_tokens": 1}) is None
    assert price.used({"prompt_tokens": 2, "completion_tokens": 1}) == price.of(2, 1)
    assert "'tools'" in server._wrong({**short, "tools": [{"name": "x" * 100_000}]}) and not server._wrong(short)
