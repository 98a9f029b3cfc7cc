"""What a fit needs of memory, which placement follows, and what a streamed one has on the device at a time."""

import itertools

import pytest
import torch
from engine_toys import toy
from safetensors.torch import save_file

from emkit.alignment import memory, placement
from emkit.alignment.memory import MOVING, fixed_bytes, held_bytes, pinned_bytes
from emkit.alignment.options import EngineOptions, parse_bytes
from emkit.alignment.placement import fastest, place
from emkit.alignment.prefetch import Prefetch
from emkit.alignment.sources import Samples
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.methods import registry
from emkit.own import resources
from emkit.task_vectors import TaskVectors


@pytest.fixture(scope="module")
def intern(tmp_path_factory):
    return toy("internvl", tmp_path_factory.mktemp("one"))


def test_what_is_said_of_memory_decides_where_task_vectors_live(intern):
    model, vectors = intern.model(), intern.task_vectors
    options = EngineOptions(micro_tokens=64)
    fixed = fixed_bytes(vectors, model, options, torch.float32)
    wide, stored = held_bytes(vectors, torch.float32), held_bytes(vectors, None)
    n = sum(vectors.numel(name) for name in vectors.names)
    assert (wide, stored) == (n * (2 + 2 * 4), n * 3 * 2)

    def placed(memory, where=None):
        return place(vectors, model, EngineOptions(memory, where, micro_tokens=64))

    found = placed(fixed + wide)
    assert found.kind == "device" and found.wide == torch.float32
    found = placed(fixed + wide - 1)
    assert found.kind == "device" and found.wide is None
    assert placed(fixed + stored - 1).kind == "files"
    assert placed(None).kind == "device" and placed(None, "files").kind == "files"
    with pytest.raises(UserError, match=r"need about .* GiB, there are .* GiB"):
        placed(fixed - 1)
    with pytest.raises(UserError, match="do not fit the device"):
        placed(fixed + stored - 1, "device")


def test_amounts_of_memory():
    assert [parse_bytes(t) for t in ("24GiB", "1.5 MB", "7", "2KiB")] == [24 * 2**30, 1_500_000, 7, 2048]
    for bad in ("24 gigs", "", "0GiB", "-1GiB", "GiB"):
        with pytest.raises(UserError, match="is no amount of memory"):
            parse_bytes(bad)
    with pytest.raises(UserError, match="at least one token"):
        EngineOptions(micro_tokens=0)


def test_resident_vectors_are_counted_as_they_are_stored(tmp_path):
    """fp32 experts on a bf16 base: two bytes an entry for the base, four for each expert."""
    base = {"w": torch.zeros(10, 10, dtype=torch.bfloat16)}
    experts = {name: {"w": torch.ones(10, 10)} for name in ("a", "b")}
    folders = {"base": base, **experts}
    for name, tensors in folders.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    opened = {name: Checkpoint.open(tmp_path / name) for name in folders}
    vectors = TaskVectors(opened.pop("base"), opened, list)
    assert held_bytes(vectors, None) == 100 * (2 + 4 + 4)
    assert held_bytes(vectors, torch.float32) == 100 * (2 + 4 + 4)
    assert held_bytes(vectors, torch.float64) == 100 * (2 + 8 + 8)
    assert pinned_bytes(vectors) == 256 + 512 + 512  # the allocator of pinned memory gives powers of two


SIZES = {"device": 100, "stored": 50, "host": 60}


@pytest.mark.parametrize(
    ("memory", "host", "expected"),
    [
        (110, 0, "device"),
        (109, 0, "stored"),
        (60, 0, "stored"),
        (59, 60, "host"),
        (59, 59, "files"),
        (59, None, "host"),  # nobody says what the host has
        (17, 60, "host"),
    ],
)
def test_a_gpu_takes_the_fastest_placement_that_it_and_its_host_have_room_for(memory, host, expected):
    assert fastest(SIZES, 10, 7, memory, host) == expected


