"""Language models: what is merged, and passes and answers that are those of transformers' own model."""

import json
import subprocess
import sys

import pytest
import tiny_models as tiny
import torch
from safetensors import safe_open

from emkit import backbones
from emkit.alignment.calibration import calibrate
from emkit.alignment.sequences import collate, fold
from emkit.alignment.sources import Samples
from emkit.alignment.teacher import Recording
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.task_vectors import TaskVectors

causal_lm = backbones.get("causal_lm")
mistral = backbones.get("mistral")

KINDS = ("llama", "mistral", "qwen2", "gpt_neox")
QUESTIONS = ["What?", "Say a much longer thing, please.", "Überall 7?"]
ANSWERS = ["yes", "", "no, never at all"]


@pytest.fixture(scope="module", params=KINDS)
def loaded(request, tmp_path_factory):
    """Each kind of model, from its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny.save(tiny.language_model(request.param, seed=3), folder)
    return request.param, *causal_lm.load(folder), folder


def test_names_are_known_without_loading_transformers():
    code = "import sys, emkit.backbones as b; print(*b.NAMES, *{'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["causal_lm", "internvl", "mistral", "qwen2_vl"]
    with pytest.raises(UserError, match="unknown backbone 'bert'"):
        backbones.get("bert")


def test_merged_tensors_are_the_blocks_matrices(loaded):
    kind, model, _, folder = loaded
    with safe_open(folder / "model.safetensors", "pt") as file:
        names, shapes = list(file.keys()), {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    merged = causal_lm.merged_names(names)
    per_block = 4 if kind == "gpt_neox" else 7  # its q, k and v are one matrix, its MLP has two
    assert len(merged) == len(set(merged)) == per_block * 2
    # an independent statement of the rule, by shape: every matrix that is no embedding and no head
    matrices = {name for name, shape in shapes.items() if len(shape) == 2}
    assert set(merged) == {name for name in matrices if "embed" not in name and "lm_head" not in name}
    blocks = [int(name.split(".layers.")[1].split(".")[0]) for name in merged]
    assert blocks == sorted(blocks)
    parameters = dict(model.named_parameters())
    assert all(causal_lm.parameter_name(name) in parameters for name in merged)
    assert causal_lm.blocks(model) == 2
    assert mistral.merged_names(names) == ([] if kind == "gpt_neox" else merged)


def test_ten_blocks_are_in_the_order_of_their_numbers():
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(12)]
    for module in (causal_lm, mistral):
        assert module.merged_names(reversed(names)) == names


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "transformer.h.0.ln_1.weight",
        "transformer.h.0.attn.bias",
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
        "transformer.wte.weight",
    ],
)
def test_what_stays_at_the_base(name):
    assert causal_lm.merged_names([name]) == []


@pytest.mark.parametrize("name", ["transformer.h.0.attn.c_attn.weight", "model.decoder.layers.3.fc1.weight"])
def test_blocks_of_other_families(name):
    assert causal_lm.merged_names([name]) == [name]


def test_a_pass_is_the_stock_models(loaded):
    _, model, tokenizer, _ = loaded
    batch = causal_lm.encode(tokenizer, [None] * 3, QUESTIONS, ANSWERS)
    with torch.no_grad():
        stock = model(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
        for layer in (1, 2):
            found = causal_lm.forward(model, batch, hidden_layer=layer)
            torch.testing.assert_close(found.logits, stock.logits)
            torch.testing.assert_close(found.hidden, stock.hidden_states[layer])
        some = causal_lm.forward(model, batch, positions=batch["response_mask"])
    assert some.hidden is None
    torch.testing.assert_close(some.logits, stock.logits[batch["response_mask"]])


def test_rows_are_the_chat_with_the_response(loaded):
    _, _, tokenizer, _ = loaded
    batch = causal_lm.encode(tokenizer, [None] * 3, QUESTIONS, ANSWERS)
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS)):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert tokenizer.decode(ids) == f"<|user|>{question}</s><|assistant|>{answer}</s>"
        assert tokenizer.decode(batch["input_ids"][row][batch["response_mask"][row]]) == answer + "</s>"
    asked = causal_lm.encode(tokenizer, [None] * 3, QUESTIONS)
    assert bool(asked["attention_mask"][:, -1].all()) and "response_mask" not in asked


def test_without_a_chat_template_a_prompt_is_itself():
    words = tiny.tokenizer(chat=None)
    ids = causal_lm.encode(words, [None], ["Once upon"])["input_ids"][0]
    assert words.decode(ids) == "Once upon"


def test_greedy_answers_are_those_of_asking_one_by_one(loaded):
    _, model, tokenizer, _ = loaded
    found = causal_lm.generate(model, tokenizer, [None] * 3, QUESTIONS, 6)
    assert any(found)
    for question, answer in zip(QUESTIONS, found):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True) == answer


def test_an_answer_keeps_its_indentation(loaded, monkeypatch):
    """As a calibration response it is tokenised again, and must be what the expert said."""
    _, model, tokenizer, _ = loaded
    said = "    if x:\n        return 1\n"
    tokens = tokenizer(said, add_special_tokens=False, return_tensors="pt")["input_ids"]
    monkeypatch.setattr(model, "generate", lambda input_ids, **given: torch.cat([input_ids, tokens], dim=1))
    assert causal_lm.generate(model, tokenizer, [None], ["Go on."], 40) == [said]
    batch = causal_lm.encode(tokenizer, [None], ["Go on."], [said])
    assert batch["input_ids"][0][batch["response_mask"][0]].tolist()[:-1] == tokens[0].tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_folded_sequence_has_the_states_of_its_rows(loaded, attention):
    _, model, tokenizer, _ = loaded
    batch = causal_lm.encode(tokenizer, [None] * 3, QUESTIONS, ANSWERS)
    lengths, responses = batch["attention_mask"].sum(1).tolist(), batch["response_mask"].sum(1).tolist()
    rows = [ids[:n].numpy() for ids, n in zip(batch["input_ids"], lengths)]
    folded, taken = collate([fold(rows, responses, "response"), fold(rows[:1], responses[:1], "response")])
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        with torch.no_grad():
            alone = causal_lm.forward(model, batch, hidden_layer=1)
            found = causal_lm.forward(model, folded, hidden_layer=1, positions=taken)
    finally:
        model.set_attn_implementation(before)
    expected = [alone.logits[r, n - k - 1 : n - 1] for r, (n, k) in enumerate(zip(lengths, responses))]
    torch.testing.assert_close(found.logits, torch.cat([*expected, expected[0]]), rtol=1e-4, atol=1e-4)
    hidden = [alone.hidden[r, n - k - 1 : n - 1] for r, (n, k) in enumerate(zip(lengths, responses))]
    torch.testing.assert_close(found.hidden[taken], torch.cat([*hidden, hidden[0]]), rtol=1e-4, atol=1e-4)


def test_a_sequence_beyond_the_sliding_window_is_one_line(tmp_path):
    model = tiny.language_model("mistral", sliding_window=8)
    batch, _ = collate([fold([torch.arange(5, 25).numpy()], [3], "response")])
    with pytest.raises(UserError, match=r"20 tokens is longer than this model's sliding window \(8\)"):
        causal_lm.forward(model, batch)


def test_an_image_for_a_language_model_is_one_line():
    with pytest.raises(UserError, match="which sees no images"):
        causal_lm.encode(tiny.tokenizer(), [object()], ["what?"])


def test_calibration_on_prompts_alone(tmp_path):
    """The teacher's logits and states are those of its own pass over its own responses."""
    zoo = {name: tiny.save(tiny.language_model(seed=seed), tmp_path / name) for seed, name in enumerate("bxy")}
    vectors = TaskVectors(
        Checkpoint.open(zoo["b"]), {name: Checkpoint.open(zoo[name]) for name in "xy"}, causal_lm.merged_names
    )
    files = {}
    for name in "xy":
        files[name] = str(tmp_path / f"{name}.jsonl")
        lines = [json.dumps({"prompt": f"Tell me of {i}."}) for i in range(3)]
        lines.append('{"question": "And\u2028why?", "answer": "so"}')  # a line separator ends no line here
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    base, _ = causal_lm.load(zoo["b"])
    settings = Recording(samples=2, response_tokens=4, hidden_layer=1, max_new_tokens=5)
    given = Samples(files=files).drawn_from("causal_lm")
    made = calibrate(causal_lm, base, vectors, given, settings, 0, tmp_path / "cache")
    again = calibrate(causal_lm, base, vectors, given, settings, 0, tmp_path / "cache")
    teacher, words = causal_lm.load(zoo["x"])
    task = made.tasks["x"]
    assert task.samples == 2 and task.rows == again.tasks["x"].rows
    for i, (sequence, row, hidden) in enumerate(zip(task.sequences, task.rows, task.hidden)):
        batch = causal_lm.encode(words, [None], [row[0]["question"]], [row[0]["response"]])
        predicts = batch["response_mask"].roll(-1, dims=1)
        with torch.no_grad():
            stock = teacher(batch["input_ids"], output_hidden_states=True)
        assert list(sequence.ids) == batch["input_ids"][0].tolist()
        torch.testing.assert_close(task.logits(i), stock.logits[predicts], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(hidden, stock.hidden_states[1][predicts])


@pytest.mark.parametrize(
    "kind, names",
    [
        ("internvl_chat", ["internvl"]),
        ("qwen2_vl", ["qwen2_vl"]),
        ("llama", ["causal_lm", "mistral"]),
        ("bert_of_nobody", []),
    ],
)
def test_the_backbones_of_a_kind(kind, names):
    assert backbones.reading(kind) == names
    assert all(bool(backbones.get(name).VISION) == (names[0] in ("internvl", "qwen2_vl")) for name in names)
