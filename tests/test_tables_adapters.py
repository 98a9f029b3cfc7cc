"""A table whose experts are LoRA adapters: its rows are those of the same experts merged into their base by PEFT."""

import json
from pathlib import Path

import own_models as own
import pytest
import tiny_models as tiny
import torch
from small_plan import write
from test_own_adapters import ALPHA, DOWN, RANK, Q, expected_delta, write_adapter

from emkit import backbones
from emkit.errors import UserError
from eval import merging, models
from eval.places import Job
from eval.plan import Plan

ROWS = [
    {"id": "base", "label": "Base", "method": "checkpoint", "model": "base"},
    {"id": "math", "label": "Math", "method": "checkpoint", "model": "Math"},
    {"id": "math_reset", "label": "Math, reset", "method": "reset_expert", "model": "Math"},
    {"id": "task_arithmetic", "label": "Task Arithmetic", "method": "task_arithmetic", "scale": 0.5},
    {"id": "expert_merging", "label": "Expert Merging", "method": "expert_merging"},
]
SHAPES = {Q: (16, 16), DOWN: (16, 32)}
STEPS = {"initial": 0.5, "optimiser": {"lr": 0.05, "steps": 3}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, two adapters, and each of them merged into a whole model by PEFT in fp32."""
    peft, home = pytest.importorskip("peft"), tmp_path_factory.mktemp("adapters")
    tiny.save(tiny.language_model(seed=1), home / "base", tiny.tokenizer(), dtype=torch.float32)
    for seed, name in enumerate(("math", "code")):
        write_adapter(home / name, "base", SHAPES, seed)
        model, tokenizer = backbones.get("mistral").load(home / "base")
        whole = peft.PeftModel.from_pretrained(model, home / name).merge_and_unload()
        tiny.save(whole, home / "whole" / name, tokenizer)
        lines = [json.dumps({"prompt": f"Tell {name} number {i}."}) for i in range(3)]
        (home / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return home


def plan_of(home: Path, out: Path, experts: Path) -> Plan:
    profile = {
        "name": "adapters",
        "backbone": "mistral",
        "models": {
            "base": str(home / "base"),
            "experts": {"Math": str(experts / "math"), "Code": str(experts / "code")},
        },
        "calibration": {
            **{"source": "jsonl", "samples": 2, "response_tokens": 4, "max_new_tokens": 4},
            "files": {"Math": str(home / "math.jsonl"), "Code": str(home / "code.jsonl")},
        },
        "grid": [0.5],
        "seeds": [0],
        "protocol": {"judge_upstream": "rules"},
        "methods": {"expert_merging": {"beta": {"Math": 1.0, "Code": 1.0}, **STEPS}},
    }
    table = {"title": "T", "columns": ["MATH"], "rows": ROWS}
    out.mkdir()
    return Plan(*write(out, table, profile), out / "results")


@pytest.fixture(scope="module")
def merged(folder, tmp_path_factory):
    """Row → its tensors, of the adapters and of the whole experts."""
    found = {}
    for kind, experts in (("adapters", folder), ("whole", folder / "whole")):
        out = tmp_path_factory.mktemp(kind) / "run"
        plan = plan_of(folder, out, experts)
        models.check(plan)
        for row in plan.rows:
            report = merging.merge(plan, Job(row, 0), out / row / "model", out / "cache")
            assert report["row"] == row
        found[kind] = {row: out / row / "model" for row in plan.rows}
    return found


@pytest.mark.parametrize("row", [row["id"] for row in ROWS])
def test_a_row_is_that_of_whole_experts(merged, row):
    adapters, whole = (own.tensors(merged[kind][row]) for kind in ("adapters", "whole"))
    assert set(adapters) == set(whole)
    for name, tensor in whole.items():
        torch.testing.assert_close(adapters[name].float(), tensor.float(), rtol=1e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize("row", [row["id"] for row in ROWS])
def test_what_is_written_loads_and_answers_alone(merged, row):
    """With the base's configuration and tokenizer, which an adapter's folder lacks."""
    model, tokenizer = backbones.get("mistral").load(merged["adapters"][row])
    assert len(backbones.get("mistral").generate(model, tokenizer, [None], ["Tell math number 1."], 3)) == 1


def test_task_arithmetic_is_its_formula(merged, folder):
    base, found = own.tensors(folder / "base"), own.tensors(merged["adapters"]["task_arithmetic"])
    for module in SHAPES:
        delta = sum(expected_delta(folder / name, module, ALPHA / RANK) for name in ("math", "code"))
        expected = base[f"{module}.weight"].double() + 0.5 * delta
        torch.testing.assert_close(found[f"{module}.weight"].double(), expected, rtol=1e-6, atol=1e-6)


def test_a_fit_moves_the_coefficients_and_is_the_same_fit(merged):
    read = {
        kind: json.loads((rows["expert_merging"].parent / "coefficients.json").read_text())
        for kind, rows in merged.items()
    }
    (adapters, whole) = (torch.tensor(list(_numbers(read[kind]))) for kind in ("adapters", "whole"))
    assert (adapters - 0.5).abs().max() > 0.01
    torch.testing.assert_close(adapters, whole, rtol=0, atol=1e-4)


def _numbers(value):
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)


def test_an_adapter_of_another_base_and_a_missing_one_are_one_line(folder, tmp_path):
    (tmp_path / "experts").mkdir()
    for name in ("math", "code"):
        write_adapter(tmp_path / "experts" / name, "another/model", SHAPES)
    plan = plan_of(folder, tmp_path / "run", tmp_path / "experts")
    with pytest.raises(UserError, match="says that it was trained on another/model, the base here is base"):
        models.check(plan)
    plan = plan_of(folder, tmp_path / "gone", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"there is no model at .*nowhere/math"):
        models.check(plan)


def test_the_score_of_an_adapter_depends_on_its_base(folder, tmp_path):
    plan = plan_of(folder, tmp_path / "run", folder)
    assert set(plan.model_names("math")) == {"base", "Math"} and set(plan.model_names("base")) == {"base"}
    plan = plan_of(folder, tmp_path / "whole", folder / "whole")
    assert set(plan.model_names("math")) == {"Math"}


def test_every_row_of_adapters_of_a_16_bit_base_can_be_written(tmp_path):
    """As published bases are stored; an expert with its unmerged tensors reset is rounded as a merge is."""
    pytest.importorskip("peft")
    tiny.save(tiny.language_model(seed=1), tmp_path / "base", tiny.tokenizer(), dtype=torch.bfloat16)
    for seed, name in enumerate(("math", "code")):
        write_adapter(tmp_path / name, "base", SHAPES, seed)
        lines = [json.dumps({"prompt": f"Tell {name} number {i}."}) for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    plan = plan_of(tmp_path, tmp_path / "run", tmp_path)
    for row in plan.rows:
        merging.merge(plan, Job(row, 0), tmp_path / row / "model", tmp_path / "cache")
    base, reset = own.tensors(tmp_path / "base"), own.tensors(tmp_path / "math_reset" / "model")
    assert {tensor.dtype for tensor in reset.values()} == {torch.bfloat16}
    for name, tensor in reset.items():
        wanted, module = base[name].double(), name.removesuffix(".weight")
        if module in SHAPES:
            wanted = wanted + expected_delta(tmp_path / "math", module, ALPHA / RANK)
        torch.testing.assert_close(tensor.double(), wanted, rtol=2**-8, atol=0)  # one rounding
