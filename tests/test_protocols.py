"""Named ways of asking: MergeLM's prompts and readings by hand-made replies, and which way is nearest to the paper."""

import copy
import json

import own_models as own
import pytest
import yaml
from small_plan import ROOT, write
from text_benchmarks import TEXT, said

from emkit.errors import UserError
from emkit.files import write_json
from eval import columns, protocols, scores
from eval.alpaca import asking as alpaca_asking
from eval.alpaca import client as alpaca
from eval.lm import client, mergelm
from eval.places import EVALUATION
from eval.plan import Plan

INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
CODE = INTRO + "\n\n\n### Instruction:\nCreate a Python script for this problem:\n{}\n\n### Response:"


def named(profile="paper"):
    return columns.protocol(profile, "mistral", TEXT, said(profile, "mistral") | {"named": "mergelm"}, "here").columns


# ---- what is asked
MATHS = INTRO + "\n\n### Instruction:\n{}\n\n### Response: Let's think step by step."
SPACED = {"prompt": 'def f(x):\n    """Twice."""\n', "canonical_solution": "    return 2 * x", "test": ""}
ADDED = {
    "task_id": 12,
    "text": "Add    two.",
    "code": "",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
}
ITEMS = {
    "GSM8K": ({"question": "2 + 2?", "answer": "It is 4.\n#### 4"}, MATHS.format("2 + 2?")),
    "MATH": ({"problem": "$1+1$", "solution": r"\boxed{2}"}, MATHS.format("$1+1$")),
    "HumanEval": (SPACED | {"entry_point": "f"}, CODE.format('def f(x):\n\t"""Twice."""\n')),
    "MBPP": (
        ADDED,
        CODE.format("\nAdd\ttwo.\nTest examples:\nassert add(1, 2) == 3\nassert add(0, 0) == 0"),
    ),
}


def test_questions_are_those_of_mergelm(tmp_path):
    found = named()
    for name, (item, text) in ITEMS.items():
        column = found[name].model_copy(update={"hub": None, "items": "here", "n": 1})
        write_json_line(tmp_path / column.file, item)
        assert client.prompts(tmp_path, column) == [("0", text)], name
    long = {**ITEMS["MBPP"][0], "task_id": 493}
    column = found["MBPP"].model_copy(update={"hub": None, "items": "here", "n": 1})
    write_json_line(tmp_path / column.file, long)
    ((_, text),) = client.prompts(tmp_path, column)
    assert "Test examples:\ncalculate_polygons(startx, starty, endx, endy, radius)\n\n### Response:" in text
    del long["task_id"]  # a drawn item has none
    write_json_line(tmp_path / column.file, long)
    assert client.prompts(tmp_path, column)[0][1] == ITEMS["MBPP"][1]
    client._service(tmp_path).socket_path.unlink(missing_ok=True)


def write_json_line(path, item):
    path.write_text(json.dumps(item) + "\n", encoding="utf-8")


def test_an_instruction_is_put_as_plain_text_where_the_column_says_so(tmp_path):
    column = named()["AlpacaEval"]
    write_json_line(tmp_path / column.file, {"index": "a", "instruction": "Say {instruction} twice."})
    (prompt,) = alpaca.prompts(tmp_path, column)
    assert prompt.text.endswith("questions. USER: Say {instruction} twice. ASSISTANT:") and not column.chat
    usual = columns.load("AlpacaEval", "mistral", "paper", {"subtask": None, "seed": None})
    assert alpaca.prompts(tmp_path, usual)[0].text == "Say {instruction} twice." and usual.chat


def test_without_its_template_a_tokenizer_asks_plainly_and_the_one_given_stays(tmp_path):
    from transformers import AutoTokenizer

    from emkit import backbones

    home = own.write_models(tmp_path / "models")
    tokenizer, backbone = AutoTokenizer.from_pretrained(home / "math"), backbones.get("causal_lm")
    before = tokenizer.chat_template
    plain = alpaca_asking.untemplated(tokenizer)
    assert backbone.prompt_ids(plain, "Tell math") == tokenizer("Tell math")["input_ids"]
    assert tokenizer.chat_template == before is not None
    assert backbone.prompt_ids(tokenizer, "Tell math") != tokenizer("Tell math")["input_ids"]


# ---- what is read in a reply
@pytest.mark.parametrize(
    ("reply", "reference", "right"),
    [
        ("So 4. The answer is: 4", "4", True),
        ("The answer is: $1,234.", "1,234", True),
        ("The answer is: 3. No. The answer is: 4 apples, not 5", "4", True),  # the last time, the first number
        ("The answer is: 7/2", "4", True),  # rounded, to even
        ("The answer is: 6/0", "6", True),
        ("The answer is: -3", "-3", True),
        ("The answer is: 3.6", "4", True),
        ("The answer is 4", "4", False),  # without the colon it says nothing
        ("#### 4", "4", False),
        ("The answer is: four", "4", False),
        ("The answer is: /7", "7", False),
        ("", "4", False),
    ],
)
def test_a_stated_number(reply, reference, right):
    assert mergelm.stated_number([reference], [reply]) == float(right)


@pytest.mark.parametrize(
    ("reply", "reference", "right"),
    [
        (r"The answer is: \frac{1}{2}.", r"\frac{1}{2}", True),
        ("The answer is: x = 5.\nThat was easy.", "5", True),
        ("The answer is: 4. The answer is: 5", "5", True),
        (r"\boxed{5}", "5", False),
        ("The answer is: ", "", False),
    ],
)
def test_a_stated_formula(reply, reference, right):
    assert mergelm.stated_formula([reference], [reply]) == float(right)


