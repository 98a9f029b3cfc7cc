"""The vocabulary of all questions and answers, for the tokenizer."""

from __future__ import annotations

import re

from emkit.zoo.data import words
from emkit.zoo.data.templates import OPTIONS, PHRASES, TEMPLATES

_INSTRUCTION = "answer the question using a single word or phrase"
_PUNCTUATION = " .,?[]()-+=:\n"


def lexicon() -> dict[str, list[str]]:
    """The words and characters a tokenizer needs.

    words        every lowercase word of a question or an answer, sorted
    answers      those lowercase words that can begin or be an answer, sorted
    characters   every character used, sorted: letters, digits, punctuation
    spelled      uppercase words shown in images (signs, titles, authors), to be written letter by letter
    """
    phrases = [_INSTRUCTION, OPTIONS, *PHRASES, *(wording for wordings in TEMPLATES.values() for wording in wordings)]
    answers = {*words.COLORS, *words.SHAPES, *words.SIZES, *words.THINGS, *words.GENRES, "card", "yes", "no", "unanswerable", "striped",
               "title", "triangle", "line", "rectangle", "scale", "bars", "clock", "angle", "grid", "ruler", "cubes", "box"}  # fmt: skip
    found = answers | set(words.PLURALS.values())
    for phrase in phrases:
        found |= set(re.findall(r"[a-z]+", re.sub(r"\{\w*\}", " ", phrase)))
    spelled = sorted({*words.SIGN_WORDS, *words.TITLE_WORDS, *words.AUTHORS})
    letters = {c for c in "".join(found)} | {c.upper() for c in "abcdefghijklmnopqrstuvwxyz"}
    return {
        "words": sorted(found),
        "answers": sorted(answers),
        "characters": sorted(letters | set("0123456789") | set(_PUNCTUATION)),
        "spelled": spelled,
    }
