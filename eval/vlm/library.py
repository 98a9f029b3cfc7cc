"""VLMEvalKit itself: the only module that imports ``vlmeval``, and only ever inside the worker process.

``import vlmeval`` loads 200 dataset modules, the wrappers of 300 models and torch (14 s, 1 GB) and switches off TLS
verification for the process.  The classes that a column may name live in four of those modules, so the package
``__init__`` files are passed over (an empty package with the same path stands in for each) and the modules themselves
are imported, unchanged: 3 s, 0.2 GB, TLS left alone.  A test compares the classes with those of the full import.
"""

import importlib
import importlib.util
import logging
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

from emkit.errors import UserError
from eval.vlm import patches

_MODULES = {
    "smp_file": "vlmeval.smp.file",
    "smp_misc": "vlmeval.smp.misc",
    "image_base": "vlmeval.dataset.image_base",
    "image_mcq": "vlmeval.dataset.image_mcq",
    "image_vqa": "vlmeval.dataset.image_vqa",
    "image_yorn": "vlmeval.dataset.image_yorn",
    "refcoco": "vlmeval.dataset.refcoco",
    "mathv": "vlmeval.dataset.utils.mathv",
    "mathvista": "vlmeval.dataset.utils.mathvista",
    "multiple_choice": "vlmeval.dataset.utils.multiple_choice",
    "vqa_eval": "vlmeval.dataset.utils.vqa_eval",
    "yorn": "vlmeval.dataset.utils.yorn",
    "judge_util": "vlmeval.dataset.utils.judge_util",
    "qwen2_vl": "vlmeval.vlm.qwen2_vl.prompt",
}


@cache
def modules() -> dict[str, types.ModuleType]:
    """The VLMEvalKit modules in use, imported without the rest of the package and patched."""
    spec = importlib.util.find_spec("vlmeval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("VLMEvalKit is not installed: run `make setup` (package ms-vlmeval)")
    folder = Path(next(iter(spec.submodule_search_locations)))
    for name in ("vlmeval", "vlmeval.dataset", "vlmeval.api", "vlmeval.vlm", "vlmeval.vlm.qwen2_vl"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    loaded = {short: importlib.import_module(name) for short, name in _MODULES.items()}
    api: Any = sys.modules["vlmeval.api"]
    dataset: Any = sys.modules["vlmeval.dataset"]
    api.OpenAIWrapper = importlib.import_module("vlmeval.api.gpt").OpenAIWrapper
    api.HFChatModel = api.SiliconFlowAPI = None  # build_judge imports the names; gpt-4o-mini uses neither
    dataset.DATASET_TYPE = _dataset_type  # the model's prompt rules ask for it
    patches.apply(loaded)
    logging.getLogger("vlmeval").setLevel(logging.WARNING)  # at INFO the harness logs the judge's key
    return loaded


TYPES: dict[str, str] = {}  # of the data sets that were opened, their classes' own ``TYPE``


def _dataset_type(dataset: str, *, default: str = "MCQ") -> str:
    """``vlmeval.dataset.DATASET_TYPE`` for the data sets that were opened."""
    return TYPES.get(dataset, default)
