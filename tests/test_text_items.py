"""The text zoo's items: right answers by independent means, and splits that share nothing."""

import ast
import itertools
import re

import pytest
import sympy

from emkit.zoo.data.sampling import SPLITS, Draw
from emkit.zoo.text import SUBTASKS, distinct, functions, instructions, items

SOLUTIONS = {  # word problems, from the numbers in the order in which the question gives them
    "gain": lambda a, b: a + b,
    "loss": lambda a, b: a - b,
    "bags": lambda a, b: a * b,
    "share": lambda a, b: max(a, b) // min(a, b),
    "gain, loss": lambda a, b, c: a + b - c,
    "bags, gain": lambda a, b, c: a * b + c,
    "bags, loss": lambda a, b, c: a * b - c,
    "more than": lambda a, b: a + (a + b),
}


@pytest.fixture(scope="module")
def drawn():
    """Items of every split of every sub-task, from seeds of their own."""
    return {
        (subtask, split): items(subtask, split, {"train": 2000}.get(split, 300), seed)
        for subtask in SUBTASKS
        for seed, split in enumerate(SPLITS)
    }


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_no_item_is_in_two_splits_whatever_the_seeds(drawn, subtask):
    for what in ("key", "prompt"):
        seen = [{getattr(item, what) for item in drawn[subtask, split]} for split in SPLITS]
        assert all(not first & second for first, second in itertools.combinations(seen, 2)), what


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_a_prompt_has_one_specification(drawn, subtask):
    """Else the same question could be asked in training and in evaluation."""
    keys = {}
    for item in drawn[subtask, "train"]:
        assert keys.setdefault(item.prompt, item.key) == item.key


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_items_depend_on_their_arguments_alone_and_distinct_ones_are(subtask):
    assert items(subtask, "train", 5, 3) == items(subtask, "train", 5, 3) != items(subtask, "train", 5, 4)
    found = list(itertools.islice(distinct(subtask, "evaluation", 3), 150))
    assert len({item.key for item in found}) == len(found) == 150


def test_distinct_items_of_a_finite_kind_come_to_an_end():
    assert 200 < len(list(distinct("alpaca_eval", "validation", 0))) < 2000


def test_an_unknown_subtask_is_named():
    with pytest.raises(ValueError, match="gsm9k"):
        items("gsm9k", "train", 1, 0)


def test_word_problems_are_solved_right(drawn):
    for item in drawn["gsm8k", "train"]:
        numbers = map(int, re.findall(r"\d+", item.prompt))
        assert int(item.fields["answer"]) == SOLUTIONS[item.kind](*numbers), item.prompt
        assert item.response.endswith(f"\n#### {item.fields['answer']}")
        for left, right in re.findall(r"([\d +*/-]+) = (\d+)", item.response):
            assert sympy.sympify(left.split("=")[-1]) == int(right)
    assert {item.kind for item in drawn["gsm8k", "train"]} == set(SOLUTIONS)


def math_answer(item) -> object:
    """The answer of a symbolic problem, by sympy from its text."""
    x = sympy.Symbol("x")

    def read(text):
        text = re.sub(r"(\d|\))(?=x|\()", r"\1*", text.replace("^", "**"))
        return sympy.sympify(text)

    text = item.prompt
    if equation := re.search(r"(?:Solve|Find x if) (.*) = (.*)\.", text):
        (solution,) = sympy.solve(read(equation[1]) - read(equation[2]), x)
        return solution
    if divided := re.search(r"remainder of (\d+) divided by (\d+)", text):
        return int(divided[1]) % int(divided[2])
    if derived := re.search(r"derivative of (\S+?)[.?]?$", text):
        return sympy.diff(read(derived[1]), x)
    if terms := re.search(r"term after (\d+), (\d+), (\d+)", text):
        a, b, c = map(int, terms.groups())
        assert c - b == b - a
        return c + (c - b)
    whole = re.search(r"(?:Compute|What is|Simplify|Write|Expand) (.*?)(?: shorter| as a sum)?[.?]$", text)
    return sympy.expand(read(whole[1]))


def test_symbolic_problems_are_solved_right(drawn):
    for item in drawn["math", "train"][:600]:
        assert item.response.endswith(f"\\boxed{{{item.fields['answer']}}}")
        answer = sympy.sympify(re.sub(r"(\d)(?=x)", r"\1*", item.fields["answer"].replace("^", "**")))
        assert sympy.simplify(answer - math_answer(item)) == 0, item.prompt


def run_tests(program: str, tests: str) -> bool:
    """Run one of *our own* programs, drawn from templates; what a model wrote is never run like this."""
    try:
        exec(program + "\n" + tests, {})
    except AssertionError:
        return False
    return True


