"""lm-evaluation-harness over the columns: its log, our items and a count by hand agree."""

from pathlib import Path

import pytest
import torch
from text_benchmarks import TEXT, asked, column, right, write

from emkit import backbones
from emkit.errors import UserError
from emkit.zoo import build, families
from emkit.zoo.text import skills
from eval.items import lines
from eval.lm import client, execution, harness, scoring

mistral = families.get("mistral")

GSM8K, MATH = column("GSM8K"), column("MATH")
SCORED = TEXT[1:]  # by lm-evaluation-harness
COUNTS = {"AlpacaEval": 5, "GSM8K": 6, "MATH": 6, "HumanEval": 4, "MBPP": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm").resolve()
    write("validation", folder, COUNTS)
    yield folder
    client._service(folder).socket_path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained model of the smoke zoo's shape, in fp32."""
    recipe, folder = build.load_recipe("mistral-smoke"), tmp_path_factory.mktemp("model")
    tokenizer = mistral.processor(recipe)
    made = mistral.create(recipe, tokenizer, 5)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(data, name: str) -> list[dict]:
    return lines.rows(data, column(name))


# ---- columns
@pytest.mark.parametrize("name", SCORED)
def test_a_column_is_a_task_that_the_readme_explains(name):
    found = column(name)
    settings = harness.settings(found)
    assert settings["dataset_path"] == "json" and "include" not in found.task
    assert settings["metadata"]["version"] == found.version and settings["num_fewshot"] == 0
    readme = (Path(harness.__file__).parent / "README.md").read_text(encoding="utf-8")
    assert f"{name}, `{found.protocol}`" in readme and f"{found.n} ({found.validation_n})" in readme


# ---- metrics, by hand
@pytest.mark.parametrize(
    ("reply", "hit"),
    [
        ("3 + 4 = 7\n#### 7", 1),
        ("#### 7\n#### 8", 1),
        ("#### 8\n#### 7", 0),  # the harness takes the first
        ("####7", 0),  # and wants the blank
        ("#### 1,007", 0),
        ("7", 0),
        ("#### 70", 0),
        ("", 0),
    ],
)
def test_a_word_problem_is_read_from_its_first_mark(reply, hit):
    assert scoring.final_number(["2 + 5 = 7\n#### 7"], [reply]) == hit


@pytest.mark.parametrize(
    ("reply", "hit"),
    [(r"\boxed{x^2 + 3x}", 1), (r"so $\boxed{x^2+3x}$.", 1), (r"\boxed{1} \boxed{x^2 + 3x}", 1), ("x^2 + 3x", 0)]
    + [(r"\boxed{x^2 + 3x", 0), (r"\boxed{x^{2} + 3x}", 1), (r"\boxed{}", 0)],
)
def test_a_symbolic_answer_is_read_from_its_last_box(reply, hit):
    assert scoring.boxed_answer(["x^2 + 3x"], [reply]) == hit


def test_programs_are_put_together_as_their_namesakes_are():
    docs = [{"prompt": 'def f(x):\n    """Return x."""\n'}] * 3
    whole = 'def f(x):\n    """Return x."""\n    return x\n'
    replies = [["    return x"], ["return x\n"], ["```python\n    return x\n```\nas asked"]]
    assert scoring.completed_programs(replies, docs) == [whole] * 3
    assert scoring.written_programs([["def f(x):\n    return x"], ["Here:\n```\nx = 1\n```"]], [{}] * 2) == [
        "def f(x):\n    return x\n",
        "x = 1\n",
    ]


def test_no_program_is_run_without_a_sandbox(monkeypatch):
    monkeypatch.setattr(execution, "_execute", None)
    with pytest.raises(UserError, match="no sandbox"):
        scoring.program_passes({"test_list": ["raise SystemExit"]}, ["raise SystemExit"])


# ---- the harness itself
def canned(replies: dict[str, str]):
    """A model of the harness's own kind which gives canned replies by what the prompt contains."""
    from lm_eval.api.model import TemplateLM

    class Canned(TemplateLM):
        eot_token_id, tokenizer_name = 0, "canned"

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return "[INST] " + chat_history[-1]["content"] + " [/INST]"

        def generate_until(self, requests, disable_tqdm=False):
            return [replies[request.args[0]] for request in requests]

        def tok_encode(self, string, **kwargs):
            return list(string.encode())

        def _loglikelihood_tokens(self, requests, **kwargs):
            raise NotImplementedError

        def loglikelihood_rolling(self, requests, **kwargs):
            raise NotImplementedError

    return Canned()


def test_scores_are_those_counted_by_hand_and_code_goes_to_the_given_function_alone(data, monkeypatch):
    replies, programs, hits = {}, [], {"GSM8K": 4, "MATH": 2, "HumanEval": 3, "MBPP": 1}

    def execute(program, tests, prelude, names) -> bool:  # runs nothing: knows the right programs by heart
        programs.append((program, tests, prelude, names))
        return "WRONG" not in program

    for name in SCORED:
        for number, row in enumerate(rows(data, name)):
            prompt, reply = asked(name, row), right(name, row)
            replies[f"[INST] {prompt} [/INST]"] = reply if number < hits[name] else "WRONG"
    monkeypatch.setattr(execution, "_execute", execute)
    monkeypatch.setattr(harness, "_model", lambda *given: canned(replies))
    found = harness.evaluate(str(data), [column(name) for name in SCORED], harness.Answering("no folder"))
    for name, result in found.items():
        n = COUNTS[name]
        assert result["n"] == n and result["value"] == pytest.approx(100 * hits[name] / n)
        assert [item["score"] for item in result["items"]] == [1.0] * hits[name] + [0.0] * (n - hits[name])
        assert [item["index"] for item in result["items"]] == [row["index"] for row in rows(data, name)]
        assert set(result["items"][0]) == {"index", "prediction", "score", "groups"}
    human, written = rows(data, "HumanEval")[0], rows(data, "MBPP")[0]
    assert (
        human["prompt"] + human["canonical_solution"],
        f"{human['test']}\ncheck({human['entry_point']})",
        human["prompt"],
        (human["entry_point"],),
    ) in programs
    assert (written["code"] + "\n", "\n".join(written["test_list"]), "", None) in programs
    assert len(programs) == COUNTS["HumanEval"] + COUNTS["MBPP"]


def test_a_log_that_disagrees_with_its_items_is_no_score():
    samples = [{"doc_id": i, "doc": {"index": str(i)}, "resps": [["x"]], "final_number": 1.0} for i in range(4)]
    log = {
        "samples": {"emkit_GSM8K": samples},
        "results": {"emkit_GSM8K": {"final_number,none": 1.0}},
        "n-samples": {"emkit_GSM8K": {"effective": 4}},
    }
    assert harness._scored(GSM8K, harness.settings(GSM8K), log)["value"] == 100.0
    log["results"]["emkit_GSM8K"]["final_number,none"] = 0.75
    with pytest.raises(RuntimeError, match=r"reports 75\.0, its items give 100\.0"):
        harness._scored(GSM8K, harness.settings(GSM8K), log)


def test_a_worker_asks_the_model_as_transformers_alone_does(data, model):
    found = client.evaluate(data, [GSM8K, MATH], model)
    loaded, tokenizer = backbones.get("mistral").load(model)
    torch.set_num_threads(1)
    for name, asks in (("GSM8K", "question"), ("MATH", "problem")):
        questions = [row[asks] for row in rows(data, name)]
        generate = backbones.get("mistral").generate
        expected = generate(loaded, tokenizer, [None] * len(questions), questions, skills.NEW_TOKENS)
        assert [item["prediction"] for item in found[name].items] == expected
        assert found[name].harness["dataset"].startswith(column(name).protocol)
    with client._free(client._service(data)) as first, client._free(client._service(data)) as second:
        assert first.socket_path != second.socket_path, "a busy worker is not asked"
    again = client.evaluate(data, [MATH], model)["MATH"]
    assert again == found["MATH"]


def test_code_without_a_sandbox_fails_before_a_model_is_opened(data, monkeypatch):
    monkeypatch.setattr(execution, "_execute", None)
    with pytest.raises(UserError, match="no sandbox: MBPP"):
        harness.evaluate(str(data), [GSM8K, column("MBPP")], harness.Answering("no folder"))
    with pytest.raises(UserError, match="no benchmark data"):
        harness.evaluate("/nowhere", [GSM8K], harness.Answering("no folder"))
