"""AlpacaEval itself: the only module that imports ``alpaca_eval``, and only ever inside the worker process.

The package pairs every answer with the reference's, puts one of the two first (a draw seeded by the instruction), asks
the judge from several threads, reads the log-probabilities of its reply, and computes the win rate. Here it gets lists
instead of files, no leaderboard and no cache (the judge keeps every reply), and an HTTP client that uses no proxy.
Its win rate is read, not trusted: it must be the mean of the items' scores.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import warnings
from functools import cache

from emkit.errors import UserError
from eval import stats
from eval.columns.kinds import AlpacaEval
from eval.items import lines
from eval.judge.errors import NoJudge
from eval.workers.text import whole

ANNOTATOR = "weighted_alpaca_eval_gpt-4o-mini-2024-07-18"
AT_ONCE = 32  # requests to the judge
# What the package would take for its own marks wherever it stands: the places of its template, and those of a chat.
_MARKS = {"{instruction}": "{ instruction}", "{output_": "{ output_", "<|im_": "<| im_"}


@cache
def modules():
    """``alpaca_eval``, with the environment as the client gave it: a ``.env`` file in a folder above is not read."""
    try:
        import dotenv

        dotenv.load_dotenv = lambda *arguments, **options: False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import alpaca_eval
    except ModuleNotFoundError as error:
        raise UserError(f"AlpacaEval is not installed ({error}): run `make setup`") from error
    logging.getLogger().setLevel(logging.CRITICAL)  # the package's own INFO level quotes every request
    return alpaca_eval


def versions() -> dict[str, str]:
    """Versions of the package and of what it computes with."""
    return {name: importlib.metadata.version(name) for name in ("alpaca_eval", "openai", "pandas", "scipy")}


def evaluate(data_dir: str, column: AlpacaEval, answers: dict[str, str], judge_base_url: str) -> dict:
    """Compare ``answers`` (index → text) with the reference's; ``{"value", "stderr", "n", "items", "harness"}``.

    Percent; items as in :mod:`eval.stats`, without those that the judge's reply does not decide. ``NoJudge`` where a
    request failed or nothing was decided; RuntimeError when the package's win rate is not that of its items.
    """
    rows = lines.rows(data_dir, column)
    answers = {index: whole(text) for index, text in answers.items()}
    asked = [_apart(row["instruction"]) for row in rows]
    if len(set(asked)) != len(asked):
        raise UserError(f"{column.name}: two items have the same instruction, by which alpaca_eval tells them apart")
    reference = [
        {"instruction": text, "output": _apart(row["output"]), "generator": row["generator"], "dataset": row["dataset"]}
        for text, row in zip(asked, rows)
    ]
    given = [
        {"instruction": text, "output": _apart(answers[row["index"]]), "generator": "model"}
        for text, row in zip(asked, rows)
    ]
    win_rate, annotations = _compare(given, reference, judge_base_url)
    scores = _scores(annotations)
    if set(scores) != set(asked):
        raise RuntimeError(f"alpaca_eval answers for {len(scores)} items, not for the {len(asked)} it was given")
    items = [
        {"index": row["index"], "prediction": answers[row["index"]], "score": scores[text], "groups": []}
        for text, row in zip(asked, rows)
        if scores[text] is not None
    ]
    value, stderr, n = stats.estimate(items)
    if not math.isclose(value, win_rate, rel_tol=1e-9, abs_tol=1e-9):
        raise RuntimeError(f"alpaca_eval reports a win rate of {win_rate}, its items give {value} over {n}")
    said = {
        "name": "alpaca_eval",
        "version": versions()["alpaca_eval"],
        "dataset": f"{column.protocol}/{column.version}",
        "annotator": ANNOTATOR,
        "unparsable": len(rows) - n,
    }
    return {"value": value, "stderr": stderr, "n": n, "items": items, "harness": said}


def _apart(text: str) -> str:
    """The text with a space in whatever the package would take for a mark of its own.

    It fills its template place by place, also those that an answer brings along, and cuts the result into messages at
    the marks of a chat: an answer could otherwise show the judge another answer than its own, or speak for the user.
    """
    for mark, apart in _MARKS.items():
        text = text.replace(mark, apart)
    return text


def _compare(given: list[dict], reference: list[dict], judge_base_url: str) -> tuple[float, list[dict]]:
    """The package's win rate in percent, and its annotations: one a pair."""
    alpaca_eval = modules()
    import httpx
    import openai

    refused: list[int] = []  # after some refusals the package goes on with an empty reply

    def win_rate(annotations) -> dict:
        """The package's metric, which breaks where no pair was decided."""
        if refused:
            raise NoJudge(f"the judge failed: it refused {len(refused)} requests, the first with status {refused[0]}")
        if all(score is None for score in _scores(annotations).values()):
            raise NoJudge(f"the judge's replies name neither answer, over all {len(annotations)} items")
        return alpaca_eval.metrics.get_winrate(annotations)

    hooks = {"response": [lambda reply: refused.append(reply.status_code) if reply.is_error else None]}
    with httpx.Client(trust_env=False, event_hooks=hooks) as http:
        client = {"base_url": judge_base_url, "http_client": http, "max_retries": 0}
        try:
            leaderboard, annotations = alpaca_eval.evaluate(
                model_outputs=given,
                reference_outputs=reference,
                annotators_config=ANNOTATOR,
                name="model",
                output_path=None,
                precomputed_leaderboard=None,
                is_return_instead_of_print=True,
                fn_metric=win_rate,
                sort_by="win_rate",
                caching_path=None,
                is_avoid_reannotations=False,
                annotation_kwargs={"chunksize": None, "num_procs": AT_ONCE, "n_retries": 1, "client_kwargs": client},
            )
        except openai.OpenAIError as error:
            raise NoJudge(f"the judge failed: {_why(error)}") from error
    return float(leaderboard["win_rate"]["model"]), annotations


def _why(error: Exception) -> str:
    """What the proxy said, which is safe to show; of other errors the kind alone."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return message if isinstance(message, str) else type(error).__name__


def _scores(annotations: list[dict]) -> dict[str, float | None]:
    """Instruction → preference for the model in [0, 1]; None where the reply names neither answer.

    The package's scale goes from 1 (the first output, the reference's, is better) to 2; 1.5 is a draw, and so are two
    equal texts, over which nobody is asked. Its older sign for a draw is 0.
    """
    return {annotation["instruction"]: _score(annotation["preference"]) for annotation in annotations}


def _score(preference: float | None) -> float | None:
    if preference is None or not (preference == 0 or 1 <= preference <= 2):  # the package drops all others
        return None
    return 0.5 if preference == 0 else float(preference) - 1.0
