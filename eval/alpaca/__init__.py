"""AlpacaEval: the package ``alpaca_eval`` over local items and a local judge, in a worker process of its own.

* :mod:`eval.alpaca.client`  -- what the rest of the project calls: ``prompts`` and ``evaluate``;
* :mod:`eval.alpaca.worker`  -- the process that answers;
* :mod:`eval.alpaca.harness` -- the only module that imports ``alpaca_eval``.
"""
