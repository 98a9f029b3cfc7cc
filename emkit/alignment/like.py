"""``--like authors``: the options of the authors' default run in place of others (facts of their code, October 2025).

α = sigmoid(w), AdamW at 0.5 on w with warm restarts, one epoch of single samples, eight of which make a step
(:mod:`emkit.alignment.order`), the loss over every token, no hidden term unless ``hidden_weight`` is given (theirs is
off unless a layer is named), and where w has not moved the regulariser's sign as their fp32 rounds it
(:func:`emkit.alignment.variable.authors_sign`), which has no meaning. γ, β, ᾱ and the hidden layer stay; γ is in
their units. In a table's row they stand in place of its recipe's; in ``emkit merge`` an option that a person gives
another value is refused.

Not reproduced: fp16; ``torch.chunk``'s sizes, which may leave coefficients without an effect; the student in training
mode, for a model with dropout of its own; the permutation that their InternVL process draws, its system message and
the line break after its end token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from emkit.alignment.order import authors_order, authors_steps
from emkit.alignment.variable import Optimiser
from emkit.errors import UserError

METHODS = ("expert_merging", "expert_merging_pp")
SOURCE = "authors' code (--like authors)"


def check_method(like: str | None, method: str) -> None:
    """``UserError`` for a method that nothing of the authors' trainer holds for."""
    if like is not None and method not in METHODS:
        raise UserError(
            f"--like {like} is for {' and '.join(METHODS)}, whose fit it changes; {method} has nothing of it: leave "
            "--like out"
        )


def imposed(method: str, samples: int, experts: int, backbone: str) -> dict[str, Any]:
    """What the options of ``method`` become; ``samples`` of each expert's task make the one epoch."""
    steps = authors_steps([samples] * experts, authors_order(backbone))
    found = {
        "parameterisation": "sigmoid",
        "temperature": 1.0,
        "regulariser": "authors",
        "hidden_loss": "mean_squared",
        "tokens": "all",
        "optimiser": Optimiser(
            name="adamw", lr=0.5, weight_decay=1e-5, steps=steps, schedule="cosine_restarts", batch=1, clip=1.0
        ).model_dump(),
    }
    return found | ({"fixed": "initial", "start": "initial"} if method == "expert_merging_pp" else {})


def layer(given: Collection[str], changes: Mapping) -> dict[str, Any]:
    """What stands in place of all other options: the ``changes`` of :func:`imposed`, and no hidden term unless its
    weight is among those ``given``."""
    return {**({} if "hidden_weight" in given else {"hidden_weight": 0.0}), **changes}


def check_given(given: Mapping, changes: Mapping) -> None:
    """``UserError`` for options that a person gave another value than :func:`imposed` does."""
    wrong = []
    for key, value in given.items():
        parts, theirs = {key: value}, changes
        if key == "optimiser" and key in changes:
            parts, theirs = value, changes[key]
        dotted = f"{key}." if parts is value else ""
        wrong += [
            f"{dotted}{part} is {said}, theirs {theirs[part]}"
            for part, said in parts.items()
            if part in theirs and said != theirs[part]
        ]
    if wrong:
        raise UserError(
            f"--like authors sets options that are given here otherwise ({'; '.join(wrong)}): leave them out, or leave "
            "out --like authors"
        )
