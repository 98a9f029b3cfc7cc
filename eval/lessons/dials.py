"""Dials: a merge that is made again and asked again as a slider moves, and a figure where no kernel runs.

Shown in a notebook, a dial is ipywidgets' controls; on a page without a kernel (GitHub, the site, an executed file) the
same output is a figure of answers along the dial.
"""

from __future__ import annotations

import html
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from emkit import pictures
from emkit.coefficients import Coefficients
from emkit.errors import UserError
from eval import style
from eval.lessons import probe

Merge = Coefficients | Mapping[str, float] | float  # what Live.set takes of a linear merge
WIDTH = 34  # letters of a question in the static figure
WIDE = {"width": "420px"}
MARK = {True: "✓", False: "✗"}
SHADE = {True: "#cfeee1", False: "#f7d9c4"}  # light forms of the green and the orange of emkit.pictures.COLOURS


@dataclass(frozen=True)
class Reply:
    """What the merge said to a question, and how long it took to make the merge and to ask it, in milliseconds."""

    text: str
    right: bool
    set_ms: float
    ask_ms: float


class Dial(ABC):
    """Controls of a merge, and one question of one task that is asked again whenever they move.

    ``zoo`` as :func:`eval.lessons.probe.open_zoo` gives it; ``n`` questions of each task stand in the list. ``reply``
    is the answer of the merge as it is set now.
    """

    def __init__(self, zoo: probe.Zoo, n: int, task: str | None = None):
        self.zoo = zoo
        self.questions = {name: probe.questions(zoo, name, n) for name in zoo.names}
        task = zoo.names[0] if task is None else task
        if task not in zoo.names:
            raise UserError(f"there is no expert '{task}': there are {', '.join(zoo.names)}")
        small = widgets.Layout(width="200px", object_fit="contain")
        self.task = widgets.Dropdown(options=zoo.names, value=task, description="task", layout=WIDE)
        self.item = widgets.Dropdown(description="question", layout=WIDE)
        self.picture = widgets.Image(format="png", layout=small)
        self.said = widgets.HTML()
        self._list_items()
        self.task.observe(self._task_chosen, "value")
        self.item.observe(self._item_chosen, "value")
        self.reply = self._ask(self.merge)
        self._fixed = self._landmarks()

    # ---- what a dial is
    @property
    @abstractmethod
    def merge(self) -> Merge:
        """The merge that the controls say."""

    @property
    @abstractmethod
    def controls(self) -> list[widgets.Widget]:
        """What is moved."""

    @abstractmethod
    def along(self, task: str) -> Mapping[str, Merge]:
        """The columns of a task's line in the static figure: heading → merge."""

    heading: str  # of the static figure

    # ---- asking
    @property
    def question(self) -> probe.Question:
        """The question that is asked."""
        return self.questions[self.task.value][self.item.value]

    def turned(self, change: Any = None) -> None:
        """Make the merge that the controls say, ask it and show what it says: what every control calls."""
        self.reply = self._ask(self.merge)
        self._show()

    def _ask(self, merge: Merge) -> Reply:
        start, asked = time.perf_counter(), self.question
        live = self.zoo.live.set(merge)
        between = time.perf_counter()
        text = probe.answers(live, [asked])[0]
        end = time.perf_counter()
        return Reply(text, asked.right(text), 1000 * (between - start), 1000 * (end - between))

    def _landmarks(self) -> dict[str, Reply]:
        """What the base says, and with the whole task vector of the task's own expert."""
        return {"base": self._ask(0.0), f"base + τ {self.task.value}": self._ask({self.task.value: 1.0})}

    # ---- showing
    def _list_items(self) -> None:
        asked = self.questions[self.task.value]
        self.item.options = [(f"{i + 1}: {_short(q.prompt, 46)}", i) for i, q in enumerate(asked)]
        self.item.value = 0

    def _task_chosen(self, change: Any) -> None:
        self.item.unobserve(self._item_chosen, "value")
        self._list_items()
        self.item.observe(self._item_chosen, "value")
        self._item_chosen(change)

    def _item_chosen(self, change: Any) -> None:
        self._fixed = self._landmarks()
        self.turned()

    def _show(self) -> None:
        asked, now = self.question, self.reply
        if asked.image is not None:
            self.picture.value = asked.image._repr_png_()
        self.picture.layout.display = "none" if asked.image is None else ""
        lines: list[tuple[str, str, bool | None]] = [
            ("question", asked.prompt, None),
            ("gold answer", asked.gold, None),
        ]
        lines += [(who, reply.text, reply.right) for who, reply in self._fixed.items()]
        body = "".join(_line(*line) for line in lines) + _line("<b>this merge</b>", now.text, now.right)
        took = f"merged again in {now.set_ms:.0f} ms, answered in {now.ask_ms:.0f} ms"
        self.said.value = f"<table>{body}</table><small>{took}</small>"

    @cached_property
    def box(self) -> widgets.Widget:
        """The controls beside the question."""
        self._show()
        left = widgets.VBox([self.task, self.item, *self.controls])
        return widgets.HBox([left, widgets.VBox([self.picture, self.said])])

    @cached_property
    def figure(self) -> Figure:
        """What stands in where no kernel runs: of each task the first question whose answer changes along the dial."""
        lines = {task: _replies(self.zoo, self.along(task), asked) for task, asked in self.questions.items()}
        picked = {task: _telling(found) for task, found in lines.items()}
        return _grid(
            self.heading,
            {task: self.questions[task][i] for task, i in picked.items()},
            {task: {label: texts[picked[task]] for label, texts in found.items()} for task, found in lines.items()},
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        alt = f"{self.heading}: of every task one question with the answers at some places of the dial."
        data, about = pictures.shown(self.figure, alt)
        plt.close(self.figure)
        self.turned()  # the figure has set other merges
        return {**self.box._repr_mimebundle_(), **data}, about


class AlphaDial(Dial):
    """One slider α_k for each expert: θ_base + Σ_k α_k τ_k, the same for all tensors, from ``start``."""

    def __init__(self, zoo: probe.Zoo, n: int = 8, start: float = 0.3, task: str | None = None, most: float = 1.5):
        self.start = start
        self.heading = f"Answers as the α of a task's own expert is turned, all others at {start:g}"
        self.alpha = {
            name: widgets.FloatSlider(
                value=start,
                min=0.0,
                max=most,
                step=0.05,
                description=f"α {name}",
                layout=WIDE,
                style={"description_width": "110px"},
            )
            for name in zoo.names
        }
        super().__init__(zoo, n, task)
        for slider in self.alpha.values():
            slider.observe(self.turned, "value")

    @property
    def merge(self) -> Merge:
        return {name: slider.value for name, slider in self.alpha.items()}

    @property
    def controls(self) -> list[widgets.Widget]:
        return list(self.alpha.values())

    def along(self, task: str) -> Mapping[str, Merge]:
        others = dict.fromkeys(self.zoo.names, self.start)
        return {f"α = {value:g}": {**others, task: value} for value in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}


class FitDial(Dial):
    """One slider over coefficients that were fitted before, such as those of a sweep over β."""

    def __init__(
        self, zoo: probe.Zoo, merges: Mapping[str, Coefficients], what: str, n: int = 8, task: str | None = None
    ):
        if not merges:
            raise UserError("there are no fits to turn through")
        self.merges, self.heading = dict(merges), f"Answers of fits with other values of {what}"
        self.fit = widgets.SelectionSlider(options=list(merges), description=what)
        super().__init__(zoo, n, task)
        self.fit.observe(self.turned, "value")

    @property
    def merge(self) -> Merge:
        return self.merges[self.fit.value]

    @property
    def controls(self) -> list[widgets.Widget]:
        return [self.fit]

    def along(self, task: str) -> Mapping[str, Merge]:
        return {f"{self.fit.description} = {label}": merge for label, merge in self.merges.items()}


# ---------------------------------------------------------------------------------------------------- the static figure
def _replies(
    zoo: probe.Zoo, merges: Mapping[str, Merge], asked: Sequence[probe.Question]
) -> dict[str, list[tuple[str, bool]]]:
    """Heading → the answer to each question, and whether it is right."""
    found = {}
    for label, merge in merges.items():
        texts = probe.answers(zoo.live.set(merge), asked)
        found[label] = [(text, question.right(text)) for text, question in zip(texts, asked, strict=True)]
    return found


def _telling(found: Mapping[str, Sequence[tuple[str, bool]]]) -> int:
    """The question whose rightness changes along the dial, else whose answer does, else the first."""
    each = list(zip(*found.values(), strict=True))  # question by question
    for part in (1, 0):
        for i, replies in enumerate(each):
            if len({reply[part] for reply in replies}) > 1:
                return i
    return 0


def _grid(
    heading: str, asked: Mapping[str, probe.Question], replies: Mapping[str, Mapping[str, tuple[str, bool]]]
) -> Figure:
    """A line a task: the picture (if any), the question with its gold answer, and a cell an answer."""
    labels = list(next(iter(replies.values())))
    pictured = any(question.image is not None for question in asked.values())
    figure = plt.figure(figsize=(style.WIDTH, 1.15 * len(asked) + 0.6))
    ratios = [0.85 if pictured else 0.01, 2.3, 5.4]
    grid = figure.subplots(len(asked), 3, squeeze=False, gridspec_kw={"width_ratios": ratios})
    for (task, question), (left, middle, right) in zip(asked.items(), grid, strict=True):
        for axis in (left, middle, right):
            axis.set_axis_off()
        if question.image is not None:
            left.imshow(question.image)
        text = f"{task}: {_wrapped(question.prompt, WIDTH, 4)}\ngold: {_wrapped(question.gold, WIDTH - 6, 1)}"
        middle.text(0, 0.5, text, va="center", fontsize=9, transform=middle.transAxes)
        right.set_xlim(0, len(labels))
        right.set_ylim(0, 1)
        for i, label in enumerate(labels):
            said, good = replies[task][label]
            right.add_patch(plt.Rectangle((i + 0.02, 0.1), 0.96, 0.7, color=SHADE[good]))
            cell = f"{MARK[good]}\n{_wrapped(said, 56 // len(labels), 3)}"
            right.text(i + 0.5, 0.45, cell, ha="center", va="center", fontsize=9)
            right.text(i + 0.5, 0.84, label, ha="center", va="bottom", fontsize=9, color="0.35")
    figure.suptitle(heading, fontsize=10)
    return figure


def _short(text: str, letters: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def _wrapped(text: str, letters: int, lines: int) -> str:
    """``text`` in at most so many lines of so many letters, ending in … where more was cut off; no mathematics."""
    import textwrap

    found = textwrap.wrap(" ".join(text.split()) or "(nothing)", letters, max_lines=lines, placeholder="…")
    return "\n".join(_short(line, letters) for line in found).replace("$", r"\$")


def _line(who: str, text: str, right: bool | None) -> str:
    mark = "" if right is None else f" <b>{MARK[right]} {'right' if right else 'not right'}</b>"
    shade = "" if right is None else f" style='background:{SHADE[right]};color:black'"
    said = html.escape(text).replace("\n", "<br>")
    return f"<tr><td style='vertical-align:top;padding-right:1em'>{who}</td><td{shade}>{said}{mark}</td></tr>"
