"""A column of a table as data: `<column>.yaml` in this folder says whose benchmark it is, how it is asked and scored.

What a file says first holds everywhere. What differs by profile or backbone is said below it; from weak to strong:

1. the file's own keys;
2. what the profile says of all its columns (``protocol.every_column`` of a profile file: "ten items each");
3. the file's ``backbones: {<backbone>: …}``;
4. its ``profiles: {<profile>: …}``, and within that ``backbones: {<backbone>: …}``.

Nothing else has to be told of a new column: a table that names it asks it. README.md explains the ones there are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from emkit.config import Settings, option, parse
from emkit.errors import UserError
from emkit.files import sha256_file
from emkit.schema import fail, load_yaml, nearest
from emkit.zoo.subtasks import SUBTASKS, TEXT_SUBTASKS

FOLDER = Path(__file__).parent
_BY_BACKBONE, _BY_PROFILE = "backbones", "profiles"
SANDBOX = ("eval.sandbox", "eval.sandbox.child", "eval.sandbox.seccomp", "eval.sandbox.walls")  # which runs as files
_WORDS = {"group", "metric", "judge_tokens"}  # what a column says to a reader: no number depends on it


class JudgeTokens(Settings):
    """Tokens of one request to the judge, for the estimate of its cost."""

    prompt: float = option(..., "of the request", ge=0)
    reply: float = option(..., "of the reply", ge=0)


class Column(Settings):
    """One benchmark as one backbone is asked it on one profile: what all harnesses need to know.

    ``room`` is the package that asks and scores it, ``libraries`` what a number depends on besides its code.
    """

    room: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]]

    name: str = option(..., "its column in a table: the file's name")
    harness: str = option(..., "who scores it")
    group: str = option(..., "the ability that it asks for: VQA, Chart, Math, …")
    metric: str = option(..., "what the harness computes, in words")
    version: int = option(..., "raised whenever the items or the way they are asked change", ge=1)
    n: int = option(..., "items of the evaluation split", ge=0)
    validation_n: int = option(0, "items of the validation split; 0 where there is none", ge=0)
    subtask: str | None = option(None, "what items are drawn from: a sub-task of emkit.zoo.data or emkit.zoo.text")
    seed: int | None = option(None, "seed of the drawn items")
    items: str | None = option(None, "file of given items in this folder: the evaluation's, then the validation's")
    judge: bool = option(False, "whether scoring asks a judge")
    judge_tokens: JudgeTokens | None = option(None, "tokens of one request to the judge")
    max_new_tokens: int = option(..., "longest answer in tokens", ge=1)

    @model_validator(mode="after")
    def _one_source_of_items(self):
        if self.subtask is not None and self.items is not None:
            raise ValueError("items are drawn from a subtask or given in a file, not both")
        if self.subtask is not None and self.seed is None:
            raise ValueError("drawn items need a seed")
        return self

    @property
    def published(self) -> bool:
        """Whether the items are a published set, which is neither drawn nor given here."""
        return self.subtask is None and self.items is None

    @property
    def file(self) -> str:
        """The name of the file that holds its items in a data folder."""
        raise NotImplementedError

    @property
    def source(self) -> str:
        """The harness's own name of what it asks."""
        raise NotImplementedError

    @property
    def code(self) -> tuple[str, ...]:
        """The modules that ask and score it and are imported by name, which no import statement shows."""
        return (f"{self.room}.asking", f"{self.room}.worker")

    def asked(self) -> dict[str, Any]:
        """Everything that its score depends on, as plain values."""
        return self.model_dump(mode="json", exclude=_WORDS)


