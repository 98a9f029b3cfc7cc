"""What is corrected in VLMEvalKit, the same on every profile; nothing else of it is touched.

1. **Tables are read as text.**  pandas turns a column of digit strings into numbers and "none" or ""
   into NaN: predictions ``042``, ``7``, "" for answers ``042``, ``7``, ``13`` score 0.0 instead of 66.7.
   Datasets and prediction files (tsv) are read with ``dtype=str, keep_default_na=False``; where texts
   are mixed in, as in the published benchmarks, that is what the stock code sees too.  What the classes of
   multiple choice and of yes and no compute with (``index``, ``hit``, ``score``) stays numbers.
2. **Nothing the model wrote is evaluated.**  ``utils.mathv.is_equal`` called ``eval()`` on the
   prediction (and on the judge's reply); it is replaced by :func:`eval.vlm.equality.is_equal`.
3. **Free answers of MathVista can be right.**  ``utils.mathvista.post_check`` compared the text "None" with an answer
   that is neither option nor number, so no list and no text ever was; :func:`free_answers` compares the extracted
   answer, lists as lists.  A minus sign (U+2212) or an en dash before a digit is read as "-" in numbers.

Every ``eval``/``exec`` that the classes reach (found by reading their modules):

===================================  ==========================================  =======================
where                                what it evaluates                           now
===================================  ==========================================  =======================
``utils.mathv.is_equal`` (4 calls)   **prediction**, judge's reply, answer       parser (patch 2)
``utils.mathv.post_check`` (2)       ``choices`` of the dataset                  literal only
``utils.mathvista.post_check``       ``choices`` of the dataset                  literal only
``utils.mathvista.MathVista_acc``    ``skills`` of the dataset                   literal only
``utils.vqa_eval.process_line``      ``answer`` of the dataset, if a list        literal only
``smp.misc.istype``                  ``answer``, ``index`` of the dataset        literal only
``smp.misc.toliststr``               ``image``, ``image_path`` of the dataset    literal only
``smp.vlm`` (2), rest of image_vqa   not reached                                 untouched
===================================  ==========================================  =======================

"Literal only": the module's ``eval`` is :func:`literal`, which reads Python literals and nothing else.

Housekeeping, without effect on a score: ``multiprocessing.Pool(16)`` (sixteen processes per call, never
closed) maps in the process itself, and ``load_env`` no longer reads a ``.env`` file beside the package,
which could bring a key into the worker.  A table of more than a gigabyte is read as it is: the stock class first
writes its pictures out and a second table, by a module that loads every model's wrapper.
"""

import ast
import re
from types import SimpleNamespace
from typing import Any

from eval.vlm.equality import is_equal

_NUMBER = re.compile(r"True|False|\d+(?:\.\d+)?")
_MINUS = re.compile(r"[−–](?=\s*[\d.])")


def literal(text):
    """The Python literal in ``text``; :class:`SyntaxError` (which the stock code expects) for anything else."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, MemoryError, RecursionError) as error:
        raise SyntaxError(f"no literal: {str(text)[:80]!r}") from error


def read_as_text(stock_load, computed: tuple[str, ...] = ()):
    """VLMEvalKit's ``load`` with patch 1: a ``.tsv`` comes back as text, but for ``computed`` columns of numbers; other
    formats as ever."""

    def load(path, fmt=None):
        if fmt is None and str(path).endswith(".tsv"):
            import pandas

            table = pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
            for name in computed:
                if name in table and all(_NUMBER.fullmatch(mark) for mark in table[name]):
                    table[name] = [int(mark) if mark.isdigit() else literal(mark) + 0 for mark in table[name]]
            return table
        return stock_load(path, fmt)

    return load


def free_answers(stock_check):
    """MathVista's ``post_check`` with patch 3; options go to the stock function, numbers with a plain minus.

    With ``prefetch`` the answer in the prediction itself or False, else whether ``res`` is right, as in the stock one.
    """

    def post_check(line, prefetch=False):
        if line["question_type"] == "multi_choice":
            return stock_check(line, prefetch)
        key = "prediction" if prefetch else "res"
        if line["answer_type"] in ("integer", "float"):
            return stock_check({**line, key: _MINUS.sub("-", str(line[key]))}, prefetch)
        response, answer = str(line[key]), str(line["answer"])
        if response == answer or _list(response) == _list(answer) is not None:
            return response if prefetch else True
        return False

    return post_check


def _list(text: str) -> list | None:
    """The Python list in a text, with a plain minus; None where it is none."""
    try:
        found = literal(_MINUS.sub("-", text.strip()))
    except SyntaxError:
        return None
    return found if isinstance(found, list) else None


class SerialPool:
    """The part of ``multiprocessing.Pool`` the classes use, in this process and in order."""

    def __init__(self, processes: int | None = None):
        del processes

    @staticmethod
    def map(function, items):
        return [function(item) for item in items]


def apply(modules: dict[str, Any]) -> None:
    """Mend the loaded VLMEvalKit modules in place.

    ``modules``: by short name (see :mod:`eval.vlm.library`).
    """
    load = read_as_text(modules["smp_file"].load)
    for name in ("image_base", "image_vqa", "refcoco", "mathv", "mathvista"):
        modules[name].load = load
    for name in ("image_mcq", "image_yorn", "multiple_choice", "yorn"):
        modules[name].load = read_as_text(modules["smp_file"].load, ("index", "hit", "score"))
    modules["mathv"].is_equal = is_equal
    modules["mathvista"].post_check = free_answers(modules["mathvista"].post_check)
    for name in ("smp_misc", "mathv", "mathvista", "vqa_eval", "image_mcq", "image_yorn", "multiple_choice", "yorn"):
        modules[name].eval = literal  # shadows the builtin for every function of that module
    modules["image_vqa"].mp = SimpleNamespace(Pool=SerialPool)
    modules["judge_util"].load_env = lambda: None
    modules["image_base"].file_size = lambda path, unit="GB": 0  # of a larger file it would write a second copy