FUNCTION = "def f(x):\n    return 2 * x"


@pytest.mark.parametrize(
    "reply",
    [
        FUNCTION,
        FUNCTION.replace("    ", "\t"),
        f"Here it is:\n```python\n{FUNCTION}\n```\nIt doubles.",
        f'{FUNCTION}\n\nif __name__ == "__main__":\n    print(f(2))',
        f"{FUNCTION}\n\n# Example usage\nprint(f(2))",
        f"The solution is:\n{FUNCTION}\n\nThe answer is: 4",
        f"```python\n{FUNCTION}\n```\n```python\nprint(f(2))\n```",
        f"def g():\n    pass\n\n### Instruction:\nAgain.\n\n### Response:\n{FUNCTION}",  # it goes on by itself
    ],
)
def test_the_code_in_a_reply(reply):
    assert mergelm.code(reply, "```") == FUNCTION + "\n"


def test_a_program_follows_its_prompt_or_stands_alone():
    doc = {"prompt": 'def f(x):\n    """Twice."""\n'}
    (made,) = mergelm.completed_programs([[FUNCTION]], [doc])
    space: dict = {}
    exec(made, space)
    assert space["f"](3) == 6
    reply = f"```python\n{FUNCTION}\n# Test examples\nassert f(1) == 2\n```"
    assert mergelm.written_programs([[reply]], [doc]) == [FUNCTION + "\n"]


# ---- which is taken
def test_a_profile_names_the_way_of_asking_and_none_is_the_usual():
    usual = columns.protocol("paper", "mistral", TEXT, said("paper", "mistral"), "here").columns
    for name, column in named().items():
        assert column.protocol.startswith("mergelm-") and not column.chat
        assert (column.hub, column.n, column.judge) == (usual[name].hub, usual[name].n, usual[name].judge)
        assert column.asked() != usual[name].asked()
    with pytest.raises(UserError, match=r"here\.named.*no column has the protocol 'mergeln'.*mergelm"):
        columns.protocol("paper", "mistral", TEXT, said("paper", "mistral") | {"named": "mergeln"}, "here")


def test_the_usual_way_is_the_usual_one_also_where_the_profile_names_another(tmp_path):
    profile = yaml.safe_load((ROOT / "eval/profiles/smoke/mistral.yaml").read_text())
    profile["protocol"]["named"] = "mergelm"
    paths = write(tmp_path, yaml.safe_load((ROOT / "eval/tables/table3.yaml").read_text()), profile)
    plan = Plan(*paths, tmp_path / "results")
    found = {name: protocols.of(plan, name).protocol.columns["GSM8K"].protocol for name in ("usual", "mergelm")}
    assert found == {"usual": "gsm8k-chat-0shot", "mergelm": "mergelm-gsm8k"}


def test_the_nearest_way_of_asking_is_found_by_the_rows_that_nobody_merged(tmp_path, monkeypatch):
    table = yaml.safe_load((ROOT / "eval/tables/table3.yaml").read_text())
    profile = yaml.safe_load((ROOT / "eval/profiles/smoke/mistral.yaml").read_text())
    paths = write(tmp_path, table, copy.deepcopy(profile))
    plan = Plan(*paths, tmp_path / "results")
    offsets = {"usual": 8.0, "mergelm": 3.0}
    seen = {}

    def reproduce(plans, jobs, snakemake):
        """In place of hours on a GPU: cells as far from the published ones as ``offsets`` say."""
        for one in plans:
            name = one.profile.name.rpartition(".")[2]
            seen[name] = one
            write_json(one.manifest(EVALUATION), {"benchmarks": {b: {"sha256": b} for b in one.benchmarks}})
            labels = {row.id: row.label for row in one.table.rows}
            theirs = protocols.published(one.table)
            for job in one.jobs:
                for benchmark in one.benchmarks:
                    wanted = theirs[labels[job.row]][benchmark] + offsets[name]
                    items = [{"index": str(i), "prediction": "", "score": wanted / 100, "groups": []} for i in range(4)]
                    about = one.expected(job, benchmark) | {"row": job.row, "seed": job.seed, "benchmark": benchmark}
                    scores.write_scored(one.cell(job, benchmark), items, **about)
        return 0

    monkeypatch.setattr(protocols.pipeline, "reproduce", reproduce)
    lines: list[str] = []
    monkeypatch.setattr("builtins.print", lambda text, **more: lines.extend(text.splitlines()))
    assert protocols.compare(str(plan.path), str(plan.profile_path), str(tmp_path / "results"), 1) == 0
    assert seen["mergelm"].protocol.columns["GSM8K"].protocol == "mergelm-gsm8k"
    assert seen["usual"].protocol.columns["GSM8K"].protocol == "gsm8k-chat-0shot"
    assert {job.row for job in seen["usual"].jobs} == {"base", "chat", "math", "code"}
    assert seen["usual"].cell(seen["usual"].jobs[0], "MATH") != seen["mergelm"].cell(seen["mergelm"].jobs[0], "MATH")
    assert lines[-3:-1] == [
        "usual: 8.0 points from the published scores, over 20 of them",
        "mergelm: 3.0 points from the published scores, over 20 of them",
    ]
    assert lines[-1].startswith("nearest: mergelm")
    assert any(line.split()[:3] == ["Mistral-7B-v0.1", "published", "4.87"] for line in lines)


def test_a_table_without_another_way_of_asking_says_so(tmp_path):
    with pytest.raises(UserError, match="has a protocol but the usual one: there is nothing to compare"):
        protocols.compare("table1", "paper", str(tmp_path), 1)
