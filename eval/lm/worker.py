"""The worker: loads lm-evaluation-harness once and scores many models (see :mod:`eval.workers.server`).

Started by :mod:`eval.lm.client`; not called by hand.  A request is ``{"do": "evaluate" | "versions", …}``.
"""

import sys

from eval.columns.kinds import LMEval
from eval.lm import harness
from eval.workers import server


def answer(data_dir: str, request: dict):
    """What one request asks of the harness."""
    if request["do"] == "evaluate":
        asked = [LMEval.model_validate(column) for column in request["columns"]]
        return harness.evaluate(data_dir, asked, request["model"], request["dtype"], request["device"])
    return harness.versions()


if __name__ == "__main__":
    sys.exit(server.main(__doc__, harness.prepare, answer))
