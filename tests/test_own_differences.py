"""What differs between base and experts and is told: settings, distance, tokenizers, templates, code files, modes."""

import json
import math
import os

import own_models as own
import pytest
import tiny_models as tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emkit import cli
from emkit.own import init


@pytest.fixture
def models(tmp_path):
    return own.write_models(tmp_path / "models", dtype=torch.float32)


SETTINGS = {
    "sliding window": (
        "mistral",
        {"sliding_window": 8},
        {"sliding_window": None},
        "sliding_window is None there, 8 in",
    ),
    "norm": ("llama", {}, {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05 there, 1e-06 in the base"),
    "scaled logits": ("gpt_neox", {}, {"use_parallel_residual": False}, "use_parallel_residual is False there, True"),
    "experts a token": ("mixtral", {}, {"num_experts_per_tok": 1}, "num_experts_per_tok is 1 there, 2 in the base"),
    "dropout": ("llama", {}, {"attention_dropout": 0.1, "initializer_range": 0.5, "use_cache": False}, None),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_change_the_function_are_told(tmp_path, capsys, kind):
    """In a warning, in the card and in the report; those of training are not."""
    family, of_base, of_expert, told = SETTINGS[kind]
    models = own.write_models(tmp_path / "models", kind=family, **of_base)
    own.set_json(models / "math" / "config.json")
    config = json.loads((models / "math" / "config.json").read_text())
    (models / "math" / "config.json").write_text(json.dumps({**config, **of_expert}))
    out = own.merge(models, tmp_path / "out")
    error, card = capsys.readouterr().err, (out / "README.md").read_text(encoding="utf-8")
    warnings = json.loads((out / "emkit_merge.json").read_text())["warnings"]
    if told is None:
        assert "has other settings" not in error + card and warnings == []
    else:
        assert f"warning: expert 'math' has other settings, and the merged model the base's: {told}" in error
        assert told in card and any(told in warning for warning in warnings)


def test_an_expert_with_a_token_more(models, tmp_path, capsys):
    """Its blocks merge at its own values; embeddings are not merged, and a learned method cannot compare logits."""
    expert = AutoModelForCausalLM.from_pretrained(models / "math")
    words = AutoTokenizer.from_pretrained(models / "math")
    words.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    expert.resize_token_embeddings(len(words))
    tiny.save(expert, models / "math", words)
    given = ["merge", "--base", str(models / "base"), "--expert", f"math={models / 'math'}", "--method"]
    given += ["task_arithmetic", "--scale", "1", "--out", str(tmp_path / "out")]
    assert cli.main(given) == 0
    rows = "the 262 rows of its embeddings: the base has 261, which the merged model keeps"
    assert f"left out of math: {rows}" in capsys.readouterr().err
    assert rows in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(own.tensors(tmp_path / "out")[name], own.tensors(models / "math")[name])
    assert cli.main([*given, "--overwrite", "--tensors", "all"]) == 2
    assert "`--tensors backbone` merges the blocks alone" in capsys.readouterr().err
    assert cli.main([*given, "--overwrite", "--tokenizer", "math"]) == 2
    error = capsys.readouterr().err
    assert "has 1 tokens more than the merged model has rows, such as '<extra>', number 261 of 261" in error
    assert cli.main([*given, "--overwrite", "--tokenizer", "math", "--allow", "tokenizer"]) == 0
    assert "warning: the tokenizer of expert 'math'" in capsys.readouterr().err
    learned = [*given, "--overwrite", "--calibration", f"math={models / 'math.jsonl'}"]
    learned[learned.index("task_arithmetic")] = "expert_merging"
    assert cli.main(learned) == 2
    assert "has 262 tokens, the base 261: learned methods compare logits token by token" in capsys.readouterr().err


def damage(folder, file: str, **changes) -> None:
    path = folder / file
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**found, **changes}), encoding="utf-8")


MORE = {
    "a padding token": ("tokenizer_config.json", {"pad_token": "[PAD]"}),
    "a token in the configuration": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"261": {"content": "<z>", "special": True}}},
    ),
    "a token of one's own": ("tokenizer_config.json", {"extra_special_tokens": {"image_token": "<image>"}}),
}


@pytest.mark.parametrize("kind", MORE)
def test_a_token_more_wherever_it_is_written(models, tmp_path, capsys, kind):
    file, changes = MORE[kind]
    damage(models / "math", file, **changes)
    assert len(AutoTokenizer.from_pretrained(models / "math")) == 262
    assert cli.main(own.flags(models, tmp_path / "out", "ties", "--tokenizer", "math")) == 2
    assert "tokens more than the merged model has rows" in capsys.readouterr().err
    own.merge(models, tmp_path / "out")


def test_a_base_without_a_tokenizer(models, tmp_path, capsys):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (models / "base" / file).unlink()
    assert cli.main(own.flags(models, tmp_path / "out")) == 2
    assert "has no tokenizer, without which the result cannot run: `--tokenizer math`" in capsys.readouterr().err
    own.merge(models, tmp_path / "out", "ties", "--tokenizer", "math")


