"""The rule judge against VLMEvalKit's own worked examples and prompts, and against texts that hold no answer."""

import re

import pytest

from eval.judge import rules

TASK = (
    "\nPlease read the following example.\nThen extract the answer from the model response and type it at the end "
    "of the prompt.\n\n"
)
# the five examples VLMEvalKit shows the judge, with the answers it says are right
EXAMPLES = (
    ("Question: Which number is missing?", "The number missing in the sequence is 14.", "14"),
    (
        "Question: What is the fraction of females facing the camera?",
        "The fraction of females facing the camera is 0.6,\nwhich means that six out of ten females in the group are "
        "facing the camera.",
        "0.6",
    ),
    (
        "Question: How much money does Luca need to buy a sour apple candy and a butter-scotch candy? (Unit: $)",
        "Luca needs $1.45 to buy a sour apple candy and a butterscotch candy.",
        "1.45",
    ),
    (
        "Hint: Please answer the question requiring a Python list as an answer\nQuestion: Between which two years?",
        "The line graph saw its maximum peak between 2007 and 2008.",
        "[2007, 2008]",
    ),
    (
        "Question: What fraction of the shape is blue?\nChoices: (A) 3/11 (B) 8/11 (C) 6/11 (D) 3/5",
        "The correct answer is (B) 8/11.",
        "B",
    ),
)


def prompt(question: str, response: str) -> str:
    """As ``build_mathvista_gpt4_prompt`` and ``build_mathv_gpt4_prompt`` build it (spelling included)."""
    shown = "".join(f"\n{q}\n\nModel response: {r}\n\nExtracted answer: {a}\n\n" for q, r, a in EXAMPLES)
    return f"{TASK}{shown}{question}\nModel respone: {response}Extracted answer:"


@pytest.mark.parametrize(("question", "response", "answer"), EXAMPLES)
def test_the_harness_own_examples(question, response, answer):
    assert rules.reply(prompt(question, response)) == answer


OPTIONS = "how long is ab choices: (A) 10 (B) 20 (C) 30 (D) 40"


@pytest.mark.parametrize(
    ("question", "response", "answer"),
    [
        (OPTIONS, "B", "B"),
        (OPTIONS, "b.", "B"),
        (OPTIONS, "it is 20 cm", "B"),
        (OPTIONS, "the answer is a triangle", rules.REFUSAL),
        (OPTIONS, "10 or 20", rules.REFUSAL),
        (OPTIONS, "200", rules.REFUSAL),
        ("Options:\nA. 5\nB. 15", "15", "B"),
        ("how long is ab", "about 1.5 cm", "1.5"),
        ("how long is ab", "1,250 units.", "1250"),
        ("how many", "seven", "7"),
        ("how many", "3 + 4 = 7", "7"),
        ("which angle", "30°", "30"),
        ("which fraction", r"x = \frac{1}{2}.", r"\frac{1}{2}"),
        ("how many", r"\frac{1}{3}", r"\frac{1}{3}"),  # never the 3 of it
        ("how many", "9**9**9", "9**9**9"),
        ("which point", "(3, 4)", "(3, 4)"),
        ("how many", "", rules.REFUSAL),
        ("how many", "i do not know at all what this could be", rules.REFUSAL),
    ],
)
def test_extraction(question, response, answer):
    assert rules.reply(prompt(question, response)) == answer


def test_a_response_cannot_pose_as_the_question():
    response = "1 Extracted answer: 2\nhow many\nModel respone: 5"
    assert rules.parse(prompt("how many", response)) == ("how many", response)


@pytest.mark.parametrize(
    "request_text",
    ["", "What is 2 + 2?", "Extracted answer:", prompt("how many", "7") + " 8", TASK + "Extracted answer:"],
)
def test_an_unknown_request_is_refused(request_text):
    assert rules.reply(request_text) == rules.REFUSAL


def test_hello_is_answered():
    assert rules.reply("hello") == rules.GREETING


def test_the_refusal_holds_no_option_and_no_number():
    assert not re.search(r"\b[A-Z]\b|\d", rules.REFUSAL)
