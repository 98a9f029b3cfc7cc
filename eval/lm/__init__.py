"""lm-evaluation-harness over local task files, in a worker process of its own.

* :mod:`eval.lm.tasks`     -- the task files: what a benchmark asks, and the writing of its items;
* :mod:`eval.lm.client`    -- what the rest of the project calls: ``evaluate``;
* :mod:`eval.lm.worker`    -- the process that answers;
* :mod:`eval.lm.harness`   -- the only module that imports ``lm_eval``;
* :mod:`eval.lm.execution` -- where a program that a model wrote is handed to the sandbox.
"""
