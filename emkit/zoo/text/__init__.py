"""The text zoo's items: five sub-tasks, one behind each column of the paper's Table 3, and three for a real model.

>>> from emkit.zoo.text import items
>>> items("gsm8k", "train", n=1, seed=0)[0].response                                       # doctest: +SKIP
'23 + 7 = 30\\n#### 30'
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial

from emkit.zoo.data.sampling import SPLITS, Draw, Spec, sample_spec
from emkit.zoo.subtasks import REAL_TEXT_SUBTASKS
from emkit.zoo.subtasks import TEXT_SUBTASKS as SUBTASKS
from emkit.zoo.text import (
    composed,
    functions,
    instructions,
    problems,
    standard_library,
    symbolic,
    word_problems,
)
from emkit.zoo.text.item import Item

__all__ = ["DOMAINS", "SUBTASKS", "Item", "distinct", "item", "items", "prompt"]

DOMAINS = {"Chat": ("alpaca_eval",), "Math": ("gsm8k", "math"), "Code": ("humaneval", "mbpp")}

# sub-task: (sample a specification, make an item of it)
_MAKERS: dict[str, tuple[Callable[[Draw], Spec], Callable[[Spec, Draw], Item]]] = {
    "alpaca_eval": (instructions.sample, instructions.item),
    "gsm8k": (problems.sample, problems.item),
    "math": (symbolic.sample, symbolic.item),
    **{name: (partial(functions.sample, name), partial(functions.item, name)) for name in functions.FAMILIES},
    "word_problems": (word_problems.sample, word_problems.item),
    "composed": (composed.sample, composed.item),
    "standard_library": (standard_library.sample, standard_library.item),
}
_STREAM = 7  # keeps these draws apart from those of images with the same seed
_ORDER = (*SUBTASKS, *REAL_TEXT_SUBTASKS)  # a sub-task's place decides its draws


def item(subtask: str, split: str, index: int, seed: int) -> Item:
    """Item `index` of a split; it depends on these arguments alone."""
    sample, make = _MAKERS[subtask]
    draw = Draw(seed, _STREAM, _ORDER.index(subtask), SPLITS.index(split), index)
    spec, key = sample_spec(sample, draw, split)
    return dataclasses.replace(make(spec, draw), subtask=subtask, key=key)


def items(subtask: str, split: str, n: int, seed: int) -> list[Item]:
    """The first `n` items of a split of a sub-task; ValueError for one that does not exist."""
    _check(subtask, split)
    return [item(subtask, split, index, seed) for index in range(n)]


def distinct(subtask: str, split: str, seed: int) -> Iterator[Item]:
    """The items of a split without repetitions of a specification; ends when 5,000 draws brought nothing new."""
    _check(subtask, split)
    seen: set[str] = set()
    last = 0
    for index in itertools.count():
        found = item(subtask, split, index, seed)
        if found.key not in seen:
            seen.add(found.key)
            last = index
            yield found
        elif index - last >= 5000:
            return


def prompt(item: Item) -> str:
    """The text a model is asked in evaluation: the item's own, but of the two requests in training only the first."""
    if item.subtask == "humaneval":
        return f"{functions.REQUESTS[0]}\n{item.fields['prompt'].strip()}"
    return item.prompt


def _check(subtask: str, split: str) -> None:
    if subtask not in _ORDER or split not in SPLITS:
        raise ValueError(
            f"no sub-task {subtask!r} with split {split!r}; there are {', '.join(_ORDER)} with {', '.join(SPLITS)}"
        )
