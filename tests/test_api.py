"""The Python API, held against formulas in numpy, transformers' own loading, and what `emkit merge` writes."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import own_models as own
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import emkit
from emkit.coefficients import Coefficients
from emkit.errors import UserError


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return own.write_models(tmp_path_factory.mktemp("models"))


def state_dict(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ["embed.weight", *(f"model.layers.{i}.{m}.weight" for i in (0, 1) for m in ("mlp.up_proj", "norm"))]
    shapes = [(7, 4), (6, 5), (5,), (6, 5), (5,)]
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in zip(names, shapes, strict=True)}


@pytest.fixture
def dicts():
    base = state_dict(0)
    return base, {k: {n: base[n] + t for n, t in state_dict(i, 0.1).items()} for i, k in enumerate("abc", 1)}


MERGED = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]


def test_task_arithmetic_of_state_dicts_is_the_formula_and_the_rest_is_the_base(dicts):
    base, experts = dicts
    found = emkit.task_arithmetic(base, experts, scale=0.4).state_dict()
    assert list(found) == sorted(base)
    for name, tensor in found.items():
        b = base[name].double().numpy()
        expected = b + 0.4 * sum(e[name].double().numpy() - b for e in experts.values()) if name in MERGED else b
        np.testing.assert_allclose(tensor.double().numpy(), expected, atol=1e-6)
    everything = emkit.task_arithmetic(base, experts, scale=1.0, tensors="all")["embed.weight"]
    expected = base["embed.weight"] + sum(e["embed.weight"] - base["embed.weight"] for e in experts.values())
    torch.testing.assert_close(everything, expected)


def ties(base, experts, density, scale):
    """Trim, elect, merge in numpy (Yadav et al., 2023), over all merged tensors as one vector."""
    taus = np.stack([np.concatenate([(e[n] - base[n]).numpy().ravel() for n in MERGED]) for e in experts.values()])
    for tau in taus:
        kept = len(tau) - int(density * len(tau))
        tau[np.abs(tau) < np.sort(np.abs(tau))[kept - 1]] = 0
    sign = np.sign(taus.sum(axis=0))
    agree = (np.sign(taus) == sign) & (taus != 0)
    return scale * (taus * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)


def test_ties_of_state_dicts_is_trim_elect_merge(dicts):
    base, experts = dicts
    merged = emkit.ties(base, list(experts.values()), density=0.3, scale=0.7)
    found = np.concatenate([(merged[n] - base[n]).numpy().ravel() for n in MERGED])
    np.testing.assert_allclose(found, ties(base, experts, 0.3, 0.7), atol=1e-6)
    again = merged.changed(density=0.6)
    assert again.options["density"] == 0.6 and merged.options["density"] == 0.3
    found = np.concatenate([(again[n] - base[n]).numpy().ravel() for n in MERGED])
    np.testing.assert_allclose(found, ties(base, experts, 0.6, 0.7), atol=1e-6)


def test_what_is_opened_once_serves_many_merges_and_gives_task_vectors(models):
    experts = emkit.Experts(models / "base", [models / name for name in own.EXPERTS])
    assert list(experts.labels) == ["math", "code"]
    base, math = (own.tensors(models / name) for name in ("base", "math"))
    name = experts.vectors.names[0]
    torch.testing.assert_close(experts.tau(name)[0], math[name].float() - base[name].float())
    half, none = (
        emkit.merge(experts, method="task_arithmetic", scale=0.5),
        emkit.merge(experts, method="task_arithmetic", scale=0.0),
    )
    assert torch.equal(none[name], base[name]) and not torch.equal(half[name], base[name])


def test_saved_it_is_what_the_command_writes_and_transformers_loads_it(models, tmp_path):
    merged = emkit.merge(models / "base", {n: models / n for n in own.EXPERTS}, "ties", scale=0.9, out=tmp_path / "api")
    written = own.merge(models, tmp_path / "cli", "ties", "--scale", "0.9")
    for name, tensor in own.tensors(written).items():
        assert torch.equal(own.tensors(tmp_path / "api")[name], tensor) and torch.equal(merged[name], tensor)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "api").num_parameters() > 0
    report = json.loads((tmp_path / "api" / "emkit_merge.json").read_text())
    assert report["method"] == "ties" and report["command"].startswith("emkit.ties(")
    with pytest.raises(UserError, match="is there already"):
        merged.save(tmp_path / "api")


def test_state_dicts_are_saved_as_one_file(dicts, tmp_path):
    merged = emkit.weight_average(*dicts)
    file = merged.save(tmp_path / "merged.safetensors")
    assert all(torch.equal(load_file(file)[name], tensor) for name, tensor in merged.state_dict().items())


def test_a_learned_merge_shows_what_it_learned(models, tmp_path):
    prompts = {"math": ["What is 1 + 1?", "What is 2 + 2?"], "code": models / "code.jsonl"}
    merged = emkit.expert_merging_pp(
        models / "base",
        {name: models / name for name in own.EXPERTS},
        prompts=prompts,
        optimiser={"steps": 3},
        max_new_tokens=4,
        cache=tmp_path,
        progress=False,
    )
    assert merged.coefficients.experts == own.EXPERTS
    assert [row["stage"] for row in merged.history] == [0, 0, 0, 1, 1, 1]
    assert {"math hidden", "code logit", "math mean α", "loss"} <= set(merged.history[0])
    assert sum(merged.importance.values()) == pytest.approx(1) and set(merged.importance.chunks) == set(
        merged.importance
    )
    assert merged.coefficients._repr_png_().startswith(b"\x89PNG")
    for drawn in (merged.history, merged.importance):
        data, about = drawn._repr_mimebundle_()
        assert data["image/png"].startswith(b"\x89PNG") and about["image/png"]["alt"] == data["text/plain"]


def test_a_live_model_answers_as_the_saved_one(models, tmp_path):
    experts = emkit.Experts(models / "base", {name: models / name for name in own.EXPERTS})
    live = experts.live()
    before = live.set(0.0).ask("Tell me.", max_new_tokens=8)
    live.set({"math": 3.0, "code": -2.0})
    assert live.ask("Tell me.", max_new_tokens=8) != before
    name = experts.vectors.names[0]
    base, math, code = (own.tensors(models / n)[name].float() for n in ("base", *own.EXPERTS))
    torch.testing.assert_close(live._parameters[name].data, base + 3 * (math - base) - 2 * (code - base))
    assert (
        live.set(emkit.merge(experts, method="task_arithmetic", scale=0.0)).ask("Tell me.", max_new_tokens=8) == before
    )
    with pytest.raises(UserError, match="unknown expert 'maths'"):
        live.set({"maths": 1.0})
    only = Coefficients.constant(experts.vectors.names, {"code": 2.0})  # of some experts, in an order of their own
    torch.testing.assert_close(live.set(only)._parameters[name].data, base + 2 * (code - base))
    swapped = Coefficients.constant(experts.vectors.names, {"code": 2.0, "math": -1.0})
    torch.testing.assert_close(
        live.set(swapped)._parameters[name].data, base + 2 * (code - base) - (math - base), atol=1e-6, rtol=1e-5
    )
    with pytest.raises(UserError, match="unknown expert 'maths'"):
        live.set(Coefficients.constant(experts.vectors.names, {"maths": 1.0}))


def test_losses_of_answers_are_those_of_one_token_after_the_other_and_follow_the_merge(models):
    live = emkit.Experts(models / "base", {name: models / name for name in own.EXPERTS}).live()
    words, asked, answers = live.processor, ["Tell me.", "What is 1 + 1, and why is it so?"], ["It is two.", "No"]
    for merge in (0.0, {"math": 1.0, "code": -1.0}):
        live.set(merge)
        for found, question, answer in zip(live.losses(asked, answers), asked, answers, strict=True):
            said = [{"role": "user", "content": question}]
            ids = words(words.apply_chat_template(said, add_generation_prompt=True, tokenize=False))["input_ids"]
            expected = []
            for token in [*words(answer)["input_ids"], words.eos_token_id]:
                with torch.no_grad():
                    logits = live.model(torch.tensor([ids])).logits[0, -1].double()
                expected.append(float(logits.logsumexp(0) - logits[token]))
                ids.append(token)
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_every_method_is_a_function_with_its_options_in_its_signature():
    assert {"ties", "iso_c", "expert_merging"} <= set(dir(emkit)) and "checkpoint" not in dir(emkit)
    parameters = inspect.signature(emkit.ties).parameters
    assert parameters["density"].default == 0.2 and {"base", "experts", "scale"} <= set(parameters)
    assert "Yadav" in emkit.ties.__doc__
    with pytest.raises(AttributeError):
        _ = emkit.tis


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda b, e: emkit.ties(b, e, densty=0.1), "unknown key 'densty': did you mean 'density'"),
        (lambda b, e: emkit.ties(b, e, density=0), "ties.density: 0 is less than"),
        (lambda b, e: emkit.weight_average(b, e, scale=0.1), "weight_average has no scale"),
        (lambda b, e: emkit.merge(b, e, "tis"), "unknown method 'tis': did you mean 'ties'"),
        (lambda b, e: emkit.merge(b, method="ties"), "there are no experts"),
        (lambda b, e: emkit.merge(b, {"a": "some/folder"}), "some are folders"),
        (lambda b, e: emkit.ties({"x": 1}, e), "'x' is a int, not a tensor"),
        (lambda b, e: emkit.ties({"x": torch.ones(2)}, {"a": {"x": torch.ones(2)}}), "give tensors='all'"),
        (lambda b, e: emkit.expert_merging(b, e, prompts={}), "give folders or hub ids, not state dicts"),
        (lambda b, e: emkit.Experts(b, e).live(), "a state dict cannot be asked"),
    ],
)
def test_a_mistake_is_one_line(dicts, call, said):
    with pytest.raises(UserError) as error:
        call(*dicts)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_importing_emkit_alone_imports_no_torch():
    code = "import sys, emkit; print('torch' in sys.modules, emkit.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False")


def test_the_readmes_lines_run(models, tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(models)
    (tmp_path / "code.jsonl").write_text((models / "code.jsonl").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    names = zip(("base", "a", "b"), ("base", *own.EXPERTS), strict=True)
    known = {name: AutoModelForCausalLM.from_pretrained(models / folder) for name, folder in names}
    exec(re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1], known)
    assert (tmp_path / "merged" / "config.json").is_file() and len(known["learned"].history) == 40
