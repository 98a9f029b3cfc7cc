"""A plan small enough to write its score files by hand."""

from pathlib import Path

import yaml

from eval import scores
from eval.plan import Plan

SMOKE = Path(__file__).parent.parent / "emkit" / "recipes" / "smoke" / "internvl.yaml"
ROWS = [
    {"id": "base", "label": "Base", "method": "checkpoint", "model": "base"},
    {"id": "task_arithmetic", "label": "Task Arithmetic", "method": "task_arithmetic"},
    {"id": "ties", "label": "TIES Merging", "method": None},
    {"id": "expert_merging", "label": "Expert Merging", "method": "expert_merging"},
]


def small_plan(folder: Path, **changes) -> Plan:
    """The smoke recipe with two benchmarks, four rows and ``changes``, its results below ``folder``."""
    data = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
    data |= {"rows": ROWS, "benchmarks": ["VizWiz", "GQA"], "seeds": [0, 1]} | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return Plan(path, folder / "results")


def asked_otherwise(plan: Plan, **changes) -> None:
    """Ask every column otherwise: ``changes`` of the protocol."""
    plan.protocol = plan.protocol.model_copy(update=changes)


def items(*values: float) -> list[dict]:
    """Per-item scores in [0, 1] as a score file keeps them."""
    return [{"index": str(i), "prediction": "x", "score": value, "groups": []} for i, value in enumerate(values)]


def score(plan: Plan, job, benchmark: str, *values: float) -> None:
    """Write the score file of one cell, as valid as the plan would have it."""
    about = plan.expected(plan.resolved(job), benchmark)
    about |= {"row": job.row, "seed": job.seed, "benchmark": benchmark}
    scores.write_scored(plan.cell(job, benchmark), items(*values), **about)
