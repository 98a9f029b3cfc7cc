"""`make doctor`, and what a user meets before anything long starts: one line each that says what to do."""

import json
import shutil

import own_models as own
import pytest
import tiny_models as tiny
from small_plan import write
from test_asked_as_published import plan_of
from test_own_hub import Hub, server  # noqa: F401 - a fixture
from test_resolved import offer

from emkit.errors import UserError
from eval import devices, doctor, models, needs
from eval.__main__ import main
from eval.judge.service import KEY_VARIABLE

IDS = {"base": "user/base", "experts": {name: f"user/{name}" for name in own.EXPERTS}}


@pytest.fixture
def home(tmp_path):
    return own.write_models(tmp_path / "models")


def lines(plan):
    return {found.what: found for found in doctor.examine(plan)}


def asked(plan, *more):
    return [str(plan.path), "--profile", str(plan.profile_path), "--results", str(plan.home.parent), *more]


def test_where_everything_is_there_it_says_so(home, tmp_path, capsys):
    plan = plan_of(home, tmp_path / "run")
    assert main(["doctor", *asked(plan)]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == "everything is there" and "MISSING" not in text
    for what in ("packages", "device", "models", "disk", "memory", "data", "calibration", "time"):
        assert f"ok       {what}" in text
    assert "judge" not in text and "sandbox" not in text, "no column of this table asks or runs anything"


def test_what_is_missing_is_said_line_by_line_and_the_rest_is_looked_at_all_the_same(
    home, tmp_path, capsys, monkeypatch
):
    (home / "math.jsonl").unlink()
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    plan = plan_of(home, tmp_path / "run", device="cuda")
    assert main(["doctor", *asked(plan)]) == 1
    found = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if "MISSING" in line]
    assert any(line.startswith("device       no GPU for `device: cuda`") for line in found)
    assert any("calibration.files.math: cannot read" in line for line in found)


def test_hub_ids_are_looked_at_by_their_small_files(home, tmp_path, server, monkeypatch):  # noqa: F811
    for name in ("base", *own.EXPERTS):
        offer(home / name, name, monkeypatch)
    plan = plan_of(home, tmp_path / "run", models=IDS)
    found = lines(plan)["models"]
    assert found.well and "3 models can be had; " in found.said and "kB to fetch" in found.said
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    assert not plan.revisions.exists(), "to look is not to take"


def gated(self, *given, **more):
    return Hub.reply(self, 403, b"", **{"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})


def without_template(home):
    own.set_json(home / "base" / "tokenizer_config.json", chat_template=None)
    (home / "base" / "chat_template.jinja").unlink(missing_ok=True)


def one_row_more(home):
    shutil.rmtree(home / "code")
    config = json.loads((home / "base" / "config.json").read_text())
    model = tiny.language_model(seed=1, vocab_size=config["vocab_size"] + 1)
    tiny.save(model, home / "code")


TERMS = "math: user/math asks for its terms to be accepted on its hub page, and `hf auth login`"
TEMPLATE = r"base \(user/base\) has no chat template, and MATH is asked as a chat: give the profile `models.tokenizer"
ROWS = r"expert 'code' has (\d+) tokens, the base (\d+): learned methods compare logits .*leave learned rows out"


@pytest.mark.parametrize(
    ("what", "words"),
    [("terms", TERMS), ("template", TEMPLATE), ("rows", ROWS)],
    ids=["gated", "no template", "one row more"],
)
def test_who_cannot_be_asked_or_learned_from_is_known_before_any_weights(
    what,
    words,
    home,
    tmp_path,
    server,  # noqa: F811
    monkeypatch,
):
    if what == "template":
        without_template(home)
    if what == "rows":
        one_row_more(home)
    for name in ("base", *own.EXPERTS):
        offer(home / name, name, monkeypatch)
    if what == "terms":
        usual = Hub.do_GET

        def closed(self):
            return gated(self) if "user/math" in self.path and "/resolve/" in self.path else usual(self)

        monkeypatch.setattr(Hub, "do_GET", closed)
        monkeypatch.setattr(Hub, "do_HEAD", closed)
    plan = plan_of(home, tmp_path / "run", models=IDS)
    with pytest.raises(UserError, match=words):
        models.provide(plan, plan.zoo_stamp)
    assert not [path for path in Hub.asked if path.endswith(".safetensors")] and not plan.zoo_stamp.exists()
    found = lines(plan)["models"]
    assert not found.well and len(found.said.splitlines()) == 1


def test_a_row_more_keeps_only_learned_rows_from_running(home, tmp_path):
    one_row_more(home)
    plan = plan_of(home, tmp_path / "run", leave_out=["em"])
    models.check(plan)


def test_without_a_key_the_judge_s_columns_are_named(home, tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    paid = {"judge_upstream": "https://api.openai.com/v1", "judge_model": "gpt-4o-mini-2024-07-18", "judge_max_usd": 10}
    plan = plan_of(home, tmp_path / "run", protocol=paid)
    table = {
        "title": "T",
        "columns": ["AlpacaEval"],
        "rows": [{"id": "base", "label": "Base", "method": "checkpoint", "model": "base"}],
    }
    (tmp_path / "other").mkdir()
    profile = plan.profile.model_dump(exclude_unset=True) | {"protocol": paid}
    judged = type(plan)(*write(tmp_path / "other", table, profile), tmp_path / "results")
    found = lines(judged)["judge"]
    assert not found.well and "AlpacaEval" in found.said and "no OPENAI_API_KEY" in found.said
    monkeypatch.setenv(KEY_VARIABLE, "sk-anything")
    found = lines(judged)["judge"]
    assert found.well and found.said.startswith("AlpacaEval: at most $") and "sk-anything" not in found.said


def test_a_card_that_is_too_small_is_said_with_what_takes_less(home, tmp_path, monkeypatch):
    plan = plan_of(home, tmp_path / "run", device="cuda")
    wanted = needs.needs(plan).device
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices.torch.cuda, "get_device_name", lambda device: "Some GPU")
    for memory, well in ((wanted, True), (wanted - 1, False)):
        monkeypatch.setattr(doctor, "_gpus", lambda memory=memory: [(0, "Some GPU", 2**50), (1, "Some GPU", memory)])
        found = {each.what: each for each in doctor.examine(plan) if each.what in ("memory", "device")}
        assert found["memory"].well == well
    assert found["memory"].said.startswith("GPU 1 (Some GPU) has ") and "checkpointing: true" in found["memory"].said
