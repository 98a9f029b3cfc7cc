"""The notebooks behind a profile's results: which ones there are, what they depend on, where they go."""

from __future__ import annotations

import ast
from pathlib import Path

from emkit.files import sha256_file, sha256_json
from eval import papermill_runner
from eval.plan import Plan

CODE = ("figures.py", "comparisons.py", "tables.py", "published.py", "scale.py", "stats.py")


def source(plan: Plan) -> Path:
    """The notebook that shows the plan's table."""
    return Path("notebooks") / f"{plan.paper.name}.ipynb"


def parameters(plan: Plan) -> dict[str, object]:
    """What the table's notebook is told."""
    return {"recipe": str(plan.path), "results": str(plan.home.parent)}


def key(plan: Plan) -> dict[str, str]:
    """What an executed notebook rests on beside its source: scores, scales, and the code that shows them."""
    cells = [plan.cell(job, name) for job in plan.jobs for name in plan.benchmarks]
    extra = [plan.cells(job) / "coefficients.json" for job in plan.jobs] + [plan.scale_file(r) for r in plan.scale_rows]
    files = [path for path in [*cells, *extra] if path.is_file()]
    trees = [ast.dump(ast.parse((Path(__file__).parent / name).read_text(encoding="utf-8"))) for name in CODE]
    return {"results": sha256_json({str(path): sha256_file(path) for path in files}), "code": sha256_json(trees)}


def execute(plan: Plan, given: dict[str, object] | None = None) -> None:
    """Run the table's notebook into the run folder; ``given`` replaces parameters by name."""
    papermill_runner.run(source(plan), plan.notebook, parameters(plan) | (given or {}), key(plan))


def is_current(plan: Plan) -> bool:
    """Whether the executed notebook shows the scores as they are now."""
    return papermill_runner.is_current(source(plan), plan.notebook, parameters(plan), key(plan))
