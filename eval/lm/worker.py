"""The worker: loads lm-evaluation-harness once and scores many models (see :mod:`eval.workers.server`).

Started by :mod:`eval.lm.client`; not called by hand.  A request is ``{"do": "evaluate" | "prompts" | "versions", …}``.
"""

import dataclasses
import sys
from pathlib import Path

from eval.columns.kinds import LMEval
from eval.journal import Journal
from eval.lm import harness
from eval.workers import server


def answer(data_dir: str, request: dict):
    """What one request asks of the harness."""
    if request["do"] == "evaluate":
        asked = [LMEval.model_validate(column) for column in request["columns"]]
        how = harness.Answering(**{name: request[name] for name in ("model", "dtype", "device", "batch")})
        if request["journal"] is None:
            return harness.evaluate(data_dir, asked, how)
        path, identity = request["journal"]
        with Journal(Path(path), identity).opened() as journal:
            return harness.evaluate(data_dir, asked, dataclasses.replace(how, journal=journal))
    if request["do"] == "prompts":
        return harness.prompts(data_dir, LMEval.model_validate(request["column"]))
    return harness.versions()


if __name__ == "__main__":
    sys.exit(server.main(__doc__, harness.prepare, answer, alone=True))
