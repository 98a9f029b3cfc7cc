"""A column's items as they lie in a data folder: picture, question, gold answers; the same for all three harnesses.

What VLMEvalKit does to its tables before it asks is done here once (``vlmeval/dataset/image_base.py``, ``refcoco.py``
of ms-vlmeval 0.0.20; a test compares): an image cell of at most 64 characters is the index of the row whose picture is
meant, and the indices of RefCOCO, whose three columns share one table, begin with their split.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import csv
import io
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from emkit.errors import UserError
from emkit.files import atomic_write
from eval.columns import AlpacaEval, Column, LMEval, VLMEvalKit
from eval.items.lines import rows as text_rows
from eval.items.writer import write
from eval.places import EVALUATION
from eval.plan import Plan

_LONGEST_REFERENCE = 64  # characters of an image cell that is no image; image_base.py
_ANNOTATED = ("image_vqa.ImageVQADataset", "image_vqa.VizWiz")  # vqa_eval.py reads a list as several annotators
_SPLITS = {"val": "val", "test": "test", "testa": "testA", "testb": "testB"}  # refcoco.py, _category_to_split


@dataclass(frozen=True, repr=False)
class Picture:
    """An item's picture as its table holds it: base64 of an image file, decoded when it is looked at."""

    data: str

    @property
    def image(self) -> Image.Image:
        """The picture, RGB; ``UserError`` where it is none."""
        try:
            return Image.open(io.BytesIO(base64.b64decode(self.data, validate=True))).convert("RGB")
        except (ValueError, OSError, Image.DecompressionBombError) as error:
            raise UserError(f"a picture cannot be read: {error}") from error

    def __repr__(self) -> str:
        width, height = self.image.size
        return f"<{width} × {height}>"

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.image.save(stream, format="PNG")
        return stream.getvalue()


@dataclass(frozen=True)
class Item:
    """One question. ``gold``: every answer that is given as right, repeated as often as it is given (VQA has ten
    annotators); ``groups``: the column's parts that it counts in; ``fields``: what else its table says of it."""

    index: str
    question: str
    gold: tuple[str, ...]
    picture: Picture | None = None
    groups: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


def read(plan: Plan, benchmark: str) -> list[Item]:
    """The items of a column's evaluation split, in their order; drawn now where they are not there yet."""
    column = plan.protocol.columns[benchmark]
    return _HARNESSES[type(column)](folder(plan, column), column)


def folder(plan: Plan, column: Column) -> Path:
    """The data folder that holds the column's items, as ``python -m eval data`` writes it, which is done where it is
    missing or of other items; ``UserError`` for a published set that is not here."""
    out = plan.data(EVALUATION)
    if any(every.published for every in plan.protocol.columns.values()):
        if not (out / column.file).is_file():
            raise UserError(
                f"{column.name} is a published set, which is not drawn: put {column.file} of {column.source} in {out}"
            )
    elif not plan.data_is_current(EVALUATION):
        _write(plan, out)
        with atomic_write(out / "key") as part:
            part.write_text(plan.data_key(EVALUATION), encoding="utf-8")
    return out


def _write(plan: Plan, out: Path) -> None:
    """Draw the items; in a notebook without the bar, which would stand there ever after, but with its warnings."""
    said = io.StringIO()
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(said):
        write(plan.protocol, EVALUATION, out)
    for line in said.getvalue().splitlines():
        if line.startswith("warning"):
            print(line)