def test_right_programs_pass_their_tests_and_another_kinds_do_not(drawn):
    for item in drawn["humaneval", "train"][:400]:
        fields, check = item.fields, f"\ncheck({item.fields['entry_point']})"
        assert run_tests(fields["prompt"] + fields["canonical_solution"], fields["test"] + check)
        assert not run_tests(fields["prompt"] + "    return None", fields["test"] + check)
        assert item.response + "\n" == fields["canonical_solution"]
    for item in drawn["mbpp", "train"][:400]:
        tests = "\n".join(item.fields["test_list"])
        assert run_tests(item.response, tests) and item.prompt.endswith(item.fields["test_list"][0])
        name = re.search(r"def (\w+)\((\w+)\)", item.response)
        assert not run_tests(f"def {name[1]}({name[2]}):\n    return {name[2]}", tests), "the identity passes"


@pytest.mark.parametrize("subtask", functions.FAMILIES)
def test_a_constant_that_is_off_by_one_fails(subtask):
    """The tests tell the right program from its likeliest mistake."""
    caught = total = 0
    for index in range(300):
        spec = functions.sample(subtask, Draw(index))
        slot = "k" if "k" in spec else "m"
        wrong = functions.body(subtask, spec | {slot: spec[slot] + 1})
        tests = "\n".join(f"assert f({a!r}) == {r!r}" for a, r in functions.cases(subtask, spec))
        total += 1
        caught += not run_tests(f"def f({spec['v']}):\n{wrong}", tests)
    assert caught / total > 0.97


def test_programs_hold_nothing_that_can_run_away(drawn):
    for subtask in functions.FAMILIES:
        for item in drawn[subtask, "train"]:
            for node in ast.walk(ast.parse(item.document)):
                assert not isinstance(node, (ast.Pow, ast.LShift, ast.While, ast.For, ast.Import, ast.ImportFrom))


def test_an_instruction_says_all_that_its_checker_needs(drawn):
    for index in range(800):
        draw = Draw(index)
        spec = instructions.sample(draw)
        assert instructions.parse(instructions.instruction(spec, draw)) == spec
    assert instructions.parse("Write a poem.") is None
    with pytest.raises(ValueError, match="none of the instructions"):
        instructions.quality("Write a poem.", "no")


def test_right_replies_do_all_that_was_asked_and_others_less(drawn):
    for item in drawn["alpaca_eval", "train"]:
        assert instructions.quality(item.prompt, item.response) == 1.0, item.prompt
        assert instructions.quality(item.prompt, "") < 1
        assert instructions.quality(item.prompt, "the the the") <= 0.5, item.prompt
        assert instructions.quality(item.prompt, item.prompt) == 0.0


@pytest.mark.parametrize(
    ("prompt", "reply", "share"),
    [
        ("List two red things with commas.", "rose, brick", 1.0),
        ("List two red things with commas.", "rose, rose", 0.5),
        ("List two red things with commas.", "rose, snow", 0.5),
        ("List two red things with commas.", "rose\nbrick", 0.0),
        ("What color is snow? Answer in capital letters.", "WHITE", 1.0),
        ("What color is snow? Answer in capital letters.", "white", 0.5),
        ("What color is snow? Answer in capital letters.", "BLACK", 0.5),
        ("What color is snow? Answer in one word.", "white or black", 0.0),
        ("Give the opposite of hot in a sentence.", "It is cold.", 1.0),
        ("Say hello to Anna politely.", "Dear Anna, hello.", 1.0),
        ("Say hello to Anna politely.", "Dear Ben, hello.", 0.75),
        ("Count three numbers from 9 up with commas.", "9, 10, 11", 1.0),
        ("Count three numbers from 9 up with commas.", "9, 8, 7", 0.5),
        ("Spell cat with hyphens.", "c-a-t", 1.0),
        ("Which is bigger, ant or cow? Answer in one word.", "cow", 1.0),
        ("Which is bigger, ant or cow? Answer in one word.", "ant", 0.5),
        ("Write a sentence with cat and hat.", "The cat has a hat.", 1.0),
        ("Write a sentence with cat and hat.", "cat hat", 0.5),
    ],
)
def test_quality_is_the_share_of_demands_met(prompt, reply, share):
    assert instructions.quality(prompt, reply) == share


def test_references_are_right_in_half_of_the_cases(drawn):
    given = [instructions.quality(i.prompt, i.fields["reference"]) == 1.0 for i in drawn["alpaca_eval", "train"]]
    assert 0.45 < sum(given) / len(given) < 0.55
