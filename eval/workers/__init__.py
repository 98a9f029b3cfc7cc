"""Processes of their own that load a harness once and answer many requests.

* :mod:`eval.workers.client` -- start, find, ask and replace a worker;
* :mod:`eval.workers.server` -- what a worker's process does between requests;
* :mod:`eval.workers.watch`  -- the time limit of a request.

Each harness has its own worker module (``eval.vlm.worker``, ``eval.lm.worker``, ``eval.alpaca.worker``), which says how
a request is answered.
"""
