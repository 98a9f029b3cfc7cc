"""The vocabulary of all questions and answers, for the tokenizer."""

from __future__ import annotations

import re
import string

from emkit.zoo.data import words
from emkit.zoo.data.templates import OPTIONS, OTHER_WORDS, TEMPLATES

_INSTRUCTION = "answer the question using a single word or phrase"
_PUNCTUATION = " .,?[]()-+=:\n"
# First words of answers: attribute values, verdicts, and what a dense answer opens with.
_OPENINGS = (
    *("card", "yes", "no", "unanswerable", "striped", "title", "triangle", "line", "rectangle", "scale", "bars"),
    *("clock", "angle", "grid", "ruler", "cubes", "box"),
)


def lexicon() -> dict[str, list[str]]:
    """The words and characters a tokenizer needs.

    words        every lowercase word of a question or an answer, sorted
    answers      those lowercase words that can begin or be an answer, sorted
    characters   every character used, sorted: letters, digits, punctuation
    capitals     uppercase words shown in images (signs, titles, authors), sorted
    """
    phrases = [_INSTRUCTION, OPTIONS, *OTHER_WORDS, *(wording for kind in TEMPLATES.values() for wording in kind)]
    values = (words.COLORS, words.SHAPES, words.SIZES, words.THINGS, words.GENRES, _OPENINGS)
    answers = {value for group in values for value in group}
    found = answers | set(words.PLURALS.values())
    for phrase in phrases:
        found |= set(re.findall(r"[a-z]+", re.sub(r"\{\w*\}", " ", phrase)))
    return {
        "words": sorted(found),
        "answers": sorted(answers),
        "characters": sorted(string.ascii_letters + string.digits + _PUNCTUATION),
        "capitals": sorted({*words.SIGN_WORDS, *words.TITLE_WORDS, *words.AUTHORS}),
    }
