"""VLMEvalKit's dataset classes, prompts and metrics, patched and served by one long-lived worker.

* :mod:`eval.vlm.client` -- what the rest of the project calls: ``prompts`` and ``evaluate``;
* :mod:`eval.vlm.worker`     -- the process that answers, one per machine and data folder;
* :mod:`eval.vlm.harness`    -- prompts and scores by VLMEvalKit's classes;
* :mod:`eval.vlm.library`    -- the only module that imports ``vlmeval``;
* :mod:`eval.vlm.patches`      -- the documented corrections of VLMEvalKit, the same for every profile;
* :mod:`eval.vlm.equality`   -- MATH-Vision's equality of two answers, without evaluating code.
"""
