"""``emkit merge`` from end to end on small Llamas: what it writes is the formula, loads and says where it is from."""

import json

import own_models as own
import pytest
import tiny_models as tiny
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from emkit import cli
from emkit.checkpoints import Checkpoint
from emkit.coefficients import Coefficients
from emkit.own.recipe import METHODS

FAST = ("--option", "optimiser.steps=3", "--samples", "2")
SHORT = {"calibration": {"max_new_tokens": 6}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return own.write_models(tmp_path_factory.mktemp("models"))


def recipe(models, folder, **changes):
    """A recipe file for the two experts, short where a fit would take long."""
    data = {
        "method": "expert_merging",
        "base": str(models / "base"),
        "experts": {name: str(models / name) for name in own.EXPERTS},
        "out": str(folder / "merged"),
        "calibration": {"files": {name: str(models / f"{name}.jsonl") for name in own.EXPERTS}, "max_new_tokens": 6},
        **changes,
    }
    (folder / "merge.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return folder / "merge.yaml"


def merged_matrices(names):
    return [name for name in names if ".layers." in name and "norm" not in name]


@pytest.mark.parametrize("scale", [None, 0.7])
def test_task_arithmetic_is_its_formula_on_the_blocks_matrices(models, tmp_path, scale):
    given = () if scale is None else ("--scale", str(scale))
    found = own.tensors(own.merge(models, tmp_path / "out", "task_arithmetic", *given))
    base, *experts = (own.tensors(models / name) for name in ("base", *own.EXPERTS))
    merged = merged_matrices(base)
    assert len(merged) == 14 and set(found) == set(base)
    for name, tensor in base.items():
        wide, total = tensor.double(), 0
        for expert in experts:
            total = total + (expert[name].double() - wide)
        expected = wide + (0.3 if scale is None else scale) * total if name in merged else wide
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name].double(), expected, rtol=2**-8, atol=1e-7)  # one rounding to bfloat16
        if name not in merged:
            assert torch.equal(found[name], tensor)


def test_weight_average_of_all_tensors(models, tmp_path):
    found = own.tensors(own.merge(models, tmp_path / "out", "weight_average", "--tensors", "all"))
    experts = [own.tensors(models / name) for name in own.EXPERTS]
    for name, tensor in found.items():
        mean = sum(expert[name].double() for expert in experts) / 2
        torch.testing.assert_close(tensor.double(), mean, rtol=2**-8, atol=1e-7)


def test_the_result_loads_and_speaks_as_its_weights_say(models, tmp_path):
    out = own.merge(models, tmp_path / "out", "ties")
    model, words = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], tensor) for name, tensor in own.tensors(out).items())
    ids = words("Hello", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(ids).logits).all() and words.chat_template == tiny.CHAT
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in out.iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_its_card_says_what_it_is(models, tmp_path, method):
    given = recipe(models, tmp_path, method=method, options={})
    fast = FAST if "merging" in method else ("--option", "iterations=3") if "wudi" in method else ()
    assert cli.main(["merge", str(given), *fast]) == 0
    out = tmp_path / "merged"
    found, base = own.tensors(out), own.tensors(models / "base")
    changed = [name for name in base if not torch.equal(found[name], base[name])]
    assert set(changed) <= set(merged_matrices(base)) and len(changed) > 7
    report, card = json.loads((out / "emkit_merge.json").read_text()), (out / "README.md").read_text()
    assert report["method"] == method and report["model_sha256"] == Checkpoint.open(out).sha256()
    for name in ("base", *own.EXPERTS):
        assert Checkpoint.open(models / name).sha256() in card
    assert report["versions"]["torch"] in card and f"emkit merge {given}" in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers" and "base_model" not in front  # local folders are no hub ids
    learned = "merging" in method
    assert (out / "coefficients.json").is_file() == learned == ("learned" in report["coefficients"])


def test_learned_coefficients_give_the_written_weights(models, tmp_path):
    """The output is θ_base + Σ α τ of the coefficients that lie beside it; they moved."""
    given = recipe(models, tmp_path)
    assert cli.main(["merge", str(given), *FAST]) == 0
    coefficients = Coefficients.load(tmp_path / "merged" / "coefficients.json")
    found, base = own.tensors(tmp_path / "merged"), own.tensors(models / "base")
    experts = [own.tensors(models / name) for name in own.EXPERTS]
    assert coefficients.experts == own.EXPERTS and not (coefficients.flat() == 0.3).any()
    for name, alpha in coefficients.values.items():
        wide = base[name].double()
        expected = wide + sum(a * (e[name].double() - wide) for a, e in zip(alpha[:, 0].tolist(), experts))
        torch.testing.assert_close(found[name].double(), expected, rtol=2**-8, atol=1e-7)


