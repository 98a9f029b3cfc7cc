"""Turning an integer question into a multiple-choice one."""

from __future__ import annotations

from emkit.zoo.data.sampling import Draw
from emkit.zoo.data.templates import OPTIONS
from emkit.zoo.data.words import OPTION_LETTERS


def options(draw: Draw, answer: int, step: int) -> list[str]:
    """Four different positive integers as text, `answer` among them, the others at most four steps away; shuffled."""
    near = [answer + k * step for k in (-4, -3, -2, -1, 1, 2, 3, 4) if answer + k * step > 0]
    return [str(v) for v in draw.shuffled([answer, *draw.sample(near, 3)])]


def with_options(question: str, choices: list[str]) -> str:
    return question + OPTIONS.format(*choices)


def letter(answer: int, choices: list[str]) -> str:
    return OPTION_LETTERS[choices.index(str(answer))]