class VLMEvalKit(Column):
    """A data set of a class of VLMEvalKit, which puts the questions and scores the answers."""

    room = "eval.vlm"
    libraries = ("ms-vlmeval",)

    harness: Literal["vlmevalkit"] = option(..., "VLMEvalKit")
    dataset: str = option(..., "VLMEvalKit's name of the data set; its TSV is <dataset>.tsv")
    dataset_class: Literal[
        "image_mcq.ImageMCQDataset",
        "image_vqa.ImageVQADataset",
        "image_vqa.MathVision",
        "image_vqa.MathVista",
        "image_vqa.VizWiz",
        "image_yorn.ImageYORNDataset",
        "refcoco.RefCOCODataset",
    ] = option(..., "module of vlmeval.dataset and class in it (how each leaves its scores: eval.vlm.harness)")
    subtask: Literal[SUBTASKS] | None = option(None, "sub-task of emkit.zoo.data that the items are drawn from")  # type: ignore[valid-type]
    split: str | None = option(None, "value of the TSV's column `split`, where several columns share one TSV")
    report: str = option("Overall", "the class's own number that is the mean over the items")
    parts: list[str] = option([], "the class's categories whose unweighted mean is the score; none: over items")
    suffix: str = option("", "text added to the harness's own prompt")
    prompt_rule: Literal["dataset", "qwen2_vl"] = option(
        "dataset", "who puts the question: the data set's class, or VLMEvalKit's Qwen2-VL model where it has a prompt"
    )
    # on record: what the paper's evaluation did, which the model's own processor decides here
    prompt: str | None = option(None, "the question as the paper's own evaluation puts it")
    max_tiles: int | None = option(None, "most tiles of an image")
    min_pixels: int | None = option(None, "fewest pixels of an image")
    max_pixels: int | None = option(None, "most pixels of an image")

    @property
    def file(self) -> str:
        return f"{self.dataset}.tsv"

    @property
    def source(self) -> str:
        return self.dataset


class _Text(Column):
    """A column of texts: one JSON line an item."""

    subtask: Literal[TEXT_SUBTASKS] | None = option(None, "sub-task of emkit.zoo.text that the items are drawn from")  # type: ignore[valid-type]
    protocol: str | None = option(None, "what this way of asking is called in score files")

    @property
    def file(self) -> str:
        return f"{self.subtask or self.name}.jsonl"


class LMEval(_Text):
    """A task of lm-evaluation-harness, which asks the model itself."""

    room = "eval.lm"
    libraries = ("lm_eval", "datasets")

    harness: Literal["lm-eval"] = option(..., "lm-evaluation-harness")
    task: str | dict[str, Any] = option(
        ...,
        "an installed task by name, or a task's settings in the harness's own keys; `include: <name>` among them "
        "begins with that task's, and '!function eval.lm.scoring.<name>' is a function of this project",
    )
    runs_programs: bool = option(False, "whether scoring runs what the model wrote, which takes the sandbox")
    score: str | None = option(None, "the harness's number, as '<metric>,<filter>'; none: the task's first of each")

    @field_validator("judge")
    @classmethod
    def _no_judge(cls, judge: bool) -> bool:
        if judge:
            raise ValueError("lm-evaluation-harness does not ask a judge")
        return judge

    @property
    def code(self) -> tuple[str, ...]:
        named = re.findall(r"!function ([\w.]+)\.\w+", json.dumps(self.task))
        return (*super().code, *sorted(set(named)), *(SANDBOX if self.runs_programs else ()))

    @property
    def source(self) -> str:
        return self.task if isinstance(self.task, str) else self.task.get("include", self.name)


class AlpacaEval(_Text):
    """Instructions whose replies alpaca_eval compares with a reference's, by asking the judge."""

    room = "eval.alpaca"
    libraries = ("alpaca_eval",)

    harness: Literal["alpaca_eval"] = option(..., "the package alpaca_eval")
    reference: str | None = option(None, "whose replies a published set is compared with")

    @field_validator("judge")
    @classmethod
    def _a_judge(cls, judge: bool) -> bool:
        if not judge:
            raise ValueError("alpaca_eval asks a judge")
        return judge

    @property
    def source(self) -> str:
        return self.reference or self.name


HARNESSES: dict[str, type[Column]] = {"vlmevalkit": VLMEvalKit, "lm-eval": LMEval, "alpaca_eval": AlpacaEval}


class Generation(Settings):
    """How a merged model answers."""

    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "the model's number format")
    decoding: Literal["greedy"] = option("greedy", "how the next token is chosen")


