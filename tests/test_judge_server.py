"""The proxy as its clients see it: protocol, cache, upstream, and that a key is written nowhere."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from emkit.errors import UserError
from eval import judge
from eval.judge import prices, rules, server
from eval.judge.cache import Cache

KEY = "sk-a-key-that-must-not-appear"
HELLO = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}


def post(url: str, body, headers=None) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def service(monkeypatch):
    """An OpenAI-compatible service that counts its calls, checks the key and echoes it when told to fail."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.calls += 1
            server.keys.add(self.headers["Authorization"])
            server.models.append(request["model"])
            status = server.status
            body = {"error": {"message": f"bad key {KEY}"}}
            if status == 200:
                message = {"role": "assistant", "content": f"heard {request['messages'][-1]['content']}"}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                body = {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": request["model"],
                    "choices": [choice],
                }
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    free = prices.Price(0, 0, "test", "2026-01-01")
    monkeypatch.setattr(prices, "_all", lambda: dict.fromkeys((HELLO["model"], "pinned-2024-07-18", "another"), free))
    monkeypatch.setenv("EMKIT_MAX_USD", "1")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.calls, server.keys, server.models, server.status = 0, set(), [], 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_replies_follow_the_protocol_and_are_kept(tmp_path):
    with judge.running(tmp_path) as url:
        assert url.startswith("http://127.0.0.1:") and url.endswith("/v1/chat/completions")
        status, reply = post(url, HELLO)
        again = post(url, HELLO)
    assert status == 200 and again == (200, reply)
    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": rules.GREETING}
    (file,) = tmp_path.rglob("*.json")
    record = json.loads(file.read_text())
    assert record["request"] == HELLO and record["reply"] == reply
    assert file.stem[:2] == file.parent.name


def test_the_cache_answers_before_the_upstream(tmp_path, service, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    upstream = f"http://127.0.0.1:{service.server_address[1]}/v1"
    for _ in range(2):
        with judge.running(tmp_path, upstream) as url:
            assert post(url, HELLO)[1]["choices"][0]["message"]["content"] == "heard hello"
            post(url, {**HELLO, "temperature": 0.5})
    assert service.calls == 2
    assert service.keys == {f"Bearer {KEY}"}
    assert not any(KEY in file.read_text() for file in tmp_path.rglob("*.json"))


def test_a_failing_upstream_is_an_error_without_the_key_and_is_not_kept(tmp_path, service, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    service.status = 401
    with judge.running(tmp_path, f"http://127.0.0.1:{service.server_address[1]}/v1") as url:
        status, reply = post(url, HELLO)
    assert status == 401 and KEY not in json.dumps(reply) and "401" in reply["error"]["message"]
    assert not list(tmp_path.rglob("??/*.json"))


def test_the_upstream_is_asked_for_the_pinned_model(tmp_path, service, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    upstream = f"http://127.0.0.1:{service.server_address[1]}/v1"
    for model in (None, "pinned-2024-07-18", "pinned-2024-07-18", "another"):
        with judge.running(tmp_path, upstream, model=model) as url:
            assert post(url, HELLO)[0] == 200
    assert service.models == [HELLO["model"], "pinned-2024-07-18", "another"]  # and no model's reply is another's


def test_a_damaged_cache_file_is_made_anew(tmp_path):
    with judge.running(tmp_path) as url:
        good = post(url, HELLO)
        (file,) = tmp_path.rglob("*.json")
        file.write_text(file.read_text()[:40])
        assert post(url, HELLO) == good
    assert json.loads(file.read_text())["reply"] == good[1]


def test_another_judge_has_other_replies(tmp_path):
    Cache(tmp_path, "one").put(HELLO, {"a": 1})
    assert Cache(tmp_path, "one").get(HELLO) == {"a": 1}
    assert Cache(tmp_path, "two").get(HELLO) is None


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        [],
        {},
        {"model": "m"},
        {"model": "m", "messages": []},
        {"model": "m", "messages": ["hello"]},
        {**HELLO, "n": 2},
        {**HELLO, "stream": True},
        {**HELLO, "max_tokens": -5},
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    ],
)
def test_bad_requests_get_a_clear_400(tmp_path, body):
    with judge.running(tmp_path) as url:
        status, reply = post(url, body)
    assert status == 400 and reply["error"]["message"]


def test_other_paths_are_refused(tmp_path):
    with judge.running(tmp_path) as url:
        assert post(url.replace("/chat/", "/other/"), HELLO)[0] == 404


def test_only_who_was_told_the_path_is_answered(tmp_path):
    with judge.running(tmp_path) as url, judge.running(tmp_path / "2") as other:
        assert url.split("/")[3] != other.split("/")[3] and len(url.split("/")[3]) >= 32
        guessed = url.replace(url.split("/")[3] + "/", "")
        for where in (guessed, url.replace(url.split("/")[3], other.split("/")[3]), url + "?x", url + "/"):
            status, reply = post(where, HELLO)
            assert status == 404 and reply["error"]["message"] == "no such path"
        assert post(url, HELLO)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "example.org"},  # a name that was made to lead here
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Referer": "https://example.org/page"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_browser_is_not_answered(tmp_path, headers):
    with judge.running(tmp_path) as url:
        assert post(url, HELLO, headers)[0] == 403


