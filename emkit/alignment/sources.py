"""Where calibration questions, and images if any, come from: drawn by the zoo, or listed in JSON-lines files."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from PIL import Image, UnidentifiedImageError
from pydantic import Field

from emkit import backbones, foreign
from emkit.config import Settings, option
from emkit.errors import UserError
from emkit.files import sha256_file
from emkit.imports import code_sha256


@dataclass(frozen=True)
class Item:
    """One image, or none, with the questions asked about it; ``subtask`` and ``key`` say where it is from."""

    subtask: str
    key: str
    image: Image.Image | None
    questions: tuple[str, ...]


class ZooSource:
    """Drawn images of one ``split``; a task's sub-tasks take turns image by image, dense supervision left out.

    Images are of the size, and questions in the form, in which models of ``backbone`` are asked in evaluation. (Dense
    questions, which ask for everything in an image, exist for training a base only.)
    """

    def __init__(self, split: str, backbone: str):
        self.split, self.backbone = split, backbone

    def identity(self, task: str) -> dict:
        """What the items depend on besides the seed: the split and the code that draws them."""
        from emkit.zoo import data

        drawn = {"split": self.split, "subtasks": _subtasks(data.DOMAINS, task), "asked_by": self.backbone}
        return {"source": "zoo", **drawn, "code": code_sha256((data.__name__,))}

    def items(self, task: str, seed: int) -> Iterator[Item]:
        """Endless; the same for the same seed, and no item twice."""
        from emkit.zoo import data

        seen, subtasks = set(), _subtasks(data.DOMAINS, task)
        for index in itertools.count():
            for subtask in subtasks:
                example = data.example(subtask, self.split, index, _stream(seed), data.SIZES[self.backbone])
                questions = tuple(data.prompt(subtask, qa, self.backbone) for qa in example.benchmark_qas)
                if questions and example.key not in seen:
                    seen.add(example.key)
                    yield Item(subtask, example.key, example.image, questions)


class TextZooSource:
    """Drawn items of one ``split`` without images; a task's sub-tasks (its domain's, or those given) take turns item by
    item."""

    def __init__(self, split: str, subtasks: Mapping[str, Sequence[str]] | None = None):
        self.split, self.given = split, subtasks or {}

    def identity(self, task: str) -> dict:
        """What the items depend on besides the seed: the split and the code that draws them."""
        from emkit.zoo import text

        drawn = {"split": self.split, "subtasks": _subtasks(self.given or text.DOMAINS, task)}
        return {"source": "text zoo", **drawn, "code": code_sha256((text.__name__,))}

    def items(self, task: str, seed: int) -> Iterator[Item]:
        """The same for the same seed, and no item twice; ends with the first sub-task that has nothing new."""
        from emkit.zoo import text

        subtasks = _subtasks(self.given or text.DOMAINS, task)
        for turn in zip(*(text.distinct(subtask, self.split, _stream(seed)) for subtask in subtasks)):
            for item in turn:
                yield Item(item.subtask, item.key, None, (text.prompt(item),))


def _stream(seed: int) -> int:
    """The zoo's seed for a calibration draw: an item may be in the experts' training data, but not by having theirs."""
    return int(hashlib.sha256(f"calibration/{seed}".encode()).hexdigest()[:8], 16)


def _subtasks(domains: Mapping[str, Sequence[str]], task: str) -> list[str]:
    if task not in domains:
        known = ", ".join(domains)
        raise UserError(f"calibration.source zoo knows no task '{task}': name the experts {known}, or use jsonl")
    return list(domains[task])


class JsonlSource:
    """Files of ``{"image": path, "question": text}`` lines, one file a task; image paths are relative to the file.

    A line may leave out ``image``, for a question about none, and say ``prompt`` for ``question``. Other keys are not
    looked at. A seed draws the order of the lines.
    """

    def __init__(self, files: Mapping[str, str]):
        self.files = {task: Path(file) for task, file in files.items()}

    def identity(self, task: str) -> dict:
        """What the items depend on besides the seed: the lines and the images' bytes."""
        images = sorted({str(image) for image, _ in self.lines(task) if image is not None})
        hashes = hashlib.sha256("".join(sha256_file(image) for image in images).encode()).hexdigest()
        return {"source": "jsonl", "lines": sha256_file(self.files[task]), "images": hashes}

    def items(self, task: str, seed: int) -> Iterator[Item]:
        """Every line once."""
        lines = self.lines(task)
        drawn = {line: f"{seed}/{self._name(task, line[0])}/{line[1]}".encode() for line in lines}
        lines.sort(key=lambda line: hashlib.sha256(drawn[line]).hexdigest())
        for path, question in lines:
            if path is None:
                yield Item(task, question, None, (question,))
                continue
            try:
                with Image.open(path) as image:
                    yield Item(task, f"{path.name}: {question}", image.convert("RGB"), (question,))
            except (OSError, UnidentifiedImageError) as error:
                raise UserError(f"{self.files[task]}: {path} is no readable image") from error

    def _name(self, task: str, image: Path | None) -> str:
        """An image as its line has it, wherever the file lies and however its path was written."""
        folder = self.files[task].parent
        return str(image.relative_to(folder) if image is not None and image.is_relative_to(folder) else image)

    def lines(self, task: str) -> list[tuple[Path | None, str]]:
        """Image and question of every line; ``UserError`` naming the line that is not of the form, or lacks its image,
        and for a file without lines."""
        if task not in self.files:
            raise UserError(f"calibration.files has no file for task '{task}': add one, or drop that expert")
        file = self.files[task]
        try:
            text = foreign.text(file, 2**31, named=True)
        except UserError as error:
            raise UserError(f"calibration.files.{task}: {error}") from error
        lines = [_line(f"{file}, line {number}", file, line) for number, line in _filled(text)]
        if not lines:
            raise UserError(f"the calibration set of task '{task}' is empty: {file} has no lines")
        return lines


