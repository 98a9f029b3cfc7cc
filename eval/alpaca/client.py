"""Questions and scores of AlpacaEval, through a worker process that loads the package once (never imported here).

One worker a machine and data folder serves all processes (:mod:`eval.workers.client`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emkit.errors import UserError
from eval.columns.kinds import AlpacaEval
from eval.items.lines import rows
from eval.judge.errors import NoJudge
from eval.workers.client import Evaluation, Refused, Service, code, service

REQUEST_SECONDS = 1800.0  # for one request, unless the protocol gives another `request_seconds`


@dataclass(frozen=True)
class Prompt:
    """One question: the item's index, no picture, and the text of the user's turn."""

    index: str
    text: str
    image: None = None


def prompts(data_dir: str | Path, column: AlpacaEval) -> list[Prompt]:
    """Every item's instruction as the column puts it, in the file's order."""
    return [Prompt(row["index"], _put(column.prompt, row["instruction"])) for row in rows(data_dir, column)]


def _put(prompt: str, instruction: str) -> str:
    before, _, after = prompt.partition("{instruction}")
    return before + instruction + after


def evaluate(
    data_dir: str | Path,
    column: AlpacaEval,
    answers: Mapping[str, str],
    judge_base_url: str,
    seconds: float = REQUEST_SECONDS,
) -> Evaluation:
    """Let the judge at ``judge_base_url`` (``…/v1``) compare one row's ``answers`` (index → text) with the reference's.

    An item's score is AlpacaEval's preference for the answer, from 0 to 1; the value is its win rate. Items over which
    the judge's reply names neither answer are left out of both, as AlpacaEval leaves them out: ``n`` is that of the
    others, and ``harness["unparsable"]`` the number left out.
    Raises :class:`NoJudge` when the judge did not answer, or named an answer nowhere; :class:`UserError` for any other
    failure, also for scoring that takes the worker more than ``seconds``.
    """
    wanted = {row["index"] for row in rows(data_dir, column)}
    if set(answers) != wanted or not all(isinstance(text, str) for text in answers.values()):
        raise UserError(f"{column.name}: there must be one answer, a text, for each of the {len(wanted)} items")
    asked = column.model_dump(mode="json")
    request = {"do": "evaluate", "column": asked, "answers": dict(answers), "judge_base_url": judge_base_url}
    try:
        return Evaluation(**_service(data_dir).ask(request, seconds, column.name))
    except Refused as error:
        raise NoJudge(str(error)) from error


def versions(data_dir: str | Path) -> dict[str, str]:
    """Versions of the package and its numerical packages, as the worker sees them."""
    return _service(data_dir).ask({"do": "versions"}, REQUEST_SECONDS, "versions")


def _service(data_dir: str | Path) -> Service:
    own = {"OPENAI_API_KEY": "none", "OPENAI_API_KEYS": "none", "HF_DATASETS_OFFLINE": "1"}
    made_of = code(("eval.alpaca.worker",), "AlpacaEval", "alpaca-eval")
    return service("alpaca_eval", "eval.alpaca.worker", data_dir, made_of, **own)