def test_a_model_without_room_is_one_line():
    with pytest.raises(UserError, match=r"need about 3\.5 GiB, there are 3\.0 GiB"):
        fastest({"device": 2**30}, 3 * 2**30, 2**29, 3 * 2**30, None)


def test_without_memory_a_device_says_itself_what_it_has(intern, monkeypatch):
    model, vectors = intern.model(), intern.task_vectors
    fixed = fixed_bytes(vectors, model, EngineOptions(), torch.float32)
    stored = held_bytes(vectors, None)
    for there, given, kind in (
        (fixed + stored, None, "device"),
        (fixed, None, "files"),
        (fixed + stored, fixed, "files"),
    ):
        monkeypatch.setattr(placement, "room", lambda device, there=there: there)
        assert place(vectors, model, EngineOptions(given)).kind == kind


def test_what_a_container_leaves_of_its_limit_bounds_the_host(tmp_path, monkeypatch):
    free = memory.available()
    assert free is not None and memory._left_in_group(tmp_path) == []
    (tmp_path / "memory.current").write_text("300\n")
    for limit, left in (("max\n", []), ("1000\n", [700]), ("200\n", [0])):
        (tmp_path / "memory.max").write_text(limit)
        assert memory._left_in_group(tmp_path) == left
    monkeypatch.setattr(memory, "_left_in_group", lambda: [700])
    assert memory.available() == 700


# ---- what is fetched ahead
BACKWARD, FORWARD = "dcba", "abcd"


@pytest.mark.parametrize("order", [BACKWARD, BACKWARD + FORWARD])
def test_early_in_the_second_round_everything_is_there_before_it_is_asked_for_and_fetched_once(order):
    """A backward a step; with a bound on the gradient, a rewriting after it."""
    fetched = []
    prefetch = Prefetch(lambda name: fetched.append(name) or name)
    ahead, asked = [], order * 6
    for name in asked:
        ahead.append(bool(fetched) and len(fetched) > len(ahead))
        assert prefetch.take(name) == name
    learned = len(order) + 2  # the second round's first two names come after a pair not seen before
    assert all(ahead[learned:])
    assert "".join(fetched[-2 * len(order) - 1 : -1]) == order * 2  # in order, none twice, one ahead


def test_a_wrong_guess_is_fetched_anew():
    prefetch = Prefetch(str.upper)
    assert [prefetch.take(name) for name in "abcabcacbcab"] == list("ABCABCACBCAB")


@pytest.mark.parametrize("order", [BACKWARD, BACKWARD + FORWARD])
def test_no_more_values_are_alive_than_are_counted(order):
    """As a streamed placement uses it: the value in use, the one ahead, and the one before, which the GPU may still
    be reading."""
    alive = set()

    class Value:
        def __init__(self, name):
            self.key = (name, next(numbers))
            alive.add(self.key)

        def __del__(self):
            alive.discard(self.key)

    numbers, before, most = itertools.count(), None, 0
    prefetch = Prefetch(Value)
    for name in order * 5:
        value = prefetch.take(name)
        most = max(most, len(alive))
        before, value = value, None
    assert before is not None and most <= MOVING


def test_on_a_gpu_the_host_holds_two_models_while_an_expert_is_asked(intern):
    """The base, aside, and the teacher on its way: whatever --memory says of the device."""
    vectors, calibration = intern.task_vectors, Samples(samples=2, max_new_tokens=5, response_tokens=3)
    numel = sum(vectors.base.read(name).numel() for name in vectors.base.names)
    kept = 4 * len(vectors.experts) * (2 * 5) * 2 * 16
    for engine, width in ((EngineOptions(), 4), (EngineOptions(memory=1, dtype="bfloat16"), 2)):
        given = (registry()["expert_merging"], vectors, {"hidden_size": 16}, calibration, engine)
        found = resources.estimate(*given, "cuda")
        without = resources.estimate(registry()["task_arithmetic"], *given[1:], "cuda").memory - resources.LIBRARIES
        assert found.memory - resources.LIBRARIES == max(without, 2 * width * numel + kept)
        assert found.memory - resources.LIBRARIES > without and found.disk == resources.size(vectors.base) + kept
