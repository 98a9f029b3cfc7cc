"""A zoo model's card: what it is, how it was trained, what it can do, and the hash of its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from emkit.checkpoints import Checkpoint
from emkit.hashes import sha256_tensors
from emkit.shards import SINGLE
from emkit.zoo import families
from emkit.zoo.subtasks import ADAPTER

FILE = "card.json"


def recipe_hash(recipe: dict, settings: dict) -> str:
    """sha256 of what a member's training depends on: the zoo's common part, its base, and its own ``settings``."""
    common = {key: value for key, value in recipe.items() if key not in ("experts", "mixture")}
    return hashlib.sha256(json.dumps([common, settings], sort_keys=True).encode()).hexdigest()


def weights_sha256(folder: Path) -> str:
    """Hash over names, dtypes, shapes and bytes of a model's tensors, or of an adapter's."""
    if (folder / ADAPTER).is_file():
        return sha256_tensors(sorted(load_file(folder / ADAPTER).items()))
    return Checkpoint.open(folder).sha256()


def write(folder: Path, recipe: dict, member: str, settings: dict, skills: dict) -> None:
    """Write ``card.json`` (read by ``emkit zoo check``) and ``README.md`` (read by people) into ``folder``."""
    content = {
        "zoo": recipe["name"],
        "member": member,
        "seed": recipe["seed"],
        "recipe_sha256": recipe_hash(recipe, settings),
        "training": settings,
        "skills": skills,
        "skill_items": recipe["skill_items"],
        "weights_sha256": weights_sha256(folder),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    put(folder, content, recipe)


def put(folder: Path, content: dict, recipe: dict) -> None:
    """Write a card, ``content`` as :func:`write` makes it."""
    (folder / FILE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    (folder / "README.md").write_text(_readme(content, families.of(recipe)))


def read(folder: Path) -> dict:
    """The card of a zoo model."""
    return json.loads((folder / FILE).read_text())


def is_of(content: dict, folder: Path, recipe_sha256: str) -> bool:
    """Whether a card is of the weights in a folder, made by this recipe."""
    said = (content.get("weights_sha256"), content.get("recipe_sha256"))
    return said == (weights_sha256(folder), recipe_sha256)


def is_finished(folder: Path) -> bool:
    """Whether a folder has a card and the weights that it is of."""
    return (folder / FILE).is_file() and any((folder / name).is_file() for name in (ADAPTER, SINGLE))


def _readme(content: dict, family) -> str:
    rows = "\n".join(f"| {name} | {value:.1f} |" for name, value in content["skills"].items())
    return f"""# {content["member"]} ({content["zoo"]})

{family.ABOUT}

{_origin(content, family)} Weights (bf16): sha256 over names, shapes and bytes
`{content["weights_sha256"]}`.

Percent correct on {content["skill_items"]} validation questions of each kind ({family.YARDSTICK}):

| kind | % |
|---|---|
{rows}
"""


def _origin(content: dict, family) -> str:
    """Where the weights are from."""
    training = content["training"]
    if "package" in training:
        return f"{training['name']}, as the package {training['package']} ships it ({training['file']})."
    return (
        f"Trained for {training['steps']} steps of {training['batch']} {family.BATCH_OF} at a peak learning\n"
        f"rate of {training['lr']}, seed {content['seed']}."
    )