def _filled(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _line(where: str, file: Path, line: str) -> tuple[Path | None, str]:
    """Image and question of one line of ``file``."""
    try:
        entry = json.loads(line)
        image = entry.get("image")
        image = None if image is None else file.parent / image
        question = entry["question"] if "question" in entry else entry["prompt"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f'{where}: not of the form {{"image": …, "question": …}} or {{"prompt": …}} (which has no image)'
        ) from error
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: the question is not text")
    if image is not None and not image.is_file():
        raise UserError(f"{where}: there is no image {image}")
    return image, question


class Samples(Settings):
    """Which unlabeled samples a learned method learns from: the ``calibration`` section of a recipe."""

    files: dict[str, Annotated[str, Field(pattern=r"\S")]] = option({}, "JSONL of prompts for each expert")
    samples: int = option(
        5,
        "prompts used of each expert's, or as many as there are",
        "paper, Appendix B.2: 5 a task for InternVL2.5 and its Mistral",
        by_backbone={"qwen2_vl": (10, "paper, Appendix B.2: 10 a task for Qwen2-VL")},
        ge=1,
    )
    response_tokens: int = option(
        1, "least response tokens of a sample", "paper: a sample is one prompt with the expert's whole response", ge=1
    )
    max_new_tokens: int = option(
        128, "longest response", "ours: the length of the experts' responses is unpublished", ge=1
    )
    fewer: bool = option(False, "whether a task with too few prompts for its samples gives as many as it fills")

    def drawn_from(self, backbone: str) -> ZooSource | TextZooSource | JsonlSource:
        """Where they come from, for models of ``backbone``."""
        return JsonlSource(self.files)


class ZooSamples(Samples):
    """Samples that the zoo may draw, as many as a profile says."""

    source: Literal["zoo", "jsonl"] = option("zoo", "drawn as the miniatures' data are, or prompts in files")
    split: Literal["train", "validation"] = option("train", "of zoo: the items that they are drawn from")
    subtasks: dict[str, list[str]] = option(
        {}, "of zoo, of text: task → the sub-tasks that its prompts are of; none: those of the miniature zoo's expert"
    )
    samples: int = option(..., "samples of each expert's task", ge=1)
    response_tokens: int = option(..., "response tokens that a sample is filled up to", ge=1)
    max_new_tokens: int = option(64, "longest response", "ours: the miniatures' answers are short", ge=1)

    def drawn_from(self, backbone: str) -> ZooSource | TextZooSource | JsonlSource:
        """Where they come from, for models of ``backbone``."""
        if self.source == "jsonl":
            return JsonlSource(self.files)
        if backbones.get(backbone).VISION:
            return ZooSource(self.split, backbone)
        return TextZooSource(self.split, self.subtasks)
