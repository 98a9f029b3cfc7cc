"""The scoring worker: loads alpaca_eval once and answers many rows (see :mod:`eval.workers.server`).

Started by :mod:`eval.alpaca.client`; not called by hand.  A request is ``{"do": "evaluate" | "versions", …}``.
"""

import sys

from eval.alpaca import harness
from eval.columns.kinds import AlpacaEval
from eval.judge.errors import NoJudge
from eval.workers import server


def answer(data_dir: str, request: dict):
    """What one request asks of the harness; a judge that fails is an error of kind "no judge"."""
    try:
        if request["do"] == "evaluate":
            column = AlpacaEval.model_validate(request["column"])
            return harness.evaluate(data_dir, column, request["answers"], request["judge_base_url"])
        return harness.versions()
    except NoJudge as error:
        raise server.Refusal("no judge", str(error)) from error


if __name__ == "__main__":
    sys.exit(server.main(__doc__, harness.modules, answer))
