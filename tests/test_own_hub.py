"""Hub ids: what is fetched, from a server made on the spot, and one line when it cannot be."""

import hashlib
import http.server
import json
import threading
from pathlib import Path

import huggingface_hub.constants
import pytest

from emkit.errors import UserError
from emkit.own import hub

SHA = "1" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights" * 10,
    "consolidated.safetensors": b"the same weights again",
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickled",
    "original/params.json": b"{}",
    "tokenizer.json": b"{}",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Of the hub's interface the part that a download takes; one model, user/model."""

    asked: list[str] = []  # noqa: RUF012 - of every request, read by the tests

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/user/model/revision/"):
            if path.endswith("/none"):
                return self.reply(404, b"", **{"X-Error-Code": "RevisionNotFound"})
            return self.reply(200, json.dumps({"id": "user/model", "sha": SHA, "siblings": []}).encode())
        if path.startswith("/api/models/user/model/tree/"):
            entries = [{"type": "file", "path": p, "size": len(b), "oid": etag(b)} for p, b in FILES.items()]
            return self.reply(200, json.dumps(entries).encode())
        prefix = f"/user/model/resolve/{SHA}/"
        if path.startswith(prefix) and path.removeprefix(prefix) in FILES:
            content = FILES[path.removeprefix(prefix)]
            return self.reply(200, content, **{"ETag": f'"{etag(content)}"', "X-Repo-Commit": SHA})
        return self.reply(404, b"", **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def reply(self, status, content, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *words):
        pass


def etag(content):
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def server(monkeypatch, tmp_path):
    Hub.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    there = f"http://127.0.0.1:{server.server_port}"
    template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        template.replace(huggingface_hub.constants.ENDPOINT, there),
    )
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", there)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    server.server_close()


def test_configuration_first_then_weights_never_code(server):
    small = hub.folder("user/model", "the base", hub.SMALL)
    assert {file.name for file in small.iterdir()} == {"config.json", "tokenizer.json"}
    assert hub.missing_bytes("user/model", "the base") == len(FILES["model.safetensors"])
    whole = hub.folder("user/model", "the base", (*hub.SMALL, *hub.WEIGHTS))
    assert whole == small and (whole / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    fetched = {path.rpartition("/")[2] for path in Hub.asked if "/resolve/" in path}
    assert fetched == {"config.json", "tokenizer.json", "model.safetensors"}
    assert hub.missing_bytes("user/model", "the base") == 0


def test_what_was_fetched_serves_without_a_network(server):
    whole = hub.folder("user/model", "the base", (*hub.SMALL, *hub.WEIGHTS))
    server.shutdown()
    server.server_close()
    assert hub.folder("user/model", "the base", (*hub.SMALL, *hub.WEIGHTS)) == whole
    assert hub.missing_bytes("user/model", "the base") == 0


@pytest.mark.parametrize(
    "name, match",
    [
        ("user/other", "no folder user/other here, and the hub has no public model of that name"),
        ("user/model@none", "user/model has no revision 'none'"),
        ("no/such/folder", "no folder no/such/folder, and it is no hub id"),
        ("./user", "no folder ./user, and it is no hub id"),
    ],
)
def test_what_is_not_there_is_one_line(server, name, match):
    with pytest.raises(UserError, match=match) as error:
        hub.folder(name, "expert 'a'", hub.SMALL)
    assert str(error.value).startswith("expert 'a': ") and "\n" not in str(error.value)


def test_without_a_network_is_one_line(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"no folder user/model here, and the hub cannot be reached .*: check") as error:
        hub.folder("user/model", "the base", hub.SMALL)
    assert "\n" not in str(error.value)


def test_a_folder_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("user/model").mkdir(parents=True)
    assert hub.folder("user/model", "the base", hub.SMALL) == Path("user/model")
    assert hub.missing_bytes("user/model", "the base") == 0
