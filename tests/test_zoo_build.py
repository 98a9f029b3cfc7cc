"""A zoo from nothing: whole, loadable, frozen where it says so, the same after a kill."""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from emkit import backbones
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.zoo import build, card
from emkit.zoo.compare import compare
from emkit.zoo.data import SUBTASKS

internvl = backbones.get("internvl")

COMMITTED = Path(__file__).parent.parent / "results" / "zoo"
IMAGE_ZOOS = ("internvl", "qwen2_vl")


@pytest.fixture(scope="module")
def recipe():
    return build.load_recipe("internvl-smoke")


@pytest.fixture(scope="module")
def zoo(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    build.build(recipe, folder / "zoo", folder / "work", jobs=1)
    return folder / "zoo"


def test_every_member_is_there_and_its_card_has_its_hash(recipe, zoo):
    assert build.members(recipe) == ["base", "vqa", "geometry", "chart", "ocr", "grounding", "mixture"]
    for member in build.members(recipe):
        assert card.read(zoo / member)["weights_sha256"] == Checkpoint.open(zoo / member).sha256()


def test_anyone_can_load_a_member_with_transformers_alone(zoo):
    model = AutoModelForImageTextToText.from_pretrained(zoo / "vqa")
    processor = AutoProcessor.from_pretrained(zoo / "vqa")
    assert type(model).__name__ == "InternVLForConditionalGeneration" and model.dtype == torch.bfloat16
    assert type(processor).__name__ == "InternVLProcessor" and processor.chat_template


def test_experts_share_the_base_s_vision_tower_and_differ_in_every_merged_tensor(recipe, zoo):
    base = Checkpoint.open(zoo / "base")
    tower = [name for name in base.names if name.startswith("vision_tower.")]
    assert tower
    for member in build.members(recipe)[1:]:
        expert = Checkpoint.open(zoo / member)
        assert all(torch.equal(base.read(name), expert.read(name)) for name in tower)
        assert not any(torch.equal(base.read(name), expert.read(name)) for name in internvl.merged_names(base.names))


def test_a_zoo_that_was_killed_leaves_no_process_and_ends_with_the_same_weights(recipe, zoo, tmp_path):
    command = [sys.executable, "-m", "emkit.cli", "zoo", "build", "internvl-smoke", "--out", str(tmp_path / "zoo")]
    command += ["--jobs", "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "zoo" / "base" / "card.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.kill()  # it alone: the processes it started must end by themselves
    process.wait()
    while is_alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=300)
    for member in build.members(recipe):
        assert Checkpoint.open(tmp_path / "zoo" / member).sha256() == Checkpoint.open(zoo / member).sha256()


def is_alive(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_members_of_another_recipe_are_refused(recipe, zoo, tmp_path):
    other = copy.deepcopy(recipe)
    other["base"]["lr"] = 1.0
    with pytest.raises(UserError, match="another recipe"):
        build.build(other, zoo, tmp_path, jobs=1)


def test_an_unknown_zoo_recipe_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="internvl-mini"):
        build.load_recipe("internvl-mimi")


def card_of(folder: Path, member: str, digest: str, **skills: float) -> None:
    (folder / member).mkdir(parents=True)
    content = {"skills": dict.fromkeys(SUBTASKS, 50.0) | skills, "weights_sha256": digest}
    (folder / member / "card.json").write_text(json.dumps(content))


def test_comparison_says_identical_and_far(tmp_path):
    card_of(tmp_path / "old", "base", "1")
    card_of(tmp_path / "near", "base", "2", gqa=100.0)  # 5 points on the mean of ten kinds
    card_of(tmp_path / "far", "base", "3", gqa=100.0, vizwiz=75.0)  # 7.5 points
    same, agree = compare(tmp_path / "old", tmp_path / "old", {"base": ()})
    assert agree and "identical weights" in same
    assert compare(tmp_path / "near", tmp_path / "old", {"base": ()})[1]
    assert not compare(tmp_path / "far", tmp_path / "old", {"base": ()})[1]


def test_an_expert_that_lost_its_own_field_alone_is_far(tmp_path):
    card_of(tmp_path / "old", "chart", "1")
    card_of(tmp_path / "new", "chart", "2", chartqa=35.0)  # 1.5 points on all kinds, 15 on its own
    table, agree = compare(tmp_path / "new", tmp_path / "old", {"chart": ("chartqa",)})
    assert not agree and "more than 10 points apart" in table


@pytest.mark.parametrize("backbone", IMAGE_ZOOS)
def test_the_committed_zoo_is_small_and_is_what_its_recipe_says(backbone):
    mini, zoo = build.load_recipe(f"{backbone}-mini"), COMMITTED / backbone
    files = [path for member in build.members(mini) for path in (zoo / member).iterdir()]
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    for member in build.members(mini):
        found = card.read(zoo / member)
        assert found["weights_sha256"] == Checkpoint.open(zoo / member).sha256()
        assert found["recipe_sha256"] == card.recipe_hash(mini, build.stage(mini, member))


@pytest.mark.parametrize("backbone", IMAGE_ZOOS)
def test_each_committed_expert_leads_its_own_kinds_and_the_base_none(backbone):
    mini = build.load_recipe(f"{backbone}-mini")
    skills = {member: card.read(COMMITTED / backbone / member)["skills"] for member in build.members(mini)[:-1]}
    for member in build.members(mini)[1:-1]:
        for kind in build.own_subtasks(mini, member):
            best = max(skills, key=lambda name: skills[name][kind])
            assert best == member, f"{kind}: {best} leads, not {member}"
