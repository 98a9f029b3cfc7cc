"""Programs that a model wrote, from the harness's samples to the sandbox: what passes, and what cannot be forged."""

import pytest
from test_lm_harness import canned
from text_benchmarks import asked, column, right, write

from emkit.errors import UserError
from eval import sandbox
from eval.items import lines
from eval.lm import execution, harness, scoring

CODE = ("HumanEval", "MBPP")

# a reply's reading of its own answers costs the checking process more time than it has: keys that all hash to 0
FLOOD = """
class Flood(dict):
    def items(self):
        return ((key * (2**61 - 1), 0) for key in range(1, 35000))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    write("validation", folder, dict.fromkeys(CODE, 6))
    return folder


def scores(data, name: str, replies: list[str], monkeypatch) -> list[float]:
    """Each item's score, by the real harness and sandbox, when item i is answered with ``replies[i]``."""
    rows = lines.rows(data, column(name))
    given = {f"[INST] {asked(name, row)} [/INST]": reply for row, reply in zip(rows, replies, strict=True)}
    monkeypatch.setattr(harness, "_model", lambda *arguments: canned(given))
    monkeypatch.setattr(execution, "_execute", execution.sandbox(cpu_seconds=1))
    found = harness.evaluate(str(data), [column(name)], harness.Answering("no folder"))[name]
    assert found["n"] == len(rows)
    return [item["score"] for item in found["items"]]


@pytest.mark.parametrize("name", CODE)
def test_right_programs_pass_and_wrong_ones_do_not(data, name, monkeypatch):
    rows = lines.rows(data, column(name))
    replies = [right(name, row) for row in rows]
    replies[1] = "return None" if name == "HumanEval" else replies[1].replace("return", "return None #")
    replies[3] = "```python\n" + replies[3] + "\n```\nas asked"
    replies[4] = "this is no program"
    replies[5] = "while True:\n        pass" if name == "HumanEval" else "while True:\n    pass"
    assert scores(data, name, replies, monkeypatch) == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_a_completion_cannot_forge_its_verdict(data, monkeypatch):
    """Each tries to be taken for right without computing anything."""
    heads = [row["prompt"].splitlines()[0] for row in lines.rows(data, column("HumanEval"))]
    replies = [
        "return 0\nimport sys\nsys.exit(0)",
        "return 0\ndef check(candidate):\n    pass",
        f"return 0\nimport __main__\n__main__.check = lambda c: True\n{heads[2]}\n    return 0",
        "class Same:\n        def __eq__(self, other):\n            return True\n    return Same()",
        'return 0\nimport os\nos.write(1, b\'["passed", ""]\')\nos._exit(0)',
        "return 0\nimport builtins\nbuiltins.AssertionError = StopIteration",
    ]
    assert scores(data, "HumanEval", replies, monkeypatch) == [0.0] * 6


def test_the_prompt_is_the_benchmarks_own_whatever_a_reply_makes_of_it(monkeypatch):
    """HumanEval/32 and kin: the tests call a function that the prompt defines beside the one to be completed."""
    helper = "def double(x):\n    return 2 * x\n\n"
    doc = {
        "prompt": f'{helper}def half(x):\n    """Return half of x."""\n',
        "test": "def check(candidate):\n    assert double(candidate(8)) == 8\n",
        "entry_point": "half",
    }
    monkeypatch.setattr(execution, "_execute", execution.sandbox(cpu_seconds=1))

    def score(reply: str) -> float:
        program = scoring.completed_programs([[reply]], [doc])[0]
        return scoring.completion_passes(doc, [program])["pass_at_1"]

    assert score("return x // 2") == 1.0
    assert score("return None") == 0.0
    assert score("return 3\n\ndef double(x):\n    return 8") == 0.0, "another helper is not the prompt's"
    assert score("pass") == 0.0, "the prompt's own function answers nothing"


@pytest.mark.parametrize("name", CODE)
def test_a_program_that_keeps_the_sandbox_from_a_verdict_fails_its_item_alone(data, name, monkeypatch):
    rows = lines.rows(data, column(name))
    replies = [right(name, row) for row in rows]
    tests = rows[2].get("test_list")
    if name == "HumanEval":
        replies[2] = f"return Flood()\n{FLOOD}"
    else:
        replies[2] = f"{FLOOD}\ndef {tests[0].split()[1].split('(')[0]}(x):\n    return Flood()"
        found = sandbox.run(replies[2], "\n".join(tests), sandbox.Limits(cpu_seconds=1))
        assert found.status == "broken", "or this test shows nothing"
    assert scores(data, name, replies, monkeypatch) == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]


def test_a_sandbox_that_gives_no_program_a_verdict_is_an_error(monkeypatch):
    given = execution.sandbox()
    monkeypatch.setattr(sandbox, "run", lambda *arguments: sandbox.Result("broken", "no verdict (exit status 1)"))
    with pytest.raises(UserError, match="no verdict on a sound program either: no verdict"):
        given("def f():\n    return 1\n", "assert f() == 1", "", None)


def test_a_verdict_that_was_lost_once_is_asked_for_again(monkeypatch):
    """A checking process that the system killed, say: the program did nothing."""
    given, verdicts = execution.sandbox(), []
    run = sandbox.run

    def lossy(*arguments):
        verdicts.append(run(*arguments) if verdicts else sandbox.Result("broken"))
        return verdicts[-1]

    monkeypatch.setattr(sandbox, "run", lossy)
    program = "def f():\n    return 1\n"
    assert given(program, "assert f() == 1", "", None)
    assert [verdict.status for verdict in verdicts] == ["broken", "passed", "passed"]
    assert given(program, "assert f() == 1", "", None) and len(verdicts) == 3, "the verdict is kept"
    assert not given(program, "assert f() == 2", "", None) and not given(
        "def f():\n    return 2\n", "assert f() == 1", "", None
    )
    assert len(verdicts) == 5, "of this program on these tests alone"
    endless = execution.sandbox(cpu_seconds=1)
    assert not any(endless("while True:\n    pass\n", "f()", "", None) for _ in range(2)) and len(verdicts) == 7
