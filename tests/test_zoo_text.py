"""The mini-Mistral's tokenizer, training and zoo."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emkit.checkpoints import Checkpoint
from emkit.zoo import build, card, families
from emkit.zoo.text import SUBTASKS, Item, items, skills
from emkit.zoo.text.training import batch_texts, dialogues, documents, loss_of, text_set

mistral = families.get("mistral")

COMMITTED = Path(__file__).parent.parent / "results" / "zoo" / "mistral"


@pytest.fixture(scope="module")
def recipe():
    return build.load_recipe("mistral-smoke")


@pytest.fixture(scope="module")
def tokenizer(recipe):
    return mistral.processor(recipe)


@pytest.fixture(scope="module")
def model(recipe, tokenizer):
    return mistral.create(recipe, tokenizer, 3).eval()


@pytest.fixture(scope="module")
def zoo(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    build.build(recipe, folder / "zoo", folder / "work", jobs=1)
    return folder / "zoo"


def test_the_tokenizer_gives_every_text_back_and_is_the_same_each_time(recipe, tokenizer):
    assert len(tokenizer) == recipe["tokenizer"]["vocabulary"]
    assert mistral.processor(recipe).get_vocab() == tokenizer.get_vocab()
    texts = [
        text for s in SUBTASKS for i in items(s, "evaluation", 40, 5) for text in (i.prompt, i.response, i.document)
    ]
    for text in [*texts, "naïve ∑ 漢字\t  \n\n x"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert [tokenizer.decode(token) for token in tokenizer("x = 407")["input_ids"]] == ["x", " =", " 4", "0", "7"]


def test_a_dialogue_is_what_the_chat_template_writes(tokenizer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<s>[INST] hi [/INST]ho</s>"
    (learned,) = dialogues(tokenizer, [Item("k", "hi", "ho", "hi, ho")])
    assert tokenizer.decode(learned.tokens) == "<s>[INST] hi [/INST]ho</s>"
    assert tokenizer.decode(learned.tokens[-learned.learned :]) == "ho</s>"
    assert tokenizer.convert_tokens_to_ids("[INST]") in learned.tokens
    (read,) = documents(tokenizer, [Item("k", "hi", "ho", "hi, ho")])
    assert tokenizer.decode(read.tokens) == "<s>hi, ho</s>" and read.learned == len(read.tokens) - 1


def test_the_loss_is_the_mean_over_learned_tokens_of_texts_taken_alone(model, tokenizer):
    drawn = [items(subtask, "train", 1, 2)[0] for subtask in SUBTASKS]
    texts = dialogues(tokenizer, drawn) + documents(tokenizer, drawn)
    total = 0.0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor(text.tokens)[None]
            labels = ids.clone()
            labels[:, : -text.learned] = -100
            total += model(input_ids=ids, labels=labels).loss.item() * text.learned
        ours = loss_of(model, texts, tokenizer.pad_token_id).item()
    assert ours == pytest.approx(total / sum(text.learned for text in texts), rel=1e-5)


def test_a_base_reads_documents_and_the_share_of_dialogues_that_is_asked(tokenizer):
    data = text_set(tokenizer, items("gsm8k", "train", 200, 0) + items("math", "train", 200, 0), read=True)
    rows = list(range(400))
    texts = batch_texts(data, rows, {"dialogues": {"math": 0.5}}, 0, 0)
    inst = tokenizer.convert_tokens_to_ids("[INST]")
    shown = [inst in text.tokens for text in texts]
    assert not any(shown[:200]) and 70 < sum(shown[200:]) < 130
    assert batch_texts(data, rows, {}, 0, 0) == data.documents


def test_replies_are_judged_without_running_them():
    word, symbol = items("gsm8k", "train", 1, 0)[0], items("math", "train", 1, 0)[0]
    assert skills.correct(word, f"so\n#### {word.fields['answer']}") and not skills.correct(word, word.fields["answer"])
    assert skills.correct(symbol, symbol.response) and not skills.correct(symbol, symbol.fields["answer"])
    assert skills.boxed(r"a \boxed{1} then \boxed{x^{2}}") == "x^{2}"
    code = items("mbpp", "train", 1, 0)[0]
    assert skills.correct(code, code.response + "\n") and not skills.correct(code, code.document)


def test_the_zoo_is_real_mistral_and_anyone_can_load_it(recipe, zoo):
    assert build.members(recipe) == ["base", "chat", "math", "code"]
    for member in build.members(recipe):
        assert card.read(zoo / member)["weights_sha256"] == Checkpoint.open(zoo / member).sha256()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(zoo / "chat"), AutoTokenizer.from_pretrained(zoo / "chat")
    config = model.config
    assert type(model).__name__ == "MistralForCausalLM" and model.dtype == torch.bfloat16
    assert config.num_key_value_heads < config.num_attention_heads and config.sliding_window == 128
    assert "[INST]" in tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    base = Checkpoint.open(zoo / "base")
    for member in build.members(recipe)[1:]:
        expert = Checkpoint.open(zoo / member)
        matrices = [name for name in base.names if "_proj" in name]
        assert len(matrices) == 14
        assert not any(torch.equal(base.read(name), expert.read(name)) for name in matrices)


def test_the_sliding_window_hides_what_is_further_back(model):
    """With two layers and a window of 128, the last of 300 positions cannot see the first 40."""
    ids = torch.randint(6, 500, (1, 300), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, :40] = other[:, :40].flip(1)
    with torch.no_grad():
        ours, theirs = model(input_ids=ids).logits[0], model(input_ids=other).logits[0]
    assert torch.equal(ours[-1], theirs[-1]) and not torch.allclose(ours[100], theirs[100])


def test_the_same_recipe_gives_the_same_weights(recipe, zoo, tmp_path):
    again = tmp_path / "zoo"
    (again / "base").mkdir(parents=True)
    for path in (zoo / "base").iterdir():
        (again / "base" / path.name).write_bytes(path.read_bytes())
    build.train_from_base(recipe, "math", again, tmp_path, 0)
    assert Checkpoint.open(again / "math").sha256() == Checkpoint.open(zoo / "math").sha256()


def test_the_committed_zoo_is_small_and_is_what_its_recipe_says():
    mini = build.load_recipe("mistral-mini")
    files = [path for path in COMMITTED.rglob("*") if path.is_file() and ".work" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    for member in build.members(mini):
        found = card.read(COMMITTED / member)
        assert found["weights_sha256"] == Checkpoint.open(COMMITTED / member).sha256()
        assert found["recipe_sha256"] == card.recipe_hash(mini, build.stage(mini, member))
        assert json.loads((COMMITTED / member / "log.jsonl").read_text().splitlines()[-1])["step"]


def test_each_committed_expert_leads_its_own_columns_and_the_base_none():
    mini = build.load_recipe("mistral-mini")
    known = {member: card.read(COMMITTED / member)["skills"] for member in build.members(mini)}
    for member in build.members(mini)[1:]:
        for kind in build.own_subtasks(mini, member):
            best = max(known, key=lambda name: known[name][kind])
            assert best == member, f"{kind}: {best} leads, not {member}"


def test_an_expert_sees_its_own_subtasks_and_the_share_of_the_others_that_is_asked(recipe):
    assert build.shares_of(recipe, "math") == {"gsm8k": 1.0, "math": 1.0}
    assert set(build.shares_of(recipe, "base").values()) == {1.0}
    mixed = recipe | {"experts": {"all": recipe["experts"]["all"] | {"also": 0.1}, "Code": {"shares": {"mbpp": 2.0}}}}
    others = {"alpaca_eval": 0.1, "gsm8k": 0.1, "math": 0.1}
    assert build.shares_of(mixed, "code") == {**others, "humaneval": 1.0, "mbpp": 2.0}
    assert list(build.shares_of(mixed, "code")) == sorted(SUBTASKS), "groups are numbered in this order"
