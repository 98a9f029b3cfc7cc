"""The classes the worker loads without the rest of VLMEvalKit are those its own ``build_dataset`` would choose."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from eval import columns

# the full import (14 s): the first class of its list that supports the name, as build_dataset takes it
FULL = """
import inspect, json, sys
import vlmeval.dataset as full
names = json.loads(sys.argv[1])
chosen = {name: next(c for c in full.DATASET_CLASSES if name in c.supported_datasets()) for name in names}
found = {n: [c.__name__, inspect.getsourcefile(c), full.DATASET_TYPE(n)] for n, c in chosen.items()}
print("ANSWER" + json.dumps(found))
"""


def test_classes_are_those_of_the_full_package(tmp_path):
    asked = [found for name in columns.names() if (found := columns.load(name)).harness == "vlmevalkit"]
    names = sorted({column.dataset for column in asked})
    run = subprocess.run([sys.executable, "-c", FULL, json.dumps(names)], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    chosen = json.loads(run.stdout.split("ANSWER")[1])
    folder = Path(next(iter(find_spec("vlmeval").submodule_search_locations))) / "dataset"
    for column in asked:
        *found, kind = chosen[column.dataset]
        module, cls = column.dataset_class.split(".")
        assert found == [cls, str(folder / f"{module}.py")]
        assert kind == ("GROUNDING" if module == "refcoco" else "VQA")  # which decides who asks (prompt_rule)
