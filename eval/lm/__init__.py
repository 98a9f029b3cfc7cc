"""lm-evaluation-harness over the columns' tasks, in a worker process of its own.

* :mod:`eval.lm.client`    -- what the rest of the project calls: ``evaluate``;
* :mod:`eval.lm.worker`    -- the process that answers;
* :mod:`eval.lm.harness`   -- the only module that imports ``lm_eval``;
* :mod:`eval.lm.scoring`   -- the metrics and filters that columns name;
* :mod:`eval.lm.execution` -- where a program that a model wrote is handed to the sandbox.
"""
