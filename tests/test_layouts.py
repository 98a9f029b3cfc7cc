"""Layouts: the parameter that a stored tensor becomes, with transformers' own loading as the judge."""

from pathlib import Path

import own_models as own
import pytest
import tiny_models as tiny
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
    Qwen2VLForConditionalGeneration,
)

from emkit import backbones, cli, layouts
from emkit.checkpoints import Checkpoint

CAUSAL = backbones.get("causal_lm")


def gpt2(seed: int = 0):
    sizes = {"vocab_size": 261, "n_positions": 512, "n_embd": 16, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    return tiny.spread(model, seed, 0.05)


def without(prefix: str):
    return lambda name: name.removeprefix(prefix)


def flat(name: str) -> str:
    name = name.removeprefix("model.") if name.startswith("model.visual.") else name
    return name.replace("model.language_model.", "model.", 1)


def nested(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{name[6:]}"
    return name


def store(folder: Path, rename, drop=(), **more: torch.Tensor) -> None:
    """Write a folder's tensors anew under other names."""
    kept = {rename(name): tensor for name, tensor in own.tensors(folder).items() if name not in drop}
    for file in folder.glob("*.safetensors"):
        file.unlink()
    save_file({**kept, **more}, folder / "model.safetensors", metadata={"format": "pt"})


def merged(folder: Path, *more: str) -> int:
    given = ["merge", "--base", str(folder / "base"), "--expert", str(folder / "expert"), "--scale", "1"]
    return cli.main([*given, "--method", "task_arithmetic", "--out", str(folder / "out"), *more])


LLAMA = (lambda seed: tiny.language_model(seed=seed), AutoModelForCausalLM, "model.")
PAIRS = {
    "the hub's gpt2 and save_pretrained's": (gpt2, GPT2LMHeadModel, without("transformer."), str),
    "save_pretrained's gpt2 and the hub's": (gpt2, GPT2LMHeadModel, str, without("transformer.")),
    "a Llama saved without its head's class": (LLAMA[0], LLAMA[1], str, without("model.")),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_two_names_of_one_parameter(tmp_path, pair):
    """One expert at scale 1 gives the expert's blocks, whatever the two are stored as."""
    make, loader, of_base, of_expert = PAIRS[pair]
    for name, seed in (("base", 0), ("expert", 1)):
        tiny.save(make(seed), tmp_path / name)
    store(tmp_path / "base", of_base, drop=("lm_head.weight",) if make is gpt2 else ())
    store(tmp_path / "expert", of_expert)
    layout = layouts.of(tmp_path / "base", CAUSAL)
    base, expert = Checkpoint.open(tmp_path / "base"), Checkpoint.open(tmp_path / "expert")
    assert layouts.beyond(base, expert, layout) == [] and layout.lacking(expert) == []
    parameters = loader.from_pretrained(tmp_path / "expert").state_dict()
    for name in expert.names:
        assert torch.equal(parameters[layout.parameter(name)], expert.read(name)), name
    assert merged(tmp_path) == 0
    found, wanted = (loader.from_pretrained(tmp_path / name).state_dict() for name in ("out", "expert"))
    blocks = [
        name for name in wanted if ".weight" in name and ".0." in name and "norm" not in name and "ln_" not in name
    ]
    assert len(blocks) >= 4
    for name in blocks:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("of_base, of_expert", [(flat, nested), (nested, flat)])
def test_both_layouts_of_qwen2_vl(tmp_path, of_base, of_expert):
    for name in ("base", "expert"):
        model, processor = tiny.qwen2_vl()
        tiny.save(tiny.spread(model, 5, 0.02) if name == "expert" else model, tmp_path / name, processor)
    store(tmp_path / "base", of_base)
    store(tmp_path / "expert", of_expert)
    assert merged(tmp_path) == 0
    found, wanted = (
        Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / n).state_dict() for n in ("out", "expert")
    )
    names = [name for name in wanted if "language_model.layers" in name and "proj.weight" in name]
    assert len(names) == 14
    for name in names:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-5)


def test_a_learned_method_on_the_hubs_names(tmp_path):
    """The fit finds each tensor's parameter: the merged model is the base plus the coefficients' sum."""
    for name, seed in (("base", 0), ("expert", 1)):
        tiny.save(gpt2(seed), tmp_path / name)
    store(tmp_path / "base", without("transformer."), drop=("lm_head.weight",))
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n', encoding="utf-8")
    given = ["merge", "--base", str(tmp_path / "base"), "--expert", str(tmp_path / "expert"), "--method"]
    given += ["expert_merging", "--calibration", f"expert={tmp_path / 'p.jsonl'}", "--out", str(tmp_path / "out")]
    assert cli.main([*given, "--option", "optimiser.steps=2"]) == 0
    base, expert, found = (own.tensors(tmp_path / name) for name in ("base", "expert", "out"))
    name = "h.1.mlp.c_fc.weight"
    moved = (found[name] - base[name]) / (expert[f"transformer.{name}"] - base[name])
    assert moved.std() < 1e-3 and 0 < float(moved.mean()) < 1


EXTRA = {
    "old rotary buffers": ({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, None),
    "a classifier's head": (
        {"score.weight": torch.ones(2, 16)},
        "score.weight, which the base has not: no flag adds it",
    ),
    "many": ({f"x.{i}": torch.ones(1) for i in range(5)}, "x.0, x.1, x.2 and 2 more, which the base has not"),
}


@pytest.mark.parametrize("kind", EXTRA)
def test_what_an_expert_has_beyond_the_base(tmp_path, capsys, kind):
    """Buffers that are computed anew are nothing; anything else is told in plan, card and report."""
    more, told = EXTRA[kind]
    for name, seed in (("base", 0), ("expert", 1)):
        tiny.save(tiny.language_model(seed=seed), tmp_path / name)
    store(tmp_path / "expert", str, **more)
    assert merged(tmp_path) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out of expert: ")]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert any(told in line for line in lines) and told in card if told else all("its own values" in x for x in lines)


def test_a_classifier_merges_but_does_not_teach(tmp_path, capsys):
    tiny.save(tiny.language_model(seed=0), tmp_path / "base")
    config = tiny.language_model(seed=0).config
    config.num_labels = 2
    tiny.save(tiny.spread(LlamaForSequenceClassification(config), 3), tmp_path / "expert")
    assert merged(tmp_path) == 0
    assert "left out of expert: score.weight" in capsys.readouterr().err
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n', encoding="utf-8")
    given = ["merge", "--base", str(tmp_path / "base"), "--expert", str(tmp_path / "expert"), "--method"]
    given += ["expert_merging", "--calibration", f"expert={tmp_path / 'p.jsonl'}", "--out", str(tmp_path / "no")]
    assert cli.main(given) == 2
    assert "has no 'lm_head.weight' (a classifier, or saved without its head?)" in capsys.readouterr().err


def test_a_tied_head_that_the_expert_untied(tmp_path, capsys):
    """The blocks merge; its head is told of, and `--tensors all` is refused with the way on."""
    for name, seed in (("base", 0), ("expert", 1)):
        tiny.save(tiny.language_model(seed=seed, tie_word_embeddings=True), tmp_path / name)
    store(tmp_path / "expert", str, **{"lm_head.weight": torch.ones(261, 16)})
    own.set_json(tmp_path / "expert" / "config.json", tie_word_embeddings=False)
    assert merged(tmp_path) == 0
    assert "left out of expert: lm_head.weight, which the base has not" in capsys.readouterr().err
    assert merged(tmp_path, "--tensors", "all", "--overwrite") == 2
    assert "`--tensors backbone` merges the blocks alone" in capsys.readouterr().err


@pytest.mark.parametrize("writes", [("base",), ("expert",), ("base", "expert")])
def test_a_tied_head_written_out_is_the_embedding(tmp_path, capsys, writes):
    """Whatever the class calls its embedding; the copy is left out, so that nothing is merged twice."""
    for name, seed in (("base", 0), ("expert", 1)):
        tiny.save(gpt2(seed), tmp_path / name)
    for name in writes:
        store(
            tmp_path / name, str, **{"lm_head.weight": own.tensors(tmp_path / name)["transformer.wte.weight"].clone()}
        )
    assert merged(tmp_path, "--tensors", "all") == 0
    found, wanted = (GPT2LMHeadModel.from_pretrained(tmp_path / name).state_dict() for name in ("out", "expert"))
    assert "lm_head.weight" not in own.tensors(tmp_path / "out")
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-6)
    store(tmp_path / writes[0], str, drop=("lm_head.weight",), **{"lm_head.weight": torch.ones(261, 16)})
    assert merged(tmp_path, "--overwrite") == 2
    assert "has a lm_head.weight that is not its embedding" in capsys.readouterr().err


def test_buffers_are_no_weights(tmp_path, capsys):
    """Masks of old files may hold anything, infinity too; they are neither merged nor compared nor told of."""
    for name, seed in (("base", 0), ("expert", 1)):
        tiny.save(gpt2(seed), tmp_path / name)
    for name, size in (("base", -1e4), ("expert", -float("inf"))):
        masks = {f"transformer.h.{i}.attn.masked_bias": torch.tensor(size) for i in range(2)}
        store(tmp_path / name, str, **masks, **{"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)})
    for more in ((), ("--tensors", "all", "--overwrite")):
        assert merged(tmp_path, *more) == 0
        error = capsys.readouterr().err
        assert ".attn.bias" not in error and "masked_bias" not in error and "nan" not in error
    found, wanted = (GPT2LMHeadModel.from_pretrained(tmp_path / name).state_dict() for name in ("out", "expert"))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-6)


def test_the_prefix_of_a_mixture(tmp_path):
    """Its experts are put together when it is loaded; the prefix is added before that."""
    for name, seed in (("base", 0), ("expert", 1)):
        tiny.save(tiny.language_model("mixtral", seed=seed), tmp_path / name)
    expert = own.tensors(tmp_path / "expert")
    store(tmp_path / "expert", without("model."))
    assert merged(tmp_path) == 0
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    torch.testing.assert_close(own.tensors(tmp_path / "out")[name], expert[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("ours, theirs", [("type", "rope_type"), ("rope_type", "both"), ("both", "type")])
def test_rotary_settings_have_two_names(tmp_path, ours, theirs):
    for name, seed, spelling in (("base", 0, ours), ("expert", 1, theirs)):
        tiny.save(tiny.language_model(seed=seed), tmp_path / name)
        keys = ("type", "rope_type") if spelling == "both" else (spelling,)
        scaling = {**dict.fromkeys(keys, "linear"), "factor": 2.0}
        own.set_json(tmp_path / name / "config.json", rope_parameters=None, rope_theta=1e4, rope_scaling=scaling)
    assert merged(tmp_path) == 0


def test_more_tokens_than_positions_is_one_line(tmp_path, capsys):
    for name, seed in (("base", 0), ("expert", 1)):
        model = gpt2(seed)
        model.config.n_positions = 8
        model.transformer.wpe.weight.data = model.transformer.wpe.weight.data[:8].clone()
        tiny.save(model, tmp_path / name)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a prompt that is longer than eight"}\n', encoding="utf-8")
    given = ["merge", "--base", str(tmp_path / "base"), "--expert", str(tmp_path / "expert"), "--method"]
    given += ["expert_merging", "--calibration", f"expert={tmp_path / 'p.jsonl'}", "--out", str(tmp_path / "out")]
    assert cli.main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "a calibration sequence does not fit a model" in error and "calibration.max_new_tokens" in error


def test_names_that_no_class_reads_are_refused_with_what_they_are(tmp_path, capsys):
    for name, seed in (("base", 0), ("expert", 1)):
        tiny.save(tiny.language_model(seed=seed), tmp_path / name)
    store(tmp_path / "expert", lambda name: f"module.{name}")
    assert merged(tmp_path) == 2
    error = capsys.readouterr().err
    assert "which is merged (it has 'module.lm_head.weight', which the base lacks)" in error and error.count("\n") == 1
