"""The miniature benchmarks' images and questions: ten sub-tasks, one behind each column of the paper's Table 1.

>>> from emkit.zoo.data import examples
>>> example = examples("gqa", "train", n=1, seed=0)[0]
>>> example.image.size, example.qas[0].question                                          # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from emkit.zoo.data import books, charts, gqa, grounding, mathvision, mathvista, scenes, signs, sizes, vizwiz
from emkit.zoo.data.lexicon import lexicon
from emkit.zoo.data.qa import QA
from emkit.zoo.data.regions import UNITS, Picture, Region, patch_targets
from emkit.zoo.data.sampling import SPLITS, Draw, Spec, sample_spec
from emkit.zoo.data.sizes import MIXED
from emkit.zoo.subtasks import DOMAINS, SUBTASKS

__all__ = [
    "DOMAINS",
    "MIXED",
    "QA",
    "SHORT_ANSWER",
    "SHORT_PHRASES",
    "SIZES",
    "SPLITS",
    "SUBTASKS",
    "Example",
    "Region",
    "example",
    "examples",
    "lexicon",
    "patch_targets",
    "prompt",
]

# What VLMEvalKit's dataset classes or its InternVL model append, except to mathematical and grounding questions.
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
_SHORT_ANSWER_SUBTASKS = ("vizwiz", "gqa", "chartqa", "textvqa", "ocrvqa")
# What VLMEvalKit's Qwen2-VL model appends to every question of a set of type "VQA"; the grounding sets are not.
SHORT_PHRASES = "\nPlease try to answer the question with short words or phrases if possible."
_SHORT_PHRASES_SUBTASKS = (*_SHORT_ANSWER_SUBTASKS, "mathvista", "mathvision")

_BRIEF = {"internvl": (SHORT_ANSWER, _SHORT_ANSWER_SUBTASKS), "qwen2_vl": (SHORT_PHRASES, _SHORT_PHRASES_SUBTASKS)}

# The pictures that a backbone is trained on, calibrated with and asked about: pixels a side, or of several sizes.
SIZES: dict[str, int | str] = {"internvl": 96, "qwen2_vl": MIXED}

# sub-task: (sample a spec, render a spec, ask about a spec)
_MAKERS: dict[str, tuple[Callable[[Draw], Spec], Callable[[Spec, int], Picture], Callable[[Spec, Draw], list[QA]]]] = {
    "vizwiz": (vizwiz.sample, vizwiz.render, vizwiz.ask),
    "gqa": (gqa.sample, gqa.render, gqa.ask),
    "mathvista": (mathvista.sample, mathvista.render, mathvista.ask),
    "mathvision": (mathvision.sample, mathvision.render, mathvision.ask),
    "chartqa": (charts.sample, charts.render, charts.ask),
    "textvqa": (signs.sample, signs.render, signs.ask),
    "ocrvqa": (books.sample, books.render, books.ask),
    **{s: (grounding.SAMPLERS[s], scenes.render, grounding.ASKERS[s]) for s in grounding.EXPRESSIONS},
}


@dataclass(frozen=True)
class Example:
    """One image with its questions: two to five as a benchmark would ask, then one or two of kind "dense/..."."""

    subtask: str
    image: Image.Image
    qas: tuple[QA, ...]
    regions: tuple[Region, ...]  # what stands where; see emkit.zoo.data.regions
    key: str  # SHA-256 of the canonical JSON of the image's specification

    @property
    def benchmark_qas(self) -> tuple[QA, ...]:
        """The questions a benchmark may ask: all but the dense ones."""
        return tuple(qa for qa in self.qas if not qa.kind.startswith("dense/"))


def example(subtask: str, split: str, index: int, seed: int, size: int | str = 96) -> Example:
    """Example `index` of a split; it depends on these arguments alone.

    `size` in pixels changes the picture and nothing else; MIXED puts what size 96 draws within a border, if any, and
    its boxes follow.
    """
    sample, render, ask = _MAKERS[subtask]
    draw = Draw(seed, SUBTASKS.index(subtask), SPLITS.index(split), index)
    spec, key = sample_spec(sample, draw, split)
    picture = render(spec, size if isinstance(size, int) else UNITS)
    qas = tuple(ask(spec, draw))
    if size == MIXED:
        sides, corner, grey = sizes.frame(seed, SUBTASKS.index(subtask), SPLITS.index(split), index)
        picture = sizes.bordered(picture, sides, corner, grey)
        qas = tuple(sizes.moved(qa, sides, corner) for qa in qas)
    return Example(subtask, picture.image, qas, picture.regions, key)


def examples(subtask: str, split: str, n: int, seed: int, size: int | str = 96) -> list[Example]:
    """The first `n` examples of a split of a sub-task: RGB images of this size (see :func:`example`), with questions.

    Raises ValueError for a sub-task or split that does not exist.
    """
    if subtask not in SUBTASKS or split not in SPLITS:
        raise ValueError(
            f"no sub-task {subtask!r} with split {split!r}; there are {', '.join(SUBTASKS)} with {', '.join(SPLITS)}"
        )
    return [example(subtask, split, index, seed, size) for index in range(n)]


def prompt(subtask: str, qa: QA, backbone: str = "internvl") -> str:
    """The text a model is asked in evaluation: most benchmarks ask for brevity; dense questions stand alone.

    `backbone` is the one whose VLMEvalKit model puts the question: "internvl" or "qwen2_vl".
    """
    if qa.kind.startswith("dense/"):
        return qa.question
    sentence, where = _BRIEF[backbone]
    return qa.question + (sentence if subtask in where else "")
