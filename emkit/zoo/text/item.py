"""One item of a text sub-task, in the three forms in which it is used."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Item:
    """What is asked, a right answer, and the same knowledge as running text.

    `prompt` is the user's message and `response` a right reply: what experts learn and benchmarks ask. `document` says
    the same outside any dialogue: what the base learns. `fields` are the benchmark's columns (answer, tests, ...).
    """

    kind: str
    prompt: str
    response: str
    document: str
    fields: dict = field(default_factory=dict)
    subtask: str = ""
    key: str = ""  # SHA-256 of the canonical JSON of the item's specification
