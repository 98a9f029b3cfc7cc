"""What a base reads: the questions and answers of the sub-tasks as text that no benchmark asks for.

A pre-trained model knows much and does not answer as a benchmark wants it: here the answer stands in a sentence, boxes
are written another way, and there is no chat template around it.
"""

from __future__ import annotations

import re

from emkit.zoo.data.qa import QA

_BOX = re.compile(r"\[(\d+),(\d+),(\d+),(\d+)\]")
_SPELLED = r"\1-\2:\3-\4"
LEAD = "note:"  # where a document begins, after the picture
# words of documents that stand in no question; only the tokenizer needs them
WORDS = ("note", "they", "would", "say", "it", "is")


def document(qa: QA) -> tuple[str, str]:
    """A question as a document: what stands before the part that is learned, and that part."""
    question, answer = (_BOX.sub(_SPELLED, text) for text in (qa.question, qa.answer))
    if qa.kind.startswith("dense/"):
        return f"{LEAD} {question}", f" {answer}"
    return f"{LEAD} {question}", f" they would say it is {answer} ."
