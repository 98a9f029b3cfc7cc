"""LoRA adapters as experts: PEFT's rule, in float64 from its documentation; what they teach; what is refused."""

import json
import math
from pathlib import Path

import own_models as own
import pytest
import tiny_models as tiny
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config

from emkit import backbones, cli, layouts
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.own.adapters import AdapterCheckpoint, WithAdapters

causal_lm = backbones.get("causal_lm")
qwen2_vl = backbones.get("qwen2_vl")

RANK, ALPHA = 4, 6
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def write_adapter(
    folder: Path, base: str | None, shapes: dict[str, tuple[int, int]], seed=0, ranks=None, **config
) -> Path:
    """Random factors for modules of these shapes [out, in], in PEFT's files."""
    generator, factors = torch.Generator().manual_seed(seed), {}
    for module, (rows, columns) in shapes.items():
        rank = (ranks or {}).get(module, RANK)
        for side, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            factors[f"base_model.model.{module}.lora_{side}.weight"] = torch.randn(shape, generator=generator) * 0.1
    folder.mkdir(parents=True)
    save_file(factors, folder / "adapter_model.safetensors")
    targets = sorted({module.rpartition(".")[2] for module in shapes})
    settings = {"peft_type": "LORA", "base_model_name_or_path": base, "r": RANK, "lora_alpha": ALPHA, **config}
    settings["target_modules"] = targets
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def expected_delta(folder: Path, module: str, scaling: float) -> torch.Tensor:
    """scaling · B A in float64, from the file."""
    factors = own.tensors(folder)
    a, b = (factors[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "AB")
    return scaling * torch.einsum("or,ri->oi", b, a)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = own.write_models(tmp_path_factory.mktemp("models"))
    write_adapter(folder / "lora", "base", {Q: (16, 16), DOWN: (16, 32)})
    return folder


def opened(folder, base, backbone=causal_lm):
    return AdapterCheckpoint(folder, Checkpoint.open(base), layouts.of(Path(base), backbone), "lora")


@pytest.mark.parametrize(
    "config, ranks, scalings",
    [
        ({}, {}, {Q: ALPHA / RANK, DOWN: ALPHA / RANK}),
        ({"use_rslora": True}, {}, {Q: ALPHA / math.sqrt(RANK), DOWN: ALPHA / math.sqrt(RANK)}),
        ({"rank_pattern": {"q_proj": 2}}, {Q: 2}, {Q: ALPHA / 2, DOWN: ALPHA / RANK}),
        ({"alpha_pattern": {"layers.1.mlp.down_proj": 1, "q_proj": 9}}, {}, {Q: 9 / RANK, DOWN: 1 / RANK}),
        ({"alpha_pattern": {"proj": 9, "own_proj": 8}}, {}, {Q: ALPHA / RANK, DOWN: ALPHA / RANK}),  # no module's name
        ({"init_lora_weights": "gaussian", "bias": "none", "use_dora": False, "modules_to_save": None}, {}, {}),
    ],
)
def test_it_reads_as_the_base_with_the_adapter_merged_in(models, tmp_path, config, ranks, scalings):
    folder = write_adapter(tmp_path / "a", None, {Q: (16, 16), DOWN: (16, 32)}, ranks=ranks, **config)
    adapter, base = opened(folder, models / "base"), own.tensors(models / "base")
    assert adapter.names == sorted(base)
    for name, tensor in base.items():
        module = name.removesuffix(".weight")
        found = adapter.read(name)
        if module in (Q, DOWN):
            expected = tensor.double() + expected_delta(folder, module, scalings.get(module, ALPHA / RANK))
            assert found.dtype == adapter.info(name).dtype == torch.float32  # not rounded to the base's bfloat16
            torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(found, tensor)


def test_weights_that_are_stored_the_other_way_round(tmp_path):
    """GPT-2 keeps its matrices [in, out] (fan_in_fan_out)."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, n_positions=32)
    tiny.save(tiny.spread(AutoModelForCausalLM.from_config(config), 0), tmp_path / "base")
    module = "transformer.h.0.attn.c_attn"
    folder = write_adapter(tmp_path / "a", None, {module: (48, 16)}, fan_in_fan_out=True)
    found = opened(folder, tmp_path / "base").read(f"{module}.weight").double()
    expected = own.tensors(tmp_path / "base")[f"{module}.weight"].double()
    torch.testing.assert_close(found, expected + expected_delta(folder, module, ALPHA / RANK).T, rtol=1e-6, atol=1e-6)


def test_an_adapter_of_qwen2_vl_names_modules_as_they_are_in_memory(tmp_path):
    tiny.save(tiny.qwen2_vl()[0], tmp_path / "base")
    module = "model.language_model.layers.0.self_attn.q_proj"
    folder = write_adapter(tmp_path / "a", None, {module: (16, 16)})
    assert set(opened(folder, tmp_path / "base", qwen2_vl).adapted) == {"model.layers.0.self_attn.q_proj.weight"}


def test_it_is_the_same_as_peft_where_peft_is_there(models, tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.PeftModel.from_pretrained(causal_lm.load(models / "base")[0], models / "lora").merge_and_unload()
    adapter = opened(models / "lora", models / "base")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(adapter.read(name).float(), parameter.detach(), rtol=0, atol=0)


def test_the_teacher_is_the_base_with_the_adapter(models):
    adapter = opened(models / "lora", models / "base")
    teacher, words = WithAdapters(causal_lm, {"lora": adapter}).load(models / "lora")
    base, _ = causal_lm.load(models / "base")
    with torch.no_grad():
        for module in (Q, DOWN):
            delta = expected_delta(models / "lora", module, ALPHA / RANK)
            base.get_submodule(module).weight.add_(delta.float())
        ids = words("Hello", return_tensors="pt")["input_ids"]
        torch.testing.assert_close(teacher(ids).logits, base(ids).logits)
    plain, _ = WithAdapters(causal_lm, {"lora": adapter}).load(models / "base")
    assert not torch.equal(plain(ids).logits, teacher(ids).logits)


@pytest.mark.parametrize("method", ["task_arithmetic", "expert_merging"])
def test_merging_a_whole_expert_and_an_adapter(models, tmp_path, method):
    given = [
        "merge",
        "--base",
        str(models / "base"),
        "--expert",
        str(models / "math"),
        "--expert",
        str(models / "lora"),
    ]
    given += ["--method", method, "--out", str(tmp_path / "out")]
    for name in ("math", "lora"):
        given += ["--calibration", f"{name}={models / 'math.jsonl'}"]
    assert cli.main([*given, *(["--option", "optimiser.steps=2"] if method == "expert_merging" else [])]) == 0
    report = json.loads((tmp_path / "out" / "emkit_merge.json").read_text())
    assert set(report["inputs"]) == {"base", "math", "lora"}
    if method == "task_arithmetic":
        base, math_, found = (own.tensors(f) for f in (models / "base", models / "math", tmp_path / "out"))
        name = f"{Q}.weight"
        wide = base[name].double()
        expected = wide + 0.3 * (math_[name].double() - wide) + 0.3 * expected_delta(models / "lora", Q, ALPHA / RANK)
        torch.testing.assert_close(found[name].double(), expected, rtol=2**-8, atol=1e-7)


def test_its_hash_is_of_base_factors_and_rule(models, tmp_path):
    shapes = {Q: (16, 16)}
    make = [
        write_adapter(tmp_path / "a", None, shapes),
        write_adapter(tmp_path / "same", "elsewhere", shapes),
        write_adapter(tmp_path / "seed", None, shapes, seed=1),
        write_adapter(tmp_path / "alpha", None, shapes, lora_alpha=7),
    ]
    first, same, *others = [opened(folder, models / "base").sha256() for folder in make]
    assert first == same and len({first, *others, opened(make[0], models / "math").sha256()}) == 4


@pytest.mark.parametrize(
    "config, match",
    [
        ({"peft_type": "LOHA"}, "is a LOHA adapter; only LoRA is merged"),
        ({"use_dora": True}, "an adapter with DoRA is not supported"),
        ({"bias": "all"}, "with trained biases is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, r"with start values \(pissa_niter_4\) that changed the base"),
        ({"lora_alpha": "six"}, "adapter_config.json is not that of a LoRA adapter"),
        ({"r": 8}, "has rank 4, adapter_config.json says 8"),
    ],
)
def test_what_follows_another_rule_is_refused(models, tmp_path, config, match):
    folder = write_adapter(tmp_path / "a", None, {Q: (16, 16)}, **config)
    with pytest.raises(UserError, match=match) as error:
        opened(folder, models / "base")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "shapes, match",
    [
        ({"model.layers.9.self_attn.q_proj": (16, 16)}, "another base: it adapts 'model.layers.9.self_attn.q_proj'"),
        ({Q: (16, 24)}, r"another base: 'model.layers.0.self_attn.q_proj' has shape \[16, 24\] there, \[16, 16\] here"),
        ({}, "the adapter is empty"),
    ],
)
def test_an_adapter_of_other_shapes_or_names_is_for_another_base(models, tmp_path, shapes, match):
    with pytest.raises(UserError, match=match):
        opened(write_adapter(tmp_path / "a", None, shapes), models / "base")


def test_half_an_adapter_is_refused(models, tmp_path):
    folder = write_adapter(tmp_path / "a", None, {Q: (16, 16)})
    factors = own.tensors(folder)
    save_file({k: v for k, v in factors.items() if "lora_A" in k}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="has only one of its two factors"):
        opened(folder, models / "base")
    odd = {f"base_model.model.{Q}.lora_magnitude_vector": torch.zeros(2)}
    save_file({**factors, **odd}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"lora_magnitude_vector' is no LoRA factor .* with PEFT first"):
        opened(folder, models / "base")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match="holds pickled weights"):
        opened(folder, models / "base")
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(UserError, match="no adapter at"):
        opened(folder, models / "base")


def peft_adapter(models: Path, folder: Path, **config):
    """An adapter that PEFT itself made of the base and saved, its factors random; and PEFT's own merge of it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(7)
    settings = peft.LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, **config)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(models / "base", dtype=torch.float32), settings)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.add_(0.1)
    model.save_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(models / "base", dtype=torch.float32)
    return peft.PeftModel.from_pretrained(plain, folder).merge_and_unload().state_dict()


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    ],
)
def test_everything_in_an_adapter_is_read_as_peft_merges_it(models, tmp_path, config):
    expected = peft_adapter(models, tmp_path / "a", **config)
    adapter = opened(tmp_path / "a", models / "base")
    assert adapter.beyond == []
    for name in adapter.names:
        torch.testing.assert_close(adapter.read(name).float(), expected[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("targets", [["attn.c_proj", "lm_head"], ["c_attn", "lm_head"], ["c_fc"]])
def test_the_layer_says_how_a_weight_is_stored(tmp_path, targets):
    """PEFT writes ``fan_in_fan_out`` as it was for the last layer, and goes by the layer itself."""
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32, "vocab_size": len(tiny.tokenizer())}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(**sizes, tie_word_embeddings=False))
    tiny.save(tiny.spread(model, 1), tmp_path / "base")
    expected = peft_adapter(tmp_path, tmp_path / "a", target_modules=targets)
    for said in (True, False):
        own.set_json(tmp_path / "a" / "adapter_config.json", fan_in_fan_out=said)
        adapter = opened(tmp_path / "a", tmp_path / "base")
        assert len(adapter.adapted) >= 2
        for name in adapter.names:
            torch.testing.assert_close(adapter.read(name), expected[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("form", [".modules_to_save.default.", ".modules_to_save.", "."])
def test_modules_saved_whole_under_every_name(models, tmp_path, form):
    folder = write_adapter(tmp_path / "a", None, {Q: (16, 16)})
    saved = torch.full((261, 16), 2.0)
    keys = {
        f"base_model.model.lm_head{form}weight": saved,
        "base_model.model.lm_head.original_module.weight": saved + 1,
    }
    save_file({**own.tensors(folder), **keys}, folder / "adapter_model.safetensors")
    adapter = opened(folder, models / "base")
    assert adapter.beyond == [] and torch.equal(adapter.read("lm_head.weight"), saved)


@pytest.mark.parametrize("kind", ["embedding", "head"])
def test_an_adapted_vocabulary_of_another_size_stays_out(models, tmp_path, capsys, kind):
    folder = write_adapter(tmp_path / "a", None, {Q: (16, 16)})
    if kind == "embedding":
        key = "base_model.model.model.embed_tokens.lora_embedding_"
        more = {f"{key}A": torch.ones(RANK, 263), f"{key}B": torch.ones(16, RANK)}
    else:
        more = {f"base_model.model.lm_head.lora_{s}.weight": torch.ones(shape) for s, shape in HEAD.items()}
    save_file({**own.tensors(folder), **more}, folder / "adapter_model.safetensors")
    given = ["merge", "--base", str(models / "base"), "--expert", f"a={folder}", "--method", "ties", "--dry-run"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 0
    assert "of 263 tokens, where the base has 261" in capsys.readouterr().err


HEAD = {"A": (RANK, 16), "B": (263, RANK)}


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_on_a_tied_base_that_writes_its_head(tmp_path, target):
    """The copy of the head is no second tensor: what is merged is the embedding, and the result stays tied."""
    tiny.save(tiny.language_model(seed=1, tie_word_embeddings=True), tmp_path / "base")
    stored = own.tensors(tmp_path / "base")
    own.rewrite(tmp_path / "base", {"lm_head.weight": stored["model.embed_tokens.weight"].clone()})
    peft_adapter(tmp_path, tmp_path / "a", target_modules=["q_proj", target])
    given = ["merge", "--base", str(tmp_path / "base"), "--expert", f"a={tmp_path / 'a'}", "--method"]
    given += ["task_arithmetic", "--scale", "1", "--tensors", "all", "--out", str(tmp_path / "out")]
    assert cli.main(given) == 0
    found = own.tensors(tmp_path / "out")
    assert "lm_head.weight" not in found
    moved = not torch.equal(found["model.embed_tokens.weight"], stored["model.embed_tokens.weight"])
    told = json.loads((tmp_path / "out" / "emkit_merge.json").read_text())["left_out"].get("a", [])
    assert moved == (target == "embed_tokens") and bool(told) == (target == "lm_head")


def test_an_adapted_head_is_told_of_or_merged(models, tmp_path, capsys):
    expected = peft_adapter(models, tmp_path / "a", target_modules=["q_proj", "lm_head"])
    given = ["merge", "--base", str(models / "base"), "--expert", f"a={tmp_path / 'a'}", "--method", "task_arithmetic"]
    given += ["--scale", "1", "--allow", "adapter_base"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 0
    line = "what its adapter has for lm_head.weight, which is not merged: `--tensors all` merges it"
    assert f"left out of a: {line}" in capsys.readouterr().err
    assert line in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out" / "emkit_merge.json").read_text())["left_out"] == {"a": [line]}
    head, base = own.tensors(tmp_path / "out")["lm_head.weight"], own.tensors(models / "base")["lm_head.weight"]
    assert torch.equal(head, base)
    assert cli.main([*given, "--tensors", "all", "--out", str(tmp_path / "all")]) == 0
    assert "left out" not in capsys.readouterr().err
    head = own.tensors(tmp_path / "all")["lm_head.weight"]
    torch.testing.assert_close(head.float(), expected["lm_head.weight"], rtol=2**-7, atol=1e-3)  # stored as bf16


def test_embeddings_that_peft_saved_unchanged_are_no_loss_and_resized_ones_are(models, tmp_path, capsys):
    peft_adapter(models, tmp_path / "a", target_modules=["q_proj"])
    factors = own.tensors(tmp_path / "a")
    embedding = own.tensors(models / "base")["model.embed_tokens.weight"].float()
    key = "base_model.model.model.embed_tokens.weight"
    given = ["merge", "--base", str(models / "base"), "--expert", f"a={tmp_path / 'a'}", "--method", "task_arithmetic"]
    given += ["--allow", "adapter_base", "--dry-run", "--out", str(tmp_path / "out")]
    for tensor, told in (
        (embedding, None),
        (embedding + 1, "what its adapter has for model.embed_tokens.weight"),
        (torch.cat([embedding, embedding[:1]]), "saved whole in another shape, [262, 16] where the base has [261, 16]"),
    ):
        save_file({**factors, key: tensor}, tmp_path / "a" / "adapter_model.safetensors")
        assert cli.main(given) == 0
        error = capsys.readouterr().err
        assert ("left out" not in error) if told is None else told in error
    learned = [*given, "--calibration", f"a={models / 'math.jsonl'}"]
    learned[learned.index("task_arithmetic")] = "expert_merging"
    assert cli.main(learned) == 2
    assert "it is not the expert that was trained; merge the adapter into its base with PEFT first" in (
        capsys.readouterr().err
    )


def test_an_adapter_beside_a_whole_model_is_two_experts(models, tmp_path, capsys):
    folder = write_adapter(tmp_path / "a", None, {Q: (16, 16)})
    (folder / "model.safetensors").write_bytes((models / "math" / "model.safetensors").read_bytes())
    given = ["merge", "--base", str(models / "base"), "--expert", f"a={folder}", "--method", "ties"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 2
    assert "holds an adapter (adapter_model.safetensors) and a whole model (model.safetensors)" in (
        capsys.readouterr().err
    )


def test_the_name_of_its_base_is_compared(models, tmp_path, capsys):
    given = ["merge", "--base", str(models / "base"), "--method", "task_arithmetic", "--out", str(tmp_path / "out")]
    for name, fits in (("someone/Base", True), (str(models / "base"), True), (None, True), ("someone/llama-2", False)):
        folder = write_adapter(tmp_path / f"a-{name is None}-{len(name or '')}", name, {Q: (16, 16)})
        status = cli.main([*given, "--expert", f"a={folder}", "--dry-run"])
        error = capsys.readouterr().err
        assert status == (0 if fits else 2), error
    assert "was trained on someone/llama-2, the base here is" in error and error.count("\n") == 1
    assert cli.main([*given, "--expert", f"a={folder}", "--dry-run", "--allow", "adapter_base"]) == 0


def test_nan_in_a_factor_is_found_before_work_starts(models, tmp_path, capsys):
    folder = write_adapter(tmp_path / "a", None, {Q: (16, 16)})
    factors = own.tensors(folder)
    factors[f"base_model.model.{Q}.lora_B.weight"][0, 0] = float("nan")
    save_file(factors, folder / "adapter_model.safetensors")
    given = ["merge", "--base", str(models / "base"), "--expert", f"a={folder}", "--method", "task_arithmetic"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 2
    assert "contains NaN" in capsys.readouterr().err and not (tmp_path / "out").exists()