def test_the_same_command_gives_the_same_bytes_and_uses_what_was_kept(models, tmp_path, monkeypatch):
    given = recipe(models, tmp_path)
    weights = []
    for attempt in range(3):
        cache = ["--cache", str(tmp_path / f"cache-{attempt // 2}")]  # the second run finds the first one's fit
        assert cli.main(["merge", str(given), *FAST, *cache, *(["--overwrite"] if attempt else [])]) == 0
        weights.append((tmp_path / "merged" / "model.safetensors").read_bytes())
        if attempt == 0:
            monkeypatch.setattr("emkit.alignment.learner.fit", None)
        if attempt == 1:
            monkeypatch.undo()
    assert weights[0] == weights[1] == weights[2]


def test_a_scale_is_where_the_fit_starts(models, tmp_path):
    given = recipe(models, tmp_path, options={"optimiser": {"lr": 0.0, "steps": 1}})
    assert cli.main(["merge", str(given), "--scale", "0.55", "--samples", "1"]) == 0
    assert (Coefficients.load(tmp_path / "merged" / "coefficients.json").flat() == 0.55).all()


def test_chunks_learn_on_top_of_the_first_fit(models, tmp_path):
    given = recipe(models, tmp_path, method="expert_merging_pp", options={"kappa": 1.2, "budget": 3.0})
    assert cli.main(["merge", str(given), *FAST]) == 0
    history = json.loads((tmp_path / "merged" / "history.json").read_text())
    assert [len(stage["history"]) for stage in history["stages"]] == [3, 3]  # the option holds for both
    assert max(history["stages"][1]["chunks"].values()) > 1