# ---------------------------------------------------------------------------------------------- VLMEvalKit
def _of_table(data: Path, column: VLMEvalKit) -> list[Item]:
    """The rows of a TSV that belong to the column; ``UserError`` where a picture is missing."""
    path = data / column.file
    csv.field_size_limit(2**31 - 1)
    with open(path, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    if column.dataset == "RefCOCO":
        for row in rows:
            row["split"] = row.get("split") or _split(row.get("category", "")) or column.dataset
            row["index"] = f"{row['split']}_{row['index']}"
    images = {row["index"]: row["image"] for row in rows}
    mine = [row for row in rows if column.split is None or row["split"] == column.split]
    if not mine:
        raise UserError(f"{path} holds no items of {column.name}")
    return [_row(row, _picture(row, images, path), column) for row in mine]


def _picture(row: dict[str, str], images: Mapping[str, str], path: Path) -> Picture:
    image = row["image"]
    if len(image) <= _LONGEST_REFERENCE:
        image = images.get(image, "")
    if len(image) <= _LONGEST_REFERENCE:
        raise UserError(f"{path}: the image of item {row['index']} is '{row['image']}', which is no row with an image")
    return Picture(image)


def _row(row: dict[str, str], picture: Picture, column: VLMEvalKit) -> Item:
    fields = {key: value for key, value in row.items() if key not in ("image", "index", "question")}
    said = row.get("answers") or row.get("answer", "")
    given = _literal(said) if column.dataset_class in _ANNOTATED else None  # elsewhere a list is one answer
    gold = tuple(map(str, given)) if isinstance(given, list) else (said,)
    choices = _literal(row.get("choices", ""))
    if isinstance(choices, list) and choices:
        gold = _option(row.get("answer_option") or row["answer"], choices) or gold
    skills = _literal(row.get("skills", ""))
    named = {row.get("category"), row.get("task"), *(skills if isinstance(skills, list) else [row.get("skills")])}
    groups = tuple(part for part in column.parts if part in named)
    return Item(row["index"], row["question"], gold, picture, groups, fields)


def _option(letter: str, choices: list) -> tuple[str, ...]:
    """The right option's letter and text; () for a letter that is none."""
    at = ord(letter) - ord("A") if len(letter) == 1 else -1
    return (letter, str(choices[at])) if 0 <= at < len(choices) else ()


def _literal(text: str) -> Any:
    """A Python literal, as VLMEvalKit writes lists; None where the text is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _split(category: str) -> str:
    """The split that RefCOCO's ``category`` speaks of: "RefCOCO+ test A" is RefCOCO+_testA."""
    dataset, _, rest = category.strip().partition(" ")
    name = _SPLITS.get("".join(rest.lower().split()).replace("_", "").replace("-", ""))
    return f"{dataset}_{name or rest.strip().replace(' ', '_').replace('-', '_')}" if rest.strip() else dataset


# -------------------------------------------------------------------------------------------------- texts
def _of_task(data: Path, column: LMEval) -> list[Item]:
    """Items with question and gold answer as the task's own templates put them."""
    task = {} if isinstance(column.task, str) else column.task
    found = []
    for row in text_rows(data, column):
        question, gold = (_rendered(task.get(f"doc_to_{side}", ""), row) for side in ("text", "target"))
        choices = [_rendered(choice, row) for choice in task.get("doc_to_choice", []) if isinstance(choice, str)]
        if choices and gold.isdigit() and int(gold) < len(choices):
            gold = choices[int(gold)]
        found.append(Item(str(row["index"]), question, (gold,), fields=row))
    return found


def _rendered(template: Any, row: Mapping[str, Any]) -> str:
    """What a task says of an item: a field's name, or a template of jinja, as lm-evaluation-harness reads it."""
    from jinja2 import TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    if template in row:
        return str(row[template])
    try:
        return SandboxedEnvironment(keep_trailing_newline=True).from_string(str(template)).render(**row)
    except TemplateError as error:
        raise UserError(f"the template {template!r} cannot be filled: {error}") from error


def _of_instructions(data: Path, column: AlpacaEval) -> list[Item]:
    """Items with the reference's reply as gold answer."""
    rows = text_rows(data, column)
    return [Item(str(row["index"]), row["instruction"], (row["output"],), fields=row) for row in rows]


_HARNESSES: dict[type[Column], Callable[[Path, Any], list[Item]]] = {
    VLMEvalKit: _of_table,
    LMEval: _of_task,
    AlpacaEval: _of_instructions,
}


def gold_text(gold: tuple[str, ...]) -> str:
    """Gold answers to read: "green ×7, black ×3" of annotators, "B or 40" of an option's letter and text."""
    counts = Counter(gold)
    if len(gold) > 1 and max(counts.values()) > 1:
        return ", ".join(f"{answer} ×{count}" if count > 1 else answer for answer, count in counts.most_common())
    return " or ".join(counts)
