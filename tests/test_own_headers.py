"""``--dry-run`` reads headers alone: of models on the hub by ranges, of original layouts without a conversion."""

import os
import re

import own_models as own
import pytest
import torch
from published import internvl_chat
from test_own_adapters import DOWN, Q, write_adapter
from test_own_hub import Hub, server  # noqa: F401 - a fixture

from emkit import cli
from emkit.checkpoints import Checkpoint
from emkit.own import headers, hub


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """Base and experts (one of several shards) as ``user/<name>``."""
    models = own.write_models(tmp_path / "models", hidden_size=64, intermediate_size=128)
    for name in ("base", *own.EXPERTS):
        files = {file.name: file.read_bytes() for file in (models / name).iterdir()}
        monkeypatch.setitem(Hub.models, f"user/{name}", files)
    return models


def arguments(out, *more):
    experts = ["--expert", "user/math", "--expert", "user/code"]
    return ["merge", "--base", "user/base", *experts, "--method", "ties", "--out", str(out), *more]


def bytes_of_weights():
    return sum(count for file, count in Hub.sent if file.endswith(".safetensors"))


def test_a_dry_run_fetches_headers_and_says_what_a_merge_would(server, offered, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    models = [Hub.models[f"user/{name}"] for name in ("base", *own.EXPERTS)]
    weights = sum(len(c) for files in models for name, c in files.items() if name.endswith(".safetensors"))
    assert cli.main(arguments(tmp_path / "out", "--dry-run")) == 0
    said = capsys.readouterr()
    assert said.out == "everything fits; nothing was merged (--dry-run)\n"
    kept = [path for path in (tmp_path / "hub").rglob("*") if path.name.endswith(".safetensors")]
    assert kept == [] and not (tmp_path / "out").exists()
    assert bytes_of_weights() <= weights  # a request is of 100 kB, so that these small files come whole, but once
    assert re.search(rf"download: disk {weights / 1e3:.1f} kB of", said.err)
    # the same merge, the same plan
    plan = [line for line in said.err.splitlines() if "tensors are merged" in line]
    assert cli.main(arguments(tmp_path / "out")) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "tensors are merged" in line] == plan


def test_a_header_of_more_than_a_request_is_read_whole_and_values_are_not(server, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "wide"
    model = {f"{'a' * 200}.{i}": torch.zeros(50) for i in range(600)}  # a header of 170 kB, values of 120 kB
    own.write_models(tmp_path / "models")
    os.rename(tmp_path / "models" / "base", folder)
    own.rewrite(folder, model)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setitem(Hub.models, "user/wide", files)
    seen = headers.see("user/wide", "the base", tmp_path / "seen")
    there, found = Checkpoint.open(folder), Checkpoint.open(seen.folder)
    assert seen.hollow and seen.fetch == len(files["model.safetensors"])
    assert found.names == there.names and all(found.info(name) == there.info(name) for name in there.names)
    assert (seen.folder / "model.safetensors").stat().st_size == len(files["model.safetensors"])
    assert (seen.folder / "model.safetensors").stat().st_blocks * 512 < 250_000


@pytest.mark.parametrize("wrong", ["shape", "header", "gone"])
def test_what_a_merge_would_refuse_a_dry_run_refuses(server, offered, tmp_path, capsys, monkeypatch, wrong):  # noqa: F811
    files = dict(Hub.models["user/math"])
    if wrong == "shape":
        key = "model.layers.0.mlp.down_proj.weight"
        own.rewrite(offered / "math", {key: torch.zeros(3, 3)})
        files["model.safetensors"] = (offered / "math" / "model.safetensors").read_bytes()
    elif wrong == "header":
        files["model.safetensors"] = b"\xff" * 8 + b"x" * 100
    else:
        del files["model.safetensors"]
    monkeypatch.setitem(Hub.models, "user/math", files)
    assert cli.main(arguments(tmp_path / "out", "--dry-run")) == 2
    expected = {
        "shape": "does not fit the base",
        "header": "expert 'math': the header of user/math/model.safetensors cannot be read",
        "gone": "neither model.safetensors nor",
    }
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and expected[wrong] in error[0]


def test_what_is_here_is_looked_at_as_ever(server, offered, tmp_path, capsys):  # noqa: F811
    """Fetched once, an expert that is the base is found out by a dry run, too."""
    Hub.models["user/math"] = Hub.models["user/base"]
    for name in ("user/base", "user/math"):
        hub.folder(name, "it", (*hub.SMALL, *hub.WEIGHTS))
    assert cli.main(arguments(tmp_path / "out", "--dry-run")) == 2
    assert "identical to the base in every tensor" in capsys.readouterr().err


def test_an_adapter_on_the_hub(server, offered, tmp_path, capsys, monkeypatch):  # noqa: F811
    folder = write_adapter(tmp_path / "lora", None, {Q: (64, 64), DOWN: (64, 128)})
    monkeypatch.setitem(Hub.models, "user/lora", {file.name: file.read_bytes() for file in folder.iterdir()})
    given = arguments(tmp_path / "out", "--expert", "user/lora", "--allow", "adapter_base")
    assert cli.main([*given, "--dry-run"]) == 0
    assert not list((tmp_path / "hub").rglob("*.safetensors"))


def test_an_original_layout_is_not_converted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    internvl_chat(tmp_path / "base")
    for number, name in enumerate("ab", 1):
        internvl_chat(tmp_path / name, seed=number, like=tmp_path / "base")
    experts = ["--expert", str(tmp_path / "a"), "--expert", str(tmp_path / "b")]
    given = ["merge", "--base", str(tmp_path / "base"), *experts, "--method", "ties", "--out", str(tmp_path / "out")]
    assert cli.main([*given, "--dry-run"]) == 0
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    plan = [line for line in capsys.readouterr().err.splitlines() if "tensors are merged" in line]
    assert cli.main(given) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "tensors are merged" in line] == plan


def test_disk_counts_what_stands_beside_the_weights(offered, tmp_path, capsys):
    """A tokenizer can be larger than a small model's weights."""
    own.set_json(offered / "base" / "tokenizer.json", padding_of_ours="x" * 5_000_000)
    assert cli.main([*own.flags(offered, tmp_path / "out"), "--dry-run"]) == 0
    assert re.search(r"disk 5\.\d MB of", capsys.readouterr().err)
