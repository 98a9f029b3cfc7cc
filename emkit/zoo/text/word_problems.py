"""Word problems for a real language model: the miniature's own, and those of GSM-symbolic that are not too long.

GSM-symbolic (Mirzadeh et al. 2024, arXiv 2410.05229) varies names and numbers of GSM8K's problems; the package
`reasoning-gym` (Apache-2.0) draws them with worked solutions in GSM8K's form, whose last line is ``#### n``.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import types
from functools import cache
from typing import Any

from emkit.errors import UserError
from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.text import problems
from emkit.zoo.text.item import Item

SHARE = 0.5  # of GSM-symbolic
WORDS = (75, 45)  # of a problem and of its solution, at most
SYMBOLIC = "GSM-symbolic"
_ANSWER = re.compile(r"#### (-?\d+)$")  # whole numbers alone
_FORM = re.compile(r"\s*Give the result as your final answer\. Do not include units\.\s*$")
_PACKAGE, _MODULE = "reasoning_gym", "reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic"
_SEEDS = 2**30


@cache
def _generators() -> Any:
    """reasoning-gym's module of these problems, without the rest of the package, which imports a dozen libraries.

    ``UserError`` where it is not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None:
        raise UserError("GSM-symbolic's problems need the package reasoning-gym: run `make setup-small`")
    for name in (_PACKAGE, f"{_PACKAGE}.arithmetic", f"{_PACKAGE}.coaching"):
        if name not in sys.modules:  # packages as folders alone: their own `__init__` is not run
            package = types.ModuleType(name)
            package.__path__ = [
                f"{folder}/{'/'.join(name.split('.')[1:])}" for folder in found.submodule_search_locations or ()
            ]
            sys.modules[name] = package
    return importlib.import_module(_MODULE)


def symbolic(number: int) -> tuple[str, str]:
    """Problem ``number`` of GSM-symbolic's and its solution."""
    module = _generators()
    drawn = module.GSMSymbolicDataset(module.GSMSymbolicDatasetConfig(seed=number, size=1))[0]
    return _FORM.sub("", drawn["question"]).strip(), drawn["metadata"]["answer_cot"].strip()


def sample(draw: Draw) -> Spec:
    """A problem of the miniature's, or one of GSM-symbolic's that is short enough, as it is worded."""
    if not draw.chance(SHARE):
        return problems.sample(draw)
    while True:
        question, solution = symbolic(draw.integer(0, _SEEDS))
        short = len(question.split()) <= WORDS[0] and len(solution.split()) <= WORDS[1]
        if short and _ANSWER.search(solution):
            return {"kind": SYMBOLIC, "question": question, "solution": solution}


def item(spec: Spec, draw: Draw) -> Item:
    """The problem and its worked answer."""
    if spec["kind"] != SYMBOLIC:
        return problems.item(spec, draw)
    question, solution = spec["question"], spec["solution"]
    found = _ANSWER.search(solution)
    assert found is not None  # as it was sampled
    return Item(SYMBOLIC, question, solution, f"{question}\n{solution}", {"answer": found[1]})
