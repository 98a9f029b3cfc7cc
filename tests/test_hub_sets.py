"""Published sets of texts, from a hub made on the spot: fetched once, asked and scored offline by the harness."""

import importlib.util
import io
import json
from pathlib import Path

import own_models as own
import pyarrow
import pytest
import test_own_hub
import yaml
from pyarrow import parquet
from test_lm_harness import canned
from test_own_hub import SHA, Hub, server  # noqa: F401 - a fixture
from text_benchmarks import full

from emkit.errors import UserError
from eval.items import writer
from eval.items.fetching import placing
from eval.lm import client, execution, harness

SUMS = [{"question": f"What is {i} and {i}?", "answer": f"Both.\n#### {2 * i}"} for i in range(6)]
FUNCTION = {
    "task_id": "HumanEval/0",
    "prompt": 'def one():\n    """Give one."""\n',
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
    "entry_point": "one",
}
PROGRAMS = [
    {"task_id": i, "text": f"Give {i}.", "code": f"def f():\n    return {i}", "test_list": [f"assert f() == {i}"] * 3}
    for i in range(1, 6)
]
PROBLEM = {"problem": "Half of 3?", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{\frac{3}{2}}$."}
REPLIES = [
    {"instruction": f"Say {i}.", "output": str(i), "generator": "text_davinci_003", "dataset": "x"} for i in (1, 2)
]


def table(rows) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def offered():
    """Repository → its files, as the published ones name them."""
    return {
        "openai/gsm8k": {
            "main/test-00000-of-00001.parquet": table(SUMS[:2]),
            "main/train-00000-of-00001.parquet": table(SUMS[2:]),
            "socratic/test-00000-of-00001.parquet": table(SUMS),
        },
        "openai/openai_humaneval": {"openai_humaneval/test-00000-of-00001.parquet": table([FUNCTION])},
        "google-research-datasets/mbpp": {
            "full/test-00000-of-00001.parquet": table(PROGRAMS[3:]),
            "full/prompt-00000-of-00001.parquet": table(PROGRAMS[:3]),
        },
        "EleutherAI/hendrycks_math": {
            f"{part}/test-00000-of-00001.parquet": table([PROBLEM])
            for part in ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory")
        }
        | {f"{part}/test-00000-of-00001.parquet": table([PROBLEM]) for part in ("prealgebra", "precalculus")},
        "tatsu-lab/alpaca_eval": {"alpaca_eval.json": json.dumps(REPLIES).encode(), "alpaca_eval.py": b"raise"},
    }


@pytest.fixture
def sets(server, monkeypatch):  # noqa: F811
    for name, files in offered().items():
        monkeypatch.setitem(Hub.models, name, files)
    return server


COUNTS = {"GSM8K": 2, "MATH": 7, "HumanEval": 1, "MBPP": 2, "AlpacaEval": 2}


def protocol(**changes):
    """The published protocol of Table 3, over the toy sets."""
    found = full("paper", "mistral")
    toys = {name: column.model_copy(update={"n": COUNTS[name], **changes}) for name, column in found.columns.items()}
    return found.model_copy(update={"columns": toys})


def written(tmp_path, protocol_):
    return writer.write(protocol_, "evaluation", tmp_path / "data", placing(tmp_path / "revisions.json"))


def test_sets_are_fetched_once_at_a_recorded_revision(sets, tmp_path, monkeypatch):
    manifest = written(tmp_path, protocol())
    assert {name: entry["n"] for name, entry in manifest["benchmarks"].items()} == COUNTS
    recorded = json.loads((tmp_path / "revisions.json").read_text())
    assert recorded == {f"datasets/{name}": SHA for name in Hub.models if name != "user/model"}
    assert not [path for path in Hub.asked if path.endswith(".py") or "socratic" in path]
    lines = [json.loads(line) for line in (tmp_path / "data" / "GSM8K.jsonl").read_text().splitlines()]
    assert lines == [{"index": f"GSM8K/{i}", **SUMS[i]} for i in range(2)]
    monkeypatch.setattr(test_own_hub, "SHA", "2" * 40)  # the hub goes on
    sets.shutdown()
    sets.server_close()
    assert written(tmp_path, protocol()) == manifest


def test_another_number_of_items_is_refused(sets, tmp_path):
    with pytest.raises(UserError, match=r"has 2 items, and the column says n: 3"):
        written(tmp_path, protocol(n=3))


def only(name, **changes):
    """The protocol with one column, changed."""
    found = protocol()
    return found.model_copy(update={"columns": {name: found.columns[name].model_copy(update=changes)}})


def test_a_file_that_is_not_in_the_set_is_one_line(sets, tmp_path, monkeypatch):
    monkeypatch.setitem(Hub.models, "google-research-datasets/mbpp", {"full/test-0.parquet": table(PROGRAMS[3:])})
    with pytest.raises(UserError, match=r"MBPP: there is no file full/prompt-\*\.parquet in the set"):
        written(tmp_path, only("MBPP"))


def test_a_set_that_is_not_there_is_one_line(sets, tmp_path, monkeypatch):
    monkeypatch.delitem(Hub.models, "openai/openai_humaneval")
    with pytest.raises(UserError, match="openai/openai_humaneval: the hub has no public dataset of that name"):
        written(tmp_path, only("HumanEval"))
    with pytest.raises(UserError, match="does not say where: give it a `hub`"):
        written(tmp_path, only("HumanEval", hub=None))


@pytest.fixture
def model(tmp_path):
    return own.write_models(tmp_path / "models") / "base"


def test_the_harness_asks_and_scores_them_without_a_network(sets, tmp_path, model):
    """A model of random weights: what counts is that every item is asked, in its protocol, and scored."""
    written(tmp_path, protocol())
    sets.shutdown()
    sets.server_close()
    for name in ("GSM8K", "MATH", "HumanEval", "MBPP"):
        column = protocol().columns[name].model_copy(update={"max_new_tokens": 4})
        found = client.evaluate(tmp_path / "data", [column], model)[name]
        assert found.n == COUNTS[name] and {item["score"] for item in found.items} <= {0.0, 1.0}


def test_functions_and_programs_of_the_reference_pass_in_the_sandbox(sets, tmp_path):
    from eval.lm import scoring

    execution.use(execution.sandbox())
    (program,) = scoring.continued_programs([[FUNCTION["canonical_solution"]]], [FUNCTION])
    assert scoring.completion_passes(FUNCTION, [program]) == {"pass_at_1": 1.0}
    assert scoring.completion_passes(FUNCTION, [program.replace("1", "2")]) == {"pass_at_1": 0.0}
    (program,) = scoring.replied_programs([[PROGRAMS[0]["code"]]], PROGRAMS[:1])
    assert scoring.program_passes(PROGRAMS[0], [program]) == {"pass_at_1": 1.0}
    assert scoring.solution_answer(PROBLEM) == r"\frac{3}{2}"
    assert scoring.boxed_answer([scoring.solution_answer(PROBLEM)], [r"So \boxed{1.5}"]) == 1.0


def test_questions_and_stop_words_are_the_harness_s_own(sets, tmp_path):
    """HumanEval's and MBPP's, letter for letter, as the installed tasks have them."""

    class Plain(yaml.SafeLoader):
        """YAML whose functions are not looked up: humaneval's begin with a download."""

    Plain.add_constructor("!function", lambda loader, node: node.value)
    tasks = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
    for name, stock in (("HumanEval", "humaneval"), ("MBPP", "mbpp")):
        ours = protocol().columns[name].task
        theirs = yaml.load((tasks / stock / f"{stock}.yaml").read_text(), Plain)
        assert ours["doc_to_text"] == theirs["doc_to_text"]
        assert ours["generation_kwargs"]["until"] == theirs["generation_kwargs"]["until"]
        assert ours.get("num_fewshot", 0) == theirs["num_fewshot"]


def test_what_a_model_is_given_to_read(sets, tmp_path, monkeypatch):
    """A chat's turn or plain text; MBPP's three worked examples before its question, in the form of the harness's."""
    written(tmp_path, protocol())
    given = {}
    for name in ("GSM8K", "MBPP", "HumanEval"):
        replies = Heard()
        monkeypatch.setattr(harness, "_model", lambda *about, replies=replies: canned(replies))
        monkeypatch.setattr(execution, "_execute", lambda *about: False)
        harness.evaluate(str(tmp_path / "data"), [protocol().columns[name]], harness.Answering("no folder"))
        given[name] = replies.asked
    assert given["GSM8K"] == [f"[INST] Question: {row['question']}\nAnswer: [/INST]" for row in SUMS[:2]]
    assert given["HumanEval"] == [FUNCTION["prompt"]]

    def question(row):
        tests = "\n".join(row["test_list"])
        return (
            f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these "
            f"tests:\n\n{tests}\n[BEGIN]\n"
        )

    shots = "".join(f"{question(row)}{row['code']}\n[DONE]\n\n" for row in PROGRAMS[:3])
    assert given["MBPP"] == [shots + question(row) for row in PROGRAMS[3:]]


class Heard(dict):
    """Replies nothing to whatever is asked, and remembers it in the order of the items."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __getitem__(self, text):
        self.asked.append(text)
        return ""


def test_columns_of_two_ways_of_asking_are_not_asked_together(sets, tmp_path, model):
    written(tmp_path, protocol())
    two = [protocol().columns[name] for name in ("GSM8K", "HumanEval")]
    with pytest.raises(UserError, match="as a chat and as plain text cannot be asked together"):
        client.evaluate(tmp_path / "data", two, model)
