"""A table whose models are hub ids: fetched once from a server made on the spot, read offline ever after."""

import json
import shutil

import own_models as own
import pytest
import test_own_hub
from published import internvl_chat
from test_asked_as_published import plan_of
from test_own_hub import SHA, Hub, server  # noqa: F401 - a fixture

from emkit import cli
from emkit.errors import UserError
from eval import merging, models
from eval.lessons import probe
from eval.places import Job

MODELS = {"base": "user/base", "experts": {name: f"user/{name}" for name in own.EXPERTS}}


def offer(folder, name, monkeypatch):
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setitem(Hub.models, f"user/{name}", files)


@pytest.fixture
def plan(server, tmp_path, monkeypatch):  # noqa: F811
    home = own.write_models(tmp_path / "models")
    for name in ("base", *own.EXPERTS):
        offer(home / name, name, monkeypatch)
    return plan_of(home, tmp_path / "run", models=MODELS)


def provided(plan):
    stamp = plan.run / "zoo.done"
    models.provide(plan, stamp)
    assert stamp.is_file() and models.are_there(plan)


def test_revisions_are_recorded_and_rows_run_without_a_network(plan, server, tmp_path):  # noqa: F811
    models.check(plan)  # before anything is here, it says nothing of what is to be fetched
    assert not models.are_there(plan)
    unknown = plan.expected(Job("em", 0), "MATH")["model_sha256"]
    with pytest.raises(UserError, match="base: user/base is not fetched yet"):
        merging.merge(plan, Job("em", 0), tmp_path / "no" / "model", tmp_path / "cache")
    provided(plan)
    assert json.loads(plan.revisions.read_text()) == dict.fromkeys(("user/base", "user/math", "user/code"), SHA)
    assert plan.expected(Job("em", 0), "MATH")["model_sha256"] != unknown
    server.shutdown()
    server.server_close()
    provided(plan)
    for row in plan.rows:
        merging.merge(plan, Job(row, 0), tmp_path / row / "model", tmp_path / "cache")
    local = plan_of(tmp_path / "models", tmp_path / "local")
    merging.merge(local, Job("em", 0), tmp_path / "here" / "model", tmp_path / "cache2")
    fetched, here = (own.tensors(tmp_path / part / "model") for part in ("em", "here"))
    assert all(fetched[name].equal(tensor) for name, tensor in here.items())


def test_a_model_that_changes_on_the_hub_stays_what_it_was(plan, monkeypatch):
    provided(plan)
    before, folder = plan.expected(Job("em", 0), "MATH"), plan.folder("math")
    monkeypatch.setattr(test_own_hub, "SHA", "2" * 40)
    monkeypatch.setitem(Hub.models, "user/math", {**Hub.models["user/math"], "model.safetensors": b"others"})
    provided(plan)
    assert plan.expected(Job("em", 0), "MATH") == before and plan.folder("math") == folder


def test_notebooks_open_the_revision_that_the_runs_read(plan, server):  # noqa: F811
    assert probe.open_zoo(plan.profile_path, "mistral", plan.home.parent).named["math"] == "user/math"
    provided(plan)
    server.shutdown()
    server.server_close()
    zoo = probe.open_zoo(plan.profile_path, "mistral", plan.home.parent)
    assert zoo.named == {"base": f"user/base@{SHA}", "math": f"user/math@{SHA}", "code": f"user/code@{SHA}"}
    assert zoo.experts.labels == own.EXPERTS


def test_an_id_with_a_revision_of_its_own_is_fetched_at_it_and_once(plan, tmp_path, server):  # noqa: F811
    experts = {"math": "user/math@v1", "code": "user/code"}
    pinned = plan_of(tmp_path / "models", tmp_path / "pinned", models=MODELS | {"experts": experts})
    provided(pinned)
    assert json.loads(pinned.revisions.read_text())["user/math@v1"] == SHA
    assert [path for path in Hub.asked if path.endswith("user/math/revision/v1")]
    server.shutdown()
    server.server_close()
    provided(pinned)


def test_no_room_is_said_before_weights_are_fetched(plan, tmp_path, monkeypatch):
    usage = shutil.disk_usage(plan.home.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(UserError, match=r"fetching the models needs .* set HF_HOME"):
        provided(plan)
    assert list((tmp_path / "hub").rglob("config.json")) and not list((tmp_path / "hub").rglob("*.safetensors"))


def test_small_files_of_all_come_before_any_weights(plan, monkeypatch):
    monkeypatch.delitem(Hub.models, "user/code")
    with pytest.raises(UserError, match="the hub has no public model of that name"):
        provided(plan)
    assert not [path for path in Hub.asked if path.endswith(".safetensors")]


def test_weights_that_came_in_pieces_are_noticed(plan):
    provided(plan)
    blob = (plan.folder("math") / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    plan.revisions.unlink()
    with pytest.raises(UserError, match=r"math: model\.safetensors did not come whole, or was changed since: delete "):
        provided(plan)


def test_weights_that_are_gone_from_the_cache_are_fetched_again(plan):
    provided(plan)
    (plan.folder("math") / "model.safetensors").resolve().unlink()
    models.check(plan)  # passes over it: the models step fetches it
    assert not models.are_there(plan)
    provided(plan)


def test_the_export_of_a_merge_of_a_hub_id_has_its_code(server, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = internvl_chat(tmp_path / "base")
    offer(base, "base", monkeypatch)
    expert = internvl_chat(tmp_path / "math", 1, like=base)
    given = ["merge", "--base", "user/base", "--expert", str(expert), "--method", "task_arithmetic"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 0
    assert cli.main(["export", str(tmp_path / "out"), "--like", "user/base", "--out", str(tmp_path / "back")]) == 0
    assert (tmp_path / "back" / "modeling_internvl_chat.py").read_bytes() == (
        base / "modeling_internvl_chat.py"
    ).read_bytes()


def test_a_damaged_record_is_one_line(plan):
    plan.revisions.parent.mkdir(parents=True)
    plan.revisions.write_text("[")
    with pytest.raises(UserError, match="is damaged"):
        provided(plan)


def test_a_model_in_its_original_layout(server, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = internvl_chat(tmp_path / "base")
    offer(base, "base", monkeypatch)
    for seed, name in enumerate(own.EXPERTS, 1):
        offer(internvl_chat(tmp_path / name, seed, like=base), name, monkeypatch)
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "the thing"}\n{"prompt": "in"}\n')
    plan = plan_of(tmp_path, tmp_path / "run", models=MODELS, backbone="internvl")
    provided(plan)
    assert not [path for path in Hub.asked if path.endswith(".py")]
    report = merging.merge(plan, Job("em", 0), tmp_path / "em" / "model", tmp_path / "fits")
    assert report["merged_tensors"] == 7 * 3 + 3
    assert json.loads((tmp_path / "em" / "model" / "config.json").read_text())["model_type"] == "internvl"
