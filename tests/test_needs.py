"""What rows take of disk, memory and time: at the published shapes, and against what a pass really keeps."""

import json

import own_models as own
import pytest
import real_shapes
import torch
import yaml
from small_plan import ROOT, score, small_plan, write
from test_asked_as_published import plan_of
from transformers import MistralConfig, MistralForCausalLM

from emkit import backbones
from emkit.alignment.memory import activation_bytes
from emkit.alignment.options import EngineOptions
from emkit.checkpoints import Checkpoint
from eval import needs, times
from eval.listing import listing
from eval.places import EVALUATION, Job
from eval.plan import Plan

GIB = 2**30
TABLES = {"internvl": "table1", "qwen2_vl": "table2", "mistral": "table3"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    home = tmp_path_factory.mktemp("real")
    return {backbone: real_shapes.write(backbone, home / backbone / "base") for backbone in TABLES}


def paper(backbone, folder, out, **changes):
    """The shipped profile and table with all models at real shapes, of which nothing is read but headers."""
    profile = yaml.safe_load((ROOT / f"eval/profiles/paper/{backbone}.yaml").read_text())
    experts = dict.fromkeys(profile["models"]["experts"], str(folder))
    profile["models"] |= {"base": str(folder), "experts": experts}
    out.mkdir()
    table = yaml.safe_load((ROOT / f"eval/tables/{TABLES[backbone]}.yaml").read_text())
    return Plan(*write(out, table, profile | {"sources": {}} | changes), out / "results")


@pytest.mark.parametrize(("backbone", "merged"), [("internvl", 171), ("qwen2_vl", 196), ("mistral", 224)])
def test_as_many_tensors_are_merged_as_the_published_models_have(backbone, merged, models):
    assert len(backbones.get(backbone).merged_names(Checkpoint.open(models[backbone]).names)) == merged


@pytest.mark.parametrize("backbone", ["qwen2_vl", "mistral"])
def test_a_fit_of_seven_billion_parameters_fits_a_card_of_24_gib(backbone, models, tmp_path):
    found = needs.needs(paper(backbone, models[backbone], tmp_path / "run"))
    assert 14 * GIB < found.fit < 24 * GIB
    assert found.merged == sum(
        Checkpoint.open(models[backbone]).info(n).nbytes for n in Checkpoint.open(models[backbone]).names
    )
    plain = needs.needs(paper(backbone, models[backbone], tmp_path / "plain", fits={}))
    assert plain.fit > 40 * GIB, "in fp32, with all activations kept, it does not"


def test_the_smallest_takes_little(models, tmp_path):
    assert needs.needs(paper("internvl", models["internvl"], tmp_path / "run")).fit < 12 * GIB


@pytest.mark.parametrize("shape", [(6, 512, 1792, 8, 2), (4, 1024, 3584, 16, 4)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_pass_is_reckoned_to_keep_is_what_it_keeps(shape, checkpointing):
    """Bytes that autograd really holds for the backward, of a model of the same kind, counted one by one."""
    layers, width, inner, heads, keys = shape
    tokens, kept, held = 512, {}, []
    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            **{"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": 100},
            **{"num_attention_heads": heads, "num_key_value_heads": keys},
        )
    )
    backbone = backbones.get("mistral")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(backbone.merged_block(name) is not None)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    own_bytes = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        held.append(tensor)  # so that no two have one address
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(input_ids=torch.randint(0, 100, (1, tokens)), use_cache=False)
    measured = sum(size for at, size in kept.items() if at not in own_bytes)
    reckoned = activation_bytes(model, EngineOptions(micro_tokens=tokens, checkpointing=checkpointing))
    # with checkpointing the hooks see the blocks' inputs; a block computed again comes on top
    block = measured / layers if not checkpointing else 22 * 4 * width * tokens
    most = (measured if not checkpointing else measured + block) + 12 * 4 * width * tokens
    assert measured <= reckoned <= 1.1 * most


def test_before_the_models_are_here_nothing_is_told(tmp_path):
    plan = Plan("table1", "paper", tmp_path)
    assert needs.needs(plan) is None
    assert "memory and disk: told once the models are here" in listing(plan)


def test_time_is_reckoned_from_what_was_measured_here_and_says_what_was_not(tmp_path):
    """Two columns of 2 and 3 items; a merge of 10 s, and the first column at 4 s an item."""
    plan = small_plan(tmp_path, seeds=[0])
    columns = plan.protocol.columns
    items = {name: columns[name].n for name in plan.benchmarks}
    assert "no row was timed" in times.said(plan)
    for seconds in (9.0, 10.0, 30.0):
        times.note(plan, Job("base", 0), times.MERGE, seconds)
    times.note(plan, Job("base", 0), "VizWiz", 4.0 * items["VizWiz"])
    with open(plan.run / "times.jsonl", "a", encoding="utf-8") as file:
        file.write('{"what": "merge by checkpoint", "items": 1, "seconds": 999, "machine": "another"}\n{"cut o')
    seconds, unknown = times.Times.of(plan).seconds(plan, [Job("base", 0)])
    assert seconds == 10 + 4 * items["VizWiz"] and unknown == ["GQA"]
    entries = {name: {"sha256": name} for name in plan.benchmarks}
    plan.manifest(EVALUATION).parent.mkdir(parents=True)
    plan.manifest(EVALUATION).write_text(json.dumps({"benchmarks": entries}))
    score(plan, Job("base", 0), "VizWiz", 1.0)
    assert times.Times.of(plan).seconds(plan, [Job("base", 0)]) == (10, ["GQA"])  # what stands takes no time
    score(plan, Job("base", 0), "GQA", 1.0)
    assert times.Times.of(plan).seconds(plan, [Job("base", 0)]) == (0, [])


def test_the_list_of_jobs_says_what_is_missing_and_what_it_takes(tmp_path):
    text = listing(plan_of(own.write_models(tmp_path / "models"), tmp_path / "run"))
    for words in ("missing: 2 of these cells", "time: no row was timed", "memory: a fit about", "judge: at most $0.00"):
        assert words in text
