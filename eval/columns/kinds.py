"""The kinds of columns, one for each harness: what can be said of a benchmark, with types, bounds and defaults."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from emkit.config import Settings, option
from emkit.zoo.subtasks import REAL_TEXT_SUBTASKS, SUBTASKS, TEXT_SUBTASKS

SANDBOX = ("eval.sandbox", "eval.sandbox.child", "eval.sandbox.seccomp", "eval.sandbox.walls")  # which runs as files
_TEXTS = (*TEXT_SUBTASKS, *REAL_TEXT_SUBTASKS)
_WORDS = {"group", "metric", "judge_tokens"}  # what a column says to a reader: no number depends on it


class JudgeTokens(Settings):
    """Tokens of one request to the judge, for the estimate of its cost."""

    prompt: float = option(..., "of the request", ge=0)
    reply: float = option(..., "of the reply", ge=0)


class HubSet(Settings):
    """A published data set of texts on the hub: which of its files (Parquet, JSON, JSON lines) the items are in."""

    path: str = option(..., "its repository", pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = option(None, "its revision; none: that of the first time, which is recorded")
    files: list[str] = option(..., "the items' files in it, in order, with * as in a shell", min_length=1)
    shots: list[str] = option([], "the files of worked examples, for tasks with shots")


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
    items: str | None = option(
        None, "file of given items, in this folder or as package:path: the evaluation's, then the validation's"
    )
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
    @abstractmethod
    def file(self) -> str:
        """The name of the file that holds its items in a data folder."""

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that it needs there."""
        return (self.file,)

    @property
    @abstractmethod
    def source(self) -> str:
        """The harness's own name of what it asks."""

    @property
    def code(self) -> tuple[str, ...]:
        """The modules that ask and score it and are imported by name, which no import statement shows."""
        return (f"{self.room}.asking", f"{self.room}.worker")

    @property
    def needs_template(self) -> bool:
        """Whether a question cannot be put without a chat template."""
        return False

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
    url: str | None = option(None, "of a published set: where its TSV is, in place of what VLMEvalKit says")
    md5: str | None = option(None, "of that file, in place of what VLMEvalKit says", pattern="^[0-9a-f]{32}$")
    report: str = option("Overall", "the class's own number that is the mean over the items")
    parts: list[str] = option([], "the class's categories whose unweighted mean is the score; none: over items")
    suffix: str = option("", "text added to the harness's own prompt")
    prompt_rule: Literal["dataset", "qwen2_vl"] = option(
        "dataset", "who puts the question: the data set's class, or VLMEvalKit's Qwen2-VL model where it has a prompt"
    )
    # in place of what the model's own processor says
    max_tiles: int | None = option(None, "most tiles of an image (InternVL)", ge=1)
    min_pixels: int | None = option(None, "fewest pixels of an image (Qwen2-VL)", ge=1)
    max_pixels: int | None = option(None, "most pixels of an image (Qwen2-VL)", ge=1)

    @property
    def needs_template(self) -> bool:
        return True

    @property
    def pictures(self) -> dict[str, int]:
        """What the column says of how pictures are cut or scaled (:meth:`emkit.backbones.base.Backbone.seeing`)."""
        said = {key: getattr(self, key) for key in ("max_tiles", "min_pixels", "max_pixels")}
        return {key: value for key, value in said.items() if value is not None}

    @property
    def file(self) -> str:
        return f"{self.dataset}.tsv"

    @property
    def source(self) -> str:
        return self.dataset


class _Text(Column):
    """A column of texts: one JSON line an item."""

    subtask: Literal[_TEXTS] | None = option(None, "sub-task of emkit.zoo.text that the items are drawn from")  # type: ignore[valid-type]
    protocol: str | None = option(None, "what this way of asking is called in score files")
    hub: HubSet | None = option(None, "where a published set is")

    @property
    def file(self) -> str:
        return f"{self.subtask or self.name}.jsonl"

    @property
    def shots_file(self) -> str | None:
        """The name of the file of worked examples, for a task with shots."""
        return f"{self.name}.shots.jsonl" if self.hub is not None and self.hub.shots else None

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,) if self.shots_file is None else (self.file, self.shots_file)


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
    chat: bool = option(True, "whether a question is a turn of the model's chat template, or plain text")
    score: str | None = option(None, "the harness's number, as '<metric>,<filter>'; none: the task's first of each")

    @property
    def needs_template(self) -> bool:
        return self.chat

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
    prompt: str = option("{instruction}", "what the model is asked, its instruction in the braces")
    chat: bool = option(True, "whether that is a turn of the model's chat template, or plain text")

    @field_validator("prompt")
    @classmethod
    def _with_the_instruction(cls, prompt: str) -> str:
        if prompt.count("{instruction}") != 1:
            raise ValueError("has to hold {instruction} once")
        return prompt

    @field_validator("judge")
    @classmethod
    def _a_judge(cls, judge: bool) -> bool:
        if not judge:
            raise ValueError("alpaca_eval asks a judge")
        return judge

    @property
    def needs_template(self) -> bool:
        return False  # a model without one gets the text as it is

    @property
    def source(self) -> str:
        return self.reference or self.name


HARNESSES: dict[str, type[Column]] = {"vlmevalkit": VLMEvalKit, "lm-eval": LMEval, "alpaca_eval": AlpacaEval}
