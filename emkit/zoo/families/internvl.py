"""The zoo of mini-InternVLs: drawn images, a vision tower that learns to see first, five experts."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import distributed

from emkit.backbones.internvl import load
from emkit.zoo import image_training, model
from emkit.zoo import skills as yardstick
from emkit.zoo.data import examples, lexicon
from emkit.zoo.data.sheets import sheet
from emkit.zoo.image_training import TrainingSet, cache_features, train
from emkit.zoo.subtasks import DOMAINS, SUBTASKS
from emkit.zoo.tokenizer import create_processor
from emkit.zoo.train import Share
from emkit.zoo.vision import PatchSet, patch_set
from emkit.zoo.vision import pretrain as learn_to_see

__all__ = ["ABOUT", "DOMAINS", "SUBTASKS", "YARDSTICK", "load", "train"]

EYES = "vision.safetensors"  # the trained tower, in the work folder
ABOUT = """\
A miniature InternVL trained from nothing by emkit (`make zoo`) on drawn images. It is a stand-in for studying how
models merge; it knows nothing of the real world. Load it with transformers' `AutoModelForImageTextToText`."""
YARDSTICK = "exact match; boxes: IoU ≥ 0.5"
BATCH_OF = "images"


def processor(recipe: dict):
    """The zoo's processor with the vocabulary of its data."""
    known = lexicon()
    return create_processor(recipe["model"], known["words"] + known["capitals"])


def create(recipe: dict, processor, seed: int):
    """An untrained mini-InternVL."""
    return model.create(recipe["model"], processor, seed)


def draw(recipe: dict, subtask: str, n: int, seed: int) -> list:
    """Images with their questions."""
    return examples(subtask, "train", n, seed, recipe["model"]["image_size"])


def base_set(recipe: dict, processor, drawn: list) -> TrainingSet:
    """A base also learns from dense questions, and its images go through the tower at every step."""
    return image_training.training_set(processor, drawn, dense=True)


def expert_set(recipe: dict, processor, drawn: list, model) -> TrainingSet:
    """An expert's tower is frozen: every image's features are computed once."""
    data = image_training.training_set(processor, drawn, dense=False)
    cache_features(model, data)
    return data


def prepare(recipe: dict, drawn: list, work: Path) -> PatchSet | None:
    """What the vision tower learns from: the base's images, and sheets of characters. None: it has learned it."""
    if (work / EYES).exists():
        return None
    side = recipe["model"]["image_size"]
    sheets = [sheet(recipe["data_seed"], index, side) for index in range(recipe["vision"]["sheets"])]
    return patch_set(drawn, sheets, side // recipe["model"]["patch_size"])


def pretrain(recipe: dict, model, seen: PatchSet | None, seed: int, work: Path, bar, share: Share) -> None:
    """The vision tower on patch labels, if it is not trained yet; then every process reads it from the work folder."""
    tower = model.model.vision_tower
    if seen is not None:
        with bar("vision", recipe["vision"]["steps"], share) as progress:
            learn_to_see(model, seen, recipe["vision"], seed, work / "vision.pt", progress, share)
        if share.rank == 0:
            save_file(tower.state_dict(), work / "vision.part")
            (work / "vision.part").replace(work / EYES)
    if share.world > 1:
        distributed.barrier()
    tower.load_state_dict(load_file(work / EYES))


def skills(recipe: dict, model, processor) -> dict[str, float]:
    """Percent correct on ``skill_items`` validation questions of each kind."""
    return yardstick.skills(model, processor, SUBTASKS, recipe["skill_items"], recipe["seed"])