def test_a_base_with_a_tied_head_that_one_expert_wrote_out(tmp_path):
    models = own.write_models(tmp_path / "models", tie_word_embeddings=True)
    assert "lm_head.weight" not in own.tensors(models / "base")
    own.rewrite(models / "math", {"lm_head.weight": own.tensors(models / "math")["model.embed_tokens.weight"].clone()})
    out = own.merge(models, tmp_path / "out", "weight_average")
    assert "lm_head.weight" not in own.tensors(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_tokenizer_is_the_one_that_was_asked_for(models, tmp_path, capsys):
    damaged = own.copied(models, tmp_path)
    for name in ("base", "code"):
        (damaged / name / "chat_template.jinja").unlink()
    own.merge(damaged, tmp_path / "plain")
    assert "warning: the chat templates of math and base differ, and that of base has none" in capsys.readouterr().err
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").chat_template is None
    own.merge(damaged, tmp_path / "chat", "task_arithmetic", "--tokenizer", "math")
    assert "the chat templates of base and code and math differ, and that of math is taken" in capsys.readouterr().err
    assert AutoTokenizer.from_pretrained(tmp_path / "chat").chat_template == tiny.CHAT
    own.merge(models, tmp_path / "same")
    assert "warning" not in capsys.readouterr().err


def test_an_expert_in_another_precision_is_merged_with_a_warning(models, tmp_path, capsys):
    damaged = own.copied(models, tmp_path)
    own.rewrite(damaged / "math", {name: tensor.float() for name, tensor in own.tensors(damaged / "math").items()})
    own.merge(damaged, tmp_path / "out")
    assert "expert 'math' is stored as float32, the base as bfloat16" in capsys.readouterr().err
    same = own.tensors(own.merge(models, tmp_path / "same"))
    assert all(torch.equal(tensor, same[name]) for name, tensor in own.tensors(tmp_path / "out").items())


def test_a_dry_run_reads_no_weights_and_writes_nothing(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Checkpoint, "scan", None)
    assert cli.main([*own.flags(models, tmp_path / "out"), "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []
    printed = capsys.readouterr()
    assert "everything fits" in printed.out and "14 of 21 tensors are merged" in printed.err
    beside = [file for file in (models / "base").iterdir() if file.suffix != ".safetensors"]
    size = sum(tensor.nbytes for tensor in own.tensors(models / "base").values())
    size += sum(file.stat().st_size for file in beside)  # configuration, tokenizer and template
    assert f"disk {size / 1000:.1f} kB of " in printed.err and "memory about" in printed.err


def test_overwriting_is_for_models_that_emkit_wrote(models, tmp_path, capsys):
    own.merge(models, tmp_path / "out")
    assert cli.main(own.flags(models, tmp_path / "out")) == 2
    assert "is there already: choose another output folder, or `--overwrite` it" in capsys.readouterr().err
    own.merge(models, tmp_path / "out", "weight_average", "--overwrite")
    assert json.loads((tmp_path / "out" / "emkit_merge.json").read_text())["method"] == "weight_average"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("years of work")
    assert cli.main([*own.flags(models, tmp_path / "own"), "--overwrite"]) == 2
    assert "is no model that emkit wrote" in capsys.readouterr().err
    assert (tmp_path / "own" / "thesis.tex").read_text() == "years of work"


def test_what_fails_its_check_does_not_get_the_name(models, tmp_path, monkeypatch, capsys):
    """A value that is spoiled before the check stands in for a failing disk."""
    from emkit.own import merge as job

    def spoiled(folder, *others):
        own.rewrite(folder, {"lm_head.weight": torch.full_like(own.tensors(folder)["lm_head.weight"], float("nan"))})
        return verify(folder, *others)

    verify = job.verify
    monkeypatch.setattr(job, "verify", spoiled)
    assert cli.main(own.flags(models, tmp_path / "out")) == 2
    assert f"{tmp_path}/out: tensor 'lm_head.weight' contains NaN" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["mistral", "gpt_neox", "mixtral"])
def test_other_families_of_language_models(tmp_path, kind, capsys):
    """A mixture's experts are many tensors on disk and one in memory: merged as stored, but not learned."""
    more = {"num_local_experts": 2} if kind == "mixtral" else {}
    models = own.write_models(tmp_path / "models", kind=kind, **more)
    backbone = ("--backbone", "mistral") if kind == "mistral" else ()
    found = own.tensors(own.merge(models, tmp_path / "out", "weight_average", *backbone))
    base = own.tensors(models / "base")
    changed = {name for name in base if not torch.equal(found[name], base[name])}
    assert changed == {n for n, t in base.items() if t.ndim == 2 and "embed" not in n and "lm_head" not in n}
    assert "gives finite logits" in capsys.readouterr().out
    status = cli.main([*own.flags(models, tmp_path / "learned", "expert_merging", *FAST), "--dry-run"])
    error = capsys.readouterr().err
    assert status == (2 if kind == "mixtral" else 0)
    assert ("holds 'model.layers.0.block_sparse_moe.experts.0.w1.weight' otherwise than" in error) == (
        kind == "mixtral"
    )


def test_qwen2_vl_with_images_and_prompts(tmp_path):
    import numpy as np
    from PIL import Image

    for seed, name in enumerate(("base", *own.EXPERTS)):
        model, processor = tiny.qwen2_vl(seed=0)
        if seed:
            tiny.spread(model, seed, size=0.05)
        tiny.save(model, tmp_path / "models" / name, processor, dtype=torch.bfloat16)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8))
    image.save(tmp_path / "models" / "a.png")
    lines = [{"image": "a.png", "question": "what is it?"}, {"prompt": "who?"}]
    for name in own.EXPERTS:
        (tmp_path / "models" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = recipe(tmp_path / "models", tmp_path)
    assert cli.main(["merge", str(given), "--option", "optimiser.steps=2"]) == 0
    report = json.loads((tmp_path / "merged" / "emkit_merge.json").read_text())
    assert report["backbone"] == "qwen2_vl" and report["merged_tensors"] == 14
    assert report["calibration"]["math"]["samples"] == 2
    base, found = own.tensors(tmp_path / "models" / "base"), own.tensors(tmp_path / "merged")
    assert all(
        torch.equal(found[name], base[name]) == name.startswith("visual.") for name in base if "proj.weight" in name
    )


def test_internvl(tiny_zoo, tmp_path):
    given = ["merge", "--base", str(tiny_zoo / "base"), "--expert", str(tiny_zoo / "VQA"), "--expert"]
    given += [str(tiny_zoo / "Chart"), "--method", "task_arithmetic", "--out", str(tmp_path / "out")]
    assert cli.main(given) == 0
    report = json.loads((tmp_path / "out" / "emkit_merge.json").read_text())
    assert report["backbone"] == "internvl" and report["merged_tensors"] == 7 * 3 + 3
    assert report["coefficients"] == {"scale": 0.1} and set(report["inputs"]) == {"base", "VQA", "Chart"}