@pytest.mark.parametrize("verb", ["GET", "PUT", "DELETE", "OPTIONS", "NONSENSE"])
def test_another_verb_gets_an_error_in_json(tmp_path, verb):
    with judge.running(tmp_path) as url:
        request = urllib.request.Request(url, method=verb)
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(request)
        assert json.load(raised.value)["error"]["code"] == raised.value.code


def test_a_request_that_trickles_in_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_READ", 1.0)
    with judge.running(tmp_path) as url:
        address, path = url.removeprefix("http://").split("/", 1)
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"POST /{path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 5000\r\n\r\n".encode())
            began = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - began < 20:
                    connection.sendall(b" ")
                    time.sleep(0.2)
                    connection.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        if found := connection.recv(1000):
                            assert b" 408 " in found
                        break
                    connection.setblocking(True)
        assert time.monotonic() - began < 10


def test_a_defect_is_an_error_in_json(tmp_path, monkeypatch):
    def broken(self, request):
        raise RuntimeError(f"with {KEY} in it")

    monkeypatch.setattr(server.Judge, "answer", broken)
    with judge.running(tmp_path) as url:
        status, reply = post(url, HELLO)
    assert status == 424 and reply["error"]["message"] == "the judge failed: RuntimeError"


def test_upstreams_that_cannot_be(tmp_path, monkeypatch):
    def opening(upstream, **options):
        with judge.opened(tmp_path, upstream, **options):
            pass

    with pytest.raises(UserError, match="unknown judge upstream"):
        opening("http://example.org/v1")
    with pytest.raises(UserError, match="costs money: say with --max-usd"):
        opening("https://example.org/v1")
    with pytest.raises(UserError, match="no price is known for judge 'gpt-4o-mini': did you mean 'gpt-4o-mini-2024"):
        opening("https://example.org/v1", model="gpt-4o-mini", max_usd=1)
    monkeypatch.setenv("EMKIT_MAX_USD", "ten")
    with pytest.raises(UserError, match="EMKIT_MAX_USD is 'ten'"):
        opening("https://example.org/v1", max_usd=1)
    monkeypatch.setenv("JUDGE", "sometimes")
    with pytest.raises(UserError, match="JUDGE is 'sometimes'; it must be live or replay"):
        opening("https://example.org/v1", max_usd=1)


def test_command_line(tmp_path):
    bad = subprocess.run(
        [sys.executable, "-m", "eval", "judge", "--cache", str(tmp_path), "--upstream", "nobody"],
        capture_output=True,
        text=True,
    )
    assert (
        bad.returncode == 2 and bad.stderr.startswith("error: unknown judge upstream") and bad.stderr.count("\n") == 1
    )
    command = [sys.executable, "-m", "eval", "judge", "--cache", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        assert post(url, HELLO)[0] == 200
        process.terminate()
        assert process.wait(10) == 0
