"""Hub ids: what is fetched, from a server made on the spot, and one line when it cannot be."""

import hashlib
import http.server
import json
import threading
from pathlib import Path

import huggingface_hub.constants
import own_models as own
import pytest
import torch
import yaml

from emkit import cli
from emkit.errors import UserError
from emkit.own import hub

SHA = "1" * 40
FILES: dict[str, bytes] = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights" * 10,
    "consolidated.safetensors": b"the same weights again",
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickled",
    "original/params.json": b"{}",
    "tokenizer.json": b"{}",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Of the hub's interface the part that a download takes; ``models`` are its files by name and path."""

    models: dict[str, dict[str, bytes]] = {"user/model": FILES}  # noqa: RUF012 - the tests' own, like the next
    asked: list[str] = []  # noqa: RUF012
    sent: list[tuple[str, int]] = []  # noqa: RUF012 - file, bytes

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        start = next(part for part in ("/api/models", "/api/datasets", "/datasets", "") if path.startswith(part))
        name = "/".join(path.removeprefix(start).split("/")[1:3])
        rest, files = path.partition(name)[2], self.models.get(name, {})
        if files and rest == "/revision/none":
            return self.reply(404, b"", **{"X-Error-Code": "RevisionNotFound"})
        if files and rest.startswith("/revision/"):
            return self.reply(200, json.dumps({"id": name, "sha": SHA, "siblings": []}).encode())
        if files and rest.startswith("/tree/"):
            entries = [{"type": "file", "path": p, "size": len(b), "oid": etag(b)} for p, b in files.items()]
            return self.reply(200, json.dumps(entries).encode())
        if (file := rest.removeprefix(f"/resolve/{SHA}/")) in files:
            content, status = files[file], 200
            if given := self.headers.get("Range"):
                first, last = map(int, given.removeprefix("bytes=").split("-"))
                content, status = content[first : last + 1], 206
            self.sent.append((file, len(content) if self.command == "GET" else 0))
            return self.reply(status, content, **{"ETag": f'"{etag(files[file])}"', "X-Repo-Commit": SHA})
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
    return hashlib.sha256(content).hexdigest()  # as the hub names files of weights


@pytest.fixture
def server(monkeypatch, tmp_path):
    Hub.asked.clear()
    Hub.sent.clear()
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


def test_a_merge_of_models_on_the_hub(server, tmp_path, monkeypatch, capsys):
    """Configurations before weights: an expert that cannot fit is refused before any weight is asked for."""
    own.write_models(tmp_path / "models")
    for name in ("base", *own.EXPERTS):
        files = {file.name: file.read_bytes() for file in (tmp_path / "models" / name).iterdir()}
        monkeypatch.setitem(Hub.models, f"user/{name}", {**files, "consolidated.safetensors": b"again", "a.py": b"!"})
    given = ["merge", "--base", "user/base", "--expert", "user/math", "--expert", "c=user/code@v1", "--method", "ties"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 0
    assert "download: disk" in capsys.readouterr().err
    assert not [path for path in Hub.asked if path.endswith((".py", "consolidated.safetensors"))]
    card = yaml.safe_load((tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert card["base_model"] == ["user/base", "user/math", "user/code"]
    here = own.merge(tmp_path / "models", tmp_path / "here", "ties")
    assert own.tensors(here).keys() == own.tensors(tmp_path / "out").keys()
    assert all(torch.equal(tensor, own.tensors(here)[name]) for name, tensor in own.tensors(tmp_path / "out").items())
    other = {**Hub.models["user/math"], "config.json": b'{"model_type": "llama", "num_hidden_layers": 9}'}
    monkeypatch.setitem(Hub.models, "user/other", other)
    Hub.asked.clear()
    Hub.sent.clear()
    assert cli.main([*given, "--expert", "user/other", "--out", str(tmp_path / "not")]) == 2
    assert "expert 'other' does not fit the base: blocks (num_hidden_layers) 9, the base's 2" in capsys.readouterr().err
    assert not [path for path in Hub.asked if path.endswith(".safetensors")]


def test_a_folder_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("user/model").mkdir(parents=True)
    assert hub.folder("user/model", "the base", hub.SMALL) == Path("user/model")
    assert hub.missing_bytes("user/model", "the base") == 0