class Asking(Settings):
    """What holds for all columns of a profile and backbone: the section ``protocol`` of a profile."""

    version: int = option(1, "raised whenever all columns are asked otherwise", ge=1)
    image_size: int | str | None = option(
        None, "pixels a side of drawn images; mixed: of several sizes (emkit.zoo.data.sizes); null: none are drawn"
    )
    judge_upstream: str = option(..., "where judged columns are graded: rules, or a service's address")
    judge_model: str | None = option(None, "the model that the service is asked for, whatever the harness names")
    judge_max_usd: float | None = option(
        None, "the most that the judge may cost, unless --max-usd or EMKIT_MAX_USD says another", ge=0
    )
    generation: Generation = option(Generation(), "how a merged model answers")
    keep_image_features: bool = option(False, "whether image features are kept for all rows (eval/features.py)")
    request_seconds: float | None = option(
        None, "longest time that a harness may take over one column of one row; none: the harness's own", ge=1
    )
    every_column: dict[str, Any] = option({}, "what all its columns say, unless their files say it of this profile")

    @field_validator("image_size")
    @classmethod
    def _pixels(cls, size: int | str | None) -> int | str | None:
        if isinstance(size, str) and size != "mixed":
            raise ValueError(f"'{size}' is not a number of pixels, null or 'mixed'")
        return size


class Protocol(Asking):
    """How every column of a table is asked on one profile and backbone."""

    name: str = option(..., "<backbone>-<profile>")
    columns: dict[str, Column] = option(..., "the columns in the table's order")

    def drawn(self) -> dict[str, Any]:
        """Everything that the columns' items depend on, as plain values."""
        given = {column.items for column in self.columns.values() if column.items}
        content = {name: sha256_file(FOLDER / name) for name in sorted(given) if (FOLDER / name).is_file()}
        asked = {name: column.asked() for name, column in self.columns.items()}
        return {"version": self.version, "image_size": self.image_size, "columns": asked, "given": content}


def names() -> list[str]:
    """The columns that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, backbone: str = "", profile: str = "", every: Mapping[str, Any] | None = None) -> Column:
    """The column called ``name`` as ``backbone`` is asked it on ``profile``; ``UserError`` for a wrong file or none.

    ``every`` is what the profile says of all its columns; what a column's harness does not have is not said of it.
    """
    if name not in names():
        raise UserError(f"unknown benchmark '{name}': {nearest(name, names())}")
    path = FOLDER / f"{name}.yaml"
    where, said = f"{path}: ", load_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(said, dict):
        raise fail(where, "is not a mapping")
    every = {key: value for key, value in (every or {}).items() if key in HARNESSES[_harness(said, where)].model_fields}
    by_backbone, by_profile = (_layers(said, key, where) for key in (_BY_BACKBONE, _BY_PROFILE))
    there = dict(by_profile.get(profile, {}))
    within = _layers(there, _BY_BACKBONE, f"{where}{_BY_PROFILE}.{profile}.")
    merged = said | every | by_backbone.get(backbone, {}) | there | within.get(backbone, {})
    return of(merged | {"name": name}, where)


def of(said: Mapping[str, Any], where: str = "") -> Column:
    """A column from its settings, typed as its harness needs them."""
    return parse(HARNESSES[_harness(said, where)], dict(said), where)


def _harness(said: Mapping[str, Any], where: str) -> str:
    harness = str(said.get("harness"))
    if harness not in HARNESSES:
        raise fail(f"{where}harness", f"unknown value '{harness}': {nearest(harness, HARNESSES)}")
    return harness


def _layers(said: dict, key: str, where: str) -> dict[str, dict]:
    """The mapping of mappings at ``key``, taken out of ``said``."""
    layers = said.pop(key, {})
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        raise fail(f"{where}{key}", "is not a mapping of settings by name")
    return layers


def protocol(profile: str, backbone: str, columns: Iterable[str], said: Any, where: str) -> Protocol:
    """How ``columns`` are asked of ``backbone`` on ``profile``; ``said`` is the profile's section, at ``where``."""
    asking, known = parse(Asking, said, where), {key for kind in HARNESSES.values() for key in kind.model_fields}
    for key in asking.every_column:
        if key not in known:
            raise fail(f"{where}.every_column", f"unknown key '{key}': {nearest(key, known)}")
    loaded = {}
    for name in columns:
        try:
            loaded[name] = load(name, backbone, profile, asking.every_column)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    shared = {key: getattr(asking, key) for key in Asking.model_fields}
    return Protocol(name=f"{backbone}-{profile}", columns=loaded, **shared)
