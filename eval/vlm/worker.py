"""The scoring worker: loads VLMEvalKit once and answers many rows (see :mod:`eval.workers.server`).

Started by :mod:`eval.vlm.client`; not called by hand.  A request is ``{"do": …}`` with ``published``, ``count``,
``prompts``, ``evaluate`` or ``versions``.
"""

import sys

from eval.columns.kinds import VLMEvalKit
from eval.vlm import harness
from eval.workers import server


def answer(data_dir: str, request: dict):
    """What one request asks of the harness; a judge that fails is an error of kind "no judge"."""
    try:
        if request["do"] == "versions":
            return harness.versions()
        column = VLMEvalKit.model_validate(request["column"])
        if request["do"] == "published":
            return harness.published(column)
        if request["do"] == "count":
            return len(harness.open_dataset(data_dir, column)[1])
        if request["do"] == "prompts":
            return harness.prompts(data_dir, column)
        return harness.evaluate(data_dir, column, request["predictions"], request["judge_url"])
    except harness.NoJudge as error:
        raise server.Refusal("no judge", str(error)) from error


if __name__ == "__main__":
    sys.exit(server.main(__doc__, harness.modules, answer))