@pytest.mark.parametrize(
    "file, changes", [("config.json", {"model_type": ["llama"]}), ("tokenizer.json", {"added_tokens": 3, "model": 4})]
)
def test_files_of_the_wrong_kind_are_one_line(models, tmp_path, capsys, file, changes):
    damage(models / "math", file, **changes)
    assert cli.main(own.flags(models, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert file in error and error.count("\n") == 1


@pytest.mark.parametrize("size, far", [(0.01, False), (2.0, True)])
def test_the_distance_of_an_expert(models, tmp_path, capsys, size, far):
    """‖τ‖/‖θ‖ over the merged tensors, by its definition, and a warning where it is another model's."""
    base = AutoModelForCausalLM.from_pretrained(models / "base")
    tiny.save(tiny.spread(base, 9, size), models / "math")
    out = own.merge(models, tmp_path / "out")
    ours, theirs = own.tensors(models / "base"), own.tensors(models / "math")
    merged = [name for name in ours if ".layers." in name and "norm" not in name]
    tau = sum(float((theirs[name].double() - ours[name].double()).square().sum()) for name in merged)
    expected = math.sqrt(tau / sum(float(ours[name].double().square().sum()) for name in merged))
    assert len(merged) == 14 and (expected > 1) == far
    report = json.loads((out / "emkit_merge.json").read_text())
    assert report["distances"]["math"] == pytest.approx(expected, rel=1e-6)
    captured = capsys.readouterr().err
    assert f"reading math: ‖τ‖/‖θ‖ {expected:.3f} over the merged tensors" in captured
    warned = "warning: expert 'math' is as far from the base as another model is"
    assert (warned in captured) == far and any("another model" in x for x in report["warnings"]) == far
    lost = (
        "its own values of lm_head.weight, model.embed_tokens.weight, model.layers.0.input_layernorm.weight and 4 more"
    )
    assert f"left out of math: {lost}" in captured and lost in (out / "README.md").read_text(encoding="utf-8")
    own.merge(models, tmp_path / "all", "task_arithmetic", "--tensors", "all")
    assert "its own values" not in capsys.readouterr().err


def test_an_adapters_distance_counts_what_it_does_not_touch(models, tmp_path):
    from test_own_adapters import ALPHA, RANK, Q, expected_delta, write_adapter

    folder = write_adapter(tmp_path / "a", None, {Q: (16, 16)})
    given = ["merge", "--base", str(models / "base"), "--expert", f"a={folder}", "--method", "ties"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 0
    base = own.tensors(models / "base")
    theta = sum(float(t.double().square().sum()) for n, t in base.items() if ".layers." in n and "norm" not in n)
    expected = math.sqrt(float(expected_delta(folder, Q, ALPHA / RANK).square().sum()) / theta)
    found = json.loads((tmp_path / "out" / "emkit_merge.json").read_text())["distances"]["a"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_further_chat_templates_are_copied_or_told_of(models, tmp_path, capsys):
    """The owner's come along, as transformers saves them; another expert's are in the list."""
    words = AutoTokenizer.from_pretrained(models / "math")
    words.chat_template = {"default": tiny.CHAT, "tool_use": "{{ messages }} tools"}
    words.save_pretrained(models / "math")
    own.merge(models, tmp_path / "base")
    told = "its further chat templates (tool_use): `--tokenizer` chooses whose are taken"
    assert f"left out of math: {told}" in capsys.readouterr().err
    words.save_pretrained(models / "base")
    own.merge(models, tmp_path / "same")
    own.merge(models, tmp_path / "mine", "task_arithmetic", "--tokenizer", "math")
    assert "further chat templates" not in capsys.readouterr().err
    assert AutoTokenizer.from_pretrained(tmp_path / "mine").chat_template == words.chat_template


@pytest.mark.parametrize(
    "auto_map, files",
    [
        ({"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.X"}, "configuration_x.py, modeling_x.py"),
        ({"AutoTokenizer": ["tokenization_x.X", None]}, "tokenization_x.py"),
        ({"AutoModel": "user/model--modeling_x.X"}, None),
    ],
)
def test_code_that_the_configuration_names_is_told_of_never_copied(models, tmp_path, capsys, auto_map, files):
    own.set_json(models / "base" / "config.json", auto_map=auto_map)
    for name in ("configuration_x", "modeling_x", "tokenization_x"):
        (models / "base" / f"{name}.py").write_text("raise SystemExit('run')\n")
    out = own.merge(models, tmp_path / "out")
    error, card = capsys.readouterr().err, (out / "README.md").read_text(encoding="utf-8")
    assert not list(out.rglob("*.py"))
    told = f"names code of the model's own ({files}), which emkit neither runs nor copies"
    assert (told in error and told in card) if files else "code of the model's own" not in error + card


@pytest.mark.parametrize("mask, file, folder", [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)])
def test_modes_follow_the_umask(models, tmp_path, mask, file, folder):
    words = AutoTokenizer.from_pretrained(models / "base")
    words.chat_template = {"default": tiny.CHAT, "tool_use": "{{ messages }} tools"}
    words.save_pretrained(models / "base")
    before = os.umask(mask)
    try:
        out = own.merge(models, tmp_path / "out", "expert_merging", "--option", "optimiser.steps=1", "--samples", "1")
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == folder
    for path in out.rglob("*"):
        assert path.stat().st_mode & 0o777 == (folder if path.is_dir() else file), path


@pytest.mark.parametrize(
    "name", ["1e3", ".nan", "no", "null", "1:30", "2001-01-01", "é", "a: b", "#x", '"', "=", "~", "0x1F"]
)
def test_init_writes_names_that_stay_names(tmp_path, name):
    """Whatever YAML could read a name as, the recipe gives it back as it was typed."""
    from emkit.own.recipe import read

    init.write(tmp_path / "r.yaml", "ties", f"models/{name}", {name: name, "other": f"{name} "})
    found = read(tmp_path / "r.yaml")
    assert found["experts"] == {name: name, "other": f"{name} "} and found["base"] == f"models/{name}"
