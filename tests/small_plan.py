"""A plan small enough to write its score files by hand."""

from pathlib import Path

import yaml

from eval import scores
from eval.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "eval" / "profiles" / "smoke" / "internvl.yaml"
ROWS = [
    {"id": "base", "label": "Base", "method": "checkpoint", "model": "base"},
    {"id": "task_arithmetic", "label": "Task Arithmetic", "method": "task_arithmetic"},
    {"id": "ties", "label": "TIES Merging", "method": None},
    {"id": "expert_merging", "label": "Expert Merging", "method": "expert_merging"},
]
TABLE = {
    "title": "Table 1",
    "columns": ["VizWiz", "GQA"],
    "rows": ROWS,
    "published": {"file": str(ROOT / "eval" / "paper" / "table1.csv"), "models": "InternVL2.5-1B"},
    "learned": ["expert_merging"],
}


def write(folder: Path, table: dict, profile: dict) -> tuple[Path, Path]:
    """Both as YAML files below ``folder``: ``table1.yaml`` and ``profile.yaml``."""
    paths = folder / "table1.yaml", folder / "profile.yaml"
    for path, data in zip(paths, ({"backbone": profile["backbone"]} | table, profile)):
        path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return paths


def smoke(**changes) -> dict:
    """The smoke profile of InternVL with all rows, two seeds, and ``changes``."""
    data = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
    return data | {"leave_out": [], "seeds": [0, 1], "sources": {}} | changes


def small_plan(folder: Path, **changes) -> Plan:
    """Four rows and two columns on the smoke profile; ``changes`` of table and profile; results below ``folder``."""
    table = TABLE | {
        key: value for key, value in changes.items() if key in ("columns", "rows", "compare", "compare_beyond", "prose")
    }
    if not any(row["id"] == "expert_merging" for row in table["rows"]):
        table["learned"] = []
    profile = smoke(**{key: value for key, value in changes.items() if key not in table})
    return Plan(*write(folder, table, profile), folder / "results")


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
