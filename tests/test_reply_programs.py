"""Programs and answers in replies of many forms; expected values by hand or from the installed packages."""

import ast
import itertools
import json
import math
import sys

import pytest

from eval.alpaca import harness as alpaca
from eval.judge import rules
from eval.lm import programs, scoring
from eval.vlm import patches
from eval.workers.text import whole

FENCE = "`" * 3
ADD = "def add(a, b):\n    return a + b\n"
PROMPT = 'import math\n\ndef helper(x):\n    return x + 1\n\ndef f(x):\n    """Sum."""\n'
BODY = "    t = 0\n    for i in range(x):\n        t += i\n    return t\n"


def same(found: str, expected: str) -> bool:
    return ast.dump(ast.parse(found)) == ast.dump(ast.parse(expected))


@pytest.mark.parametrize("mark", [FENCE, "~~~", "````"])
@pytest.mark.parametrize("tag", ["", "python", " Python", "py ", "PYTHON3", "python title"])
@pytest.mark.parametrize("indent", ["", "   "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_fence_of_any_form_is_taken_off(mark, tag, indent, end):
    lines = [f"{mark}{tag}", *ADD.splitlines(), mark]
    for shown in (lines, lines[:-1], [*lines, "It adds."]):
        reply = "1. So:\n" + end.join(indent + line for line in shown)
        if shown[-1] == "It adds.":
            reply = reply.replace(indent + "It adds.", "It adds.")
        (found,) = scoring.written_programs([[reply]], [{"test_list": ["assert add(1, 2) == 3"]}])
        assert same(found, ADD)


@pytest.mark.parametrize(
    "reply",
    [
        ADD + FENCE,
        f"Here it is:\n\n{ADD}\nDone",
        f"{ADD}\nNote: done",
        f"{FENCE}\nadd(1, 2)\n{FENCE}\n{FENCE}\n{ADD}{FENCE}\n{FENCE}\nprint(add(1, 2))\n{FENCE}",
        f"{FENCE}\ndef add(a, b):\n    return a\n{FENCE}\nbetter\n{FENCE}\n{ADD}{FENCE}",
        f"{ADD}\nUse it so:\n{FENCE}\nadd(1, 2)\n{FENCE}",
    ],
)
def test_the_piece_that_defines_what_is_wanted_is_chosen(reply):
    (found,) = scoring.written_programs([[reply]], [{"test_list": ["assert add(1, 2) == 3"]}])
    assert same(found, ADD)


def test_a_helper_of_an_earlier_fence_comes_along():
    helper, function = "import re\ndef one():\n    return re.I\n", "def add(a):\n    return one()\n"
    reply = f"{FENCE}\n{helper}one()\n{FENCE}\n{FENCE}\n{function}{FENCE}"
    (found,) = scoring.written_programs([[reply]], [{"test_list": ["assert add(1)"]}])
    assert same(found, helper + function)


@pytest.mark.parametrize(
    "reply",
    [
        BODY,
        BODY.lstrip(),
        "\n".join(line[4:] for line in BODY.split("\n")),
        f"{FENCE}python\n{BODY}{FENCE}",
        f"The body:\n\n{BODY}\nIt sums.",
        "\n\n" + BODY,
    ],
)
def test_a_body_of_any_indentation_completes_the_prompt(reply):
    (found,) = scoring.completed_programs([[reply]], [{"prompt": PROMPT, "entry_point": "f"}])
    assert same(found, PROMPT + BODY)


@pytest.mark.parametrize("before", ["", "import re\n\n", "def g(x):\n    return x\n\n"])
@pytest.mark.parametrize("around", ["{}", FENCE + "python\n{}" + FENCE, "Here:\n\n{}\nIt sums.", "{}\n" + FENCE])
def test_a_whole_function_keeps_the_prompts_helpers(before, around):
    function = before + "def f(x):\n    return helper(math.floor(x))\n"
    (found,) = scoring.completed_programs([[around.format(function)]], [{"prompt": PROMPT, "entry_point": "f"}])
    assert same(found, PROMPT[: PROMPT.index("def f")] + function)


def test_a_program_that_is_none_stays_none():
    assert programs.completed(PROMPT, "I cannot do that.") is None
    assert programs.whole("def add(a, b:\n    return a", ["add"]) is None
    assert programs.whole("", ["add"]) is None and programs.completed(PROMPT, "") is None


NUMBERS = ["5", "-5", "5.", "5.0", "70,000", "70000", "$5", "5.5", "5,", ".", "**5**", "05", "−5"]
FORMS = [
    "#### {}",
    "####{}",
    "####  {}",
    "a\n#### {}\nb",
    "#### 4\n#### {}",
    "#### {}\n#### 4",
    "{}",
    "#### {} dollars.",
]


def test_a_word_problem_is_read_as_the_installed_harness_reads_it():
    import importlib.util
    from pathlib import Path

    import yaml
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    home = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0])
    task = yaml.safe_load((home / "tasks/gsm8k/gsm8k.yaml").read_text())
    reader = RegexFilter(task["filter_list"][0]["filter"][0]["regex_pattern"])
    options = {k: v for k, v in task["metric_list"][0].items() if k.startswith(("regexes", "ignore"))}
    seen = set()
    for gold, number, form in itertools.product(["#### 5", "so\n#### 70,000", "#### -5"], NUMBERS, FORMS):
        reply = form.format(number)
        ((read,),) = reader.apply([[reply]], [{}])
        right = float(exact_match_hf_evaluate(predictions=[read], references=[gold], **options)["exact_match"])
        assert scoring.final_number([gold], [reply]) == right, (gold, reply)
        seen.add(right)
    assert seen == {0.0, 1.0}


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ("1/2", r"\frac{1}{2}"), ("0.5", r"\dfrac12"), (r"\left( 1, 2 \right)", "(1,2)"), (r"\text{red}", "red"),
        (r"5\text{ cm}", "5"), (r"50\%", "50"), (r"90^\circ", "90"), ("1,000", "1000"), ("1{,}000", "1000"),
        ("$5$.", "5"), ("−3", "-3"), ("–3", "-3"), (r"\{2, 1\}", r"\{1,2\}"), ("x = 5", "5"), ("3x+x^{2}", "x^2 + 3x"),
        (r"(\frac{1}{2}, 3)", "(0.5,3)"), (r"2 \cdot x", "2x"), ("5.0", "5"),
    ],
)  # fmt: skip
def test_equal_answers_are_equal(given, reference):
    assert scoring.boxed_answer([reference], [rf"so \boxed{{1}}, no, $\boxed{{{given}}}$."]) == 1.0


