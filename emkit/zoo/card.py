"""A zoo model's card: what it is, how it was trained, what it can do, and the hash of its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
import transformers

from emkit.zoo import families


def recipe_hash(recipe: dict, settings: dict) -> str:
    """sha256 of what a member's training depends on: the zoo's common part, its base, and its own ``settings``."""
    common = {key: value for key, value in recipe.items() if key not in ("experts", "mixture")}
    return hashlib.sha256(json.dumps([common, settings], sort_keys=True).encode()).hexdigest()


def write(folder: Path, recipe: dict, member: str, settings: dict, skills: dict, sha256: str) -> None:
    """Write ``card.json`` (read by ``emkit zoo check``) and ``README.md`` (read by people) into ``folder``."""
    content = {
        "zoo": recipe["name"],
        "member": member,
        "seed": recipe["seed"],
        "recipe_sha256": recipe_hash(recipe, settings),
        "training": settings,
        "skills": skills,
        "skill_items": recipe["skill_items"],
        "weights_sha256": sha256,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (folder / "card.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    (folder / "README.md").write_text(_readme(content, families.get(recipe["backbone"])))


def read(folder: Path) -> dict:
    """The card of a finished zoo model."""
    return json.loads((folder / "card.json").read_text())


def _readme(content: dict, family) -> str:
    rows = "\n".join(f"| {name} | {value:.1f} |" for name, value in content["skills"].items())
    return f"""# {content["member"]} ({content["zoo"]})

{family.ABOUT}

Trained for {content["training"]["steps"]} steps of {content["training"]["batch"]} {family.BATCH_OF} at a peak learning
rate of {content["training"]["lr"]}, seed {content["seed"]}. Weights (bf16): sha256 over names, shapes and bytes
`{content["weights_sha256"]}`.

Percent correct on {content["skill_items"]} validation questions of each kind ({family.YARDSTICK}):

| kind | % |
|---|---|
{rows}
"""
