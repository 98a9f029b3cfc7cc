"""The notebooks: which shows a table, what an executed one rests on, where it goes.

Any file of ``notebooks/`` with a typed parameters cell runs by ``python -m eval notebook NAME``; the one that a table
names is run with the table's parameters under the table's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from emkit.files import sha256_file, sha256_json
from emkit.imports import code_sha256
from eval import papermill_runner
from eval.plan import Plan

FOLDER = Path("notebooks")  # relative to the repository, where every command runs
CODE = ("eval.view", "eval.desk")  # what a table's notebook calls


def source(plan: Plan) -> Path:
    """The notebook that shows the plan's table."""
    return FOLDER / f"{plan.table.notebook}.ipynb"


def parameters(plan: Plan) -> dict[str, object]:
    """What the table's notebook is told."""
    table, profile = plan.asked
    return {"table": table, "profile": profile, "results": str(plan.home.parent)}


def key(plan: Plan) -> dict[str, str]:
    """What an executed notebook rests on beside its source: table, scores, scales, and the code that shows them."""
    cells = [plan.cell(job, name) for job in plan.jobs for name in plan.benchmarks]
    extra = [plan.cells(job) / "coefficients.json" for job in plan.jobs] + [plan.scale_file(r) for r in plan.scale_rows]
    files = [path for path in [*cells, *extra] if path.is_file()]
    results = {str(path): sha256_file(path) for path in files}
    return {
        "table": plan.table.model_dump_json(),
        "results": sha256_json(results),
        "code": code_sha256(CODE, ("emkit",)),
        "pictures": code_sha256(("emkit.pictures",), ()),
    }


def execute(plan: Plan, given: Mapping[str, object] | None = None) -> None:
    """Run the table's notebook into the run folder; ``given`` replaces parameters by name."""
    papermill_runner.run(source(plan), plan.notebook, parameters(plan) | dict(given or {}), key(plan))


def execute_file(name: str, profile: str, results: str, given: Mapping[str, object]) -> Path:
    """Run ``notebooks/<name>.ipynb``, which shows no table; returns where it lies then."""
    path, usual = FOLDER / f"{name}.ipynb", {"profile": profile, "results": results}
    known = papermill_runner.parameters(path)
    values = {key: value for key, value in usual.items() if key in known} | dict(given)
    where = usual | values
    out = Path(str(where["results"])) / Path(str(where["profile"])).stem / "notebooks" / path.name
    papermill_runner.run(path, out, values)
    return out


def is_current(plan: Plan) -> bool:
    """Whether the executed notebook shows the scores as they are now."""
    return papermill_runner.is_current(source(plan), plan.notebook, parameters(plan), key(plan))