@pytest.mark.parametrize(
    ("given", "reference"),
    [("1/3", "0.33"), ("(2,1)", "(1,2)"), ("[1,2]", "(1,2)"), ("-3", "3"), ("x^2", "2x"), ("red", "der"), ("", "5"),
     ("5", "(5,5)"), ("12", "1,2"), ("x2", "2x"), ("9**9**9", "9")],
)  # fmt: skip
def test_other_answers_are_other(given, reference):
    assert scoring.boxed_answer([reference], [rf"\boxed{{{given}}}"]) == 0.0


def test_the_last_box_of_any_kind_is_read():
    cases = {r"\boxed{\frac{1}{2}}": r"\frac{1}{2}", r"\boxed 5": "5", r"$\boxed 5$": "5", r"\fbox{7}": "7"}
    cases |= {r"\boxed{1} \fbox{2}": "2", r"\boxed{\{1\}}": r"\{1\}", r"\boxed{1": None, "1": None}
    assert {text: scoring.box_of(text) for text in cases} == cases


def test_the_rule_judge_reads_the_minus_sign():
    assert rules.extract("how much", "The answer is −3") == rules.extract("how much", "It is –3.") == "-3"
    assert rules.extract("give both as a python list", "The answer is [−1, 2]") == "[-1, 2]"


def test_free_answers_of_mathvista_against_the_stock_rule():
    def stock(line, prefetch=False):
        return "asked", dict(line)["res"], prefetch

    check = patches.free_answers(stock)
    line = {"question_type": "free_form", "answer_type": "list", "answer": "[2, 4]", "prediction": "so", "res": "[2,4]"}
    assert check(line) is True and check(line, True) is False and check({**line, "res": "[4, 2]"}) is False
    assert check({**line, "prediction": "[2, 4]"}, prefetch=True) == "[2, 4]"
    text = {**line, "answer_type": "text", "answer": "red", "res": "red"}
    assert check(text) is True and check({**text, "res": "None"}) is False
    assert check({**line, "answer_type": "integer", "res": "−5"}) == ("asked", "-5", False)
    assert check({**line, "question_type": "multi_choice", "res": "−A"}, True) == ("asked", "−A", True)


def test_a_preference_counts_as_in_the_package():
    from alpaca_eval.metrics import get_winrate

    preferences = [0, 1, 1.5, 2, 1.25, 1.99, 0.0, 3, None, math.nan]
    made = [{"instruction": str(at), "preference": preference} for at, preference in enumerate(preferences)]
    scores = [score for score in alpaca._scores(made).values() if score is not None]
    package = get_winrate([one | {"preference": math.nan} if one["preference"] is None else one for one in made])
    assert 100 * sum(scores) / len(scores) == pytest.approx(package["win_rate"]) and len(scores) == package["n_total"]
    assert alpaca._scores(made[:1]) == {"0": 0.5}


def test_half_a_sign_is_replaced_and_can_be_written(tmp_path):
    from emkit.files import read_json, sha256_json, write_json

    assert whole("no\ud83d") == "no\ufffd" and whole("\ud83d\ude00") == "\U0001f600" and whole("é\x00\n") == "é\x00\n"
    write_json(tmp_path / "a.json", {"a": "no\ud83d"})
    assert read_json(tmp_path / "a.json") == {"a": "no\ud83d"} and len(sha256_json("\ud83d")) == 64
    assert json.loads(whole(json.dumps({"a": 'x"\ud83d'}, ensure_ascii=False))) == {"a": 'x"\ufffd'}
    assert scoring.final_number(["#### 5"], ["#### 5\ud83d"]) == 1.0 and sys.getdefaultencoding() == "utf-8"
