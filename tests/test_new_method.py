"""A new method is one file: dropped into emkit/methods it is in the registry, on the command line and in recipes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import own_models as own
import pytest
from conftest import recipe_data
from small_plan import write

from emkit.checkpoints import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
TOY = '''"""Toy: θ_base + s · τ_1, the first expert alone.

Tensors of every number of dimensions are treated alike.
"""

from emkit.coefficients import Coefficients
from emkit.config import Settings, option
from emkit.merging import Context, Merge, linear
from emkit.methods import method


class Toy(Settings):
    strength: float = option(..., "s, how much of the expert", ge=0)
    sign: float = option(1.0, "of it", "ours: the direction that it was trained in")


@method("toy", options=Toy)
def merge(ctx: Context[Toy]) -> Merge:
    first, *rest = ctx.task_vectors.experts
    scales = {first: ctx.options.strength * ctx.options.sign} | dict.fromkeys(rest, 0.0)
    return linear(ctx, Coefficients.constant(ctx.task_vectors.names, scales))
'''


@pytest.fixture(scope="module")
def emkit(tmp_path_factory):
    """Run ``emkit`` of a copy that has one more file."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "emkit", root / "emkit", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "emkit" / "methods" / "toy.py").write_text(TOY, encoding="utf-8")

    def call(*arguments: str, module: str = "emkit.cli") -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)

    return call


def test_explain_knows_it(emkit):
    assert "\ntoy " in emkit("explain").stdout
    said = emkit("explain", "toy").stdout
    assert "Toy: θ_base + s · τ_1" in said and "strength: has to be given" in said and "ours: the direction" in said


def test_init_writes_its_options_and_merge_makes_it(emkit, tmp_path):
    models = own.write_models(tmp_path)
    file, out = tmp_path / "merge.yaml", tmp_path / "out"
    experts = [word for name in own.EXPERTS for word in ("--expert", f"{name}={models / name}")]
    done = emkit("init", str(file), "--method", "toy", "--base", str(models / "base"), *experts)
    assert done.returncode == 0, done.stderr
    wanting = emkit("merge", str(file), "--out", str(out), "--device", "cpu")
    assert wanting.returncode == 2 and "options: the key 'strength' is missing" in wanting.stderr
    wrong = emkit("merge", str(file), "--out", str(out), "--option", "strenth=1")
    assert "unknown key 'strenth': did you mean 'strength'?" in wrong.stderr
    done = emkit("merge", str(file), "--out", str(out), "--option", "strength=1", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found, first = Checkpoint.open(out), Checkpoint.open(models / own.EXPERTS[0])
    name = next(name for name in found.names if "q_proj" in name or "c_attn" in name)
    assert bool((found.read(name) == first.read(name)).all())


def test_a_row_of_a_table_may_have_it(emkit, tiny_zoo, tmp_path):
    data = recipe_data(tiny_zoo)
    rows = [*data.pop("rows"), {"id": "toy", "label": "Toy", "method": "toy"}]
    row = ("merge", str(tmp_path / "table1.yaml"), "toy", "--profile", str(tmp_path / "profile.yaml"))
    out = ("--out", str(tmp_path / "model"))
    write(tmp_path, {"title": "Tiny", "columns": ["VizWiz"], "rows": rows}, data)
    wanting = emkit(*row, *out, module="eval")
    assert wanting.returncode == 2 and "the key 'strength' is missing" in wanting.stderr
    data["methods"]["toy"] = {"strength": 0.5}
    write(tmp_path, {"title": "Tiny", "columns": ["VizWiz"], "rows": rows}, data)
    done = emkit(*row, *out, module="eval")
    assert done.returncode == 0, done.stderr
