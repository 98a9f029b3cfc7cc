"""Checkpoints: lazily read safetensors, refused pickles, one clear line for every broken one."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from emkit import backbones, checkpoints
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.saving import write_checkpoint
from emkit.task_vectors import TaskVectors

internvl = backbones.get("internvl")

TENSORS = {
    "a": torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.bfloat16),
    "b": torch.arange(5, dtype=torch.float16),
    "c": torch.tensor([-0.0, 1e-30]),
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    save_file(TENSORS, path / "model.safetensors")
    (path / "config.json").write_text("{}")
    (path / "card.json").write_text('{"of": "this very model"}')
    (path / "tokenizer.json").write_text('{"tokens": []}')
    return path


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def rewrite(path, **changes):
    """Rewrite a checkpoint with some of its tensors changed (None removes)."""
    tensors = load_file(path / "model.safetensors") | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, path / "model.safetensors")


def test_reads_what_safetensors_wrote(folder):
    found = Checkpoint.open(folder)
    assert found.names == ["a", "b", "c"]
    assert found.info("a") == checkpoints.TensorInfo(torch.bfloat16, (2, 2))
    for name, tensor in TENSORS.items():
        assert found.read(name).dtype == tensor.dtype and torch.equal(found.read(name), tensor)


def test_hash_is_over_name_dtype_shape_and_bytes_and_blind_to_shards(folder, tmp_path):
    digest = hashlib.sha256()
    for name, shape, raw in (
        ("a torch.bfloat16", [2, 2], TENSORS["a"].view(torch.int16).numpy().tobytes()),
        ("b torch.float16", [5], TENSORS["b"].numpy().tobytes()),
        ("c torch.float32", [2], TENSORS["c"].numpy().tobytes()),
    ):
        digest.update(f"{name} {shape}\n".encode() + raw)
    like = Checkpoint.open(folder)
    assert like.sha256() == digest.hexdigest()
    write_checkpoint(tmp_path / "sharded", like.read, like, shard_bytes=10)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) == 3
    assert Checkpoint.open(tmp_path / "sharded").sha256() == like.sha256()


def test_writes_tensors_with_side_files_but_neither_card_nor_log_of_another_model(folder, tmp_path):
    like = Checkpoint.open(folder)
    write_checkpoint(tmp_path / "out", TENSORS.get, like, card="# merged")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert Checkpoint.open(tmp_path / "out").sha256() == like.sha256()


@pytest.mark.parametrize("value, word", [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_not_finite_weights_are_never_written(folder, tmp_path, value, word):
    bad = TENSORS | {"b": torch.full((5,), value, dtype=torch.float16)}
    with pytest.raises(UserError, match=f"'b' contains {word}") as error:
        write_checkpoint(tmp_path / "out", bad.get, Checkpoint.open(folder))
    one_line(error)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_writing_other_tensors_than_those_of_like_is_a_bug(folder, tmp_path):
    like = Checkpoint.open(folder)
    for bad in (TENSORS | {"b": TENSORS["b"].float()}, TENSORS | {"b": torch.zeros(4).half()}):
        with pytest.raises(ValueError, match="'b' is "):
            write_checkpoint(tmp_path / "out", bad.get, like)
    assert not (tmp_path / "out").exists()


def test_a_pickled_checkpoint_is_refused(tmp_path):
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled weights \(pytorch_model.bin\).*convert") as error:
        Checkpoint.open(tmp_path)
    one_line(error)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_is_one_line(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model.safetensors is not a whole safetensors file") as error:
        Checkpoint.open(folder)
    one_line(error)


def test_a_missing_folder_and_an_empty_one_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Checkpoint.open(tmp_path / "none")
    with pytest.raises(UserError, match=r"neither model.safetensors nor"):
        Checkpoint.open(tmp_path)


def test_a_broken_index_is_one_line(folder):
    index = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    for content, match in (
        ("{", "is not a safetensors index"),
        ('{"weight_map": []}', "is not a safetensors index"),
        (json.dumps({"weight_map": {"a": "model-2.safetensors"}}), "shard model-2.safetensors.*is missing"),
        (
            json.dumps({"weight_map": {"z": "model-1.safetensors"}}),
            "'z' is in the index but not in model-1.safetensors",
        ),
    ):
        index.write_text(content)
        with pytest.raises(UserError, match=match) as error:
            Checkpoint.open(folder)
        one_line(error)


def shard(folder, tensors: dict[str, torch.Tensor]) -> None:
    """Lay ``tensors`` beside what is in the folder, as two shards with an index."""
    weight_map = {}
    for number, name in enumerate(sorted(tensors)):
        weight_map[name] = f"model-{number % 2 + 1:05d}-of-00002.safetensors"
    for file in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_single_file_comes_before_an_index_as_in_transformers(folder):
    """Two sets of weights are refused, both named; the same set twice, or the rest of one, is no second set."""
    own = load_file(folder / "model.safetensors")
    shard(folder, own)
    assert torch.equal(Checkpoint.open(folder).read("a"), own["a"])
    name = min(own)
    for other in (
        {**own, name: own[name] + 1},
        {key: value for key, value in own.items() if key != name},
        {**own, name: own[name].double()},
        {**own, "z": torch.zeros(2)},
    ):
        shard(folder, other)
        with pytest.raises(
            UserError, match=r"two different sets.*model.safetensors .*model.safetensors.index.json"
        ) as e:
            Checkpoint.open(folder)
        one_line(e)
    (folder / "model-00001-of-00002.safetensors").unlink()
    found = Checkpoint.open(folder)
    assert found.names == sorted(own) and all(torch.equal(found.read(key), own[key]) for key in own)
    for index in ('{"weight_map": {"a": "model.safetensors"}}', "{"):
        (folder / "model.safetensors.index.json").write_text(index)
        assert Checkpoint.open(folder).names == sorted(own)


def merged_ab(names):
    return [name for name in names if name in ("a", "b")]


@pytest.mark.parametrize(
    "change, match",
    [
        ({"b": torch.zeros(4).half()}, r"expert 'OCR' .*'b' has shape \[4\], the base's has \[5\]"),
        ({"a": None}, "expert 'OCR' .*lacks 'a', which is merged$"),
        ({"a": None, "z": torch.zeros(1)}, r"lacks 'a', which is merged \(it has 'z', which the base lacks\)"),
    ],
)
def test_an_expert_that_does_not_fit_the_base_is_one_line(folder, tmp_path, change, match):
    shutil.copytree(folder, tmp_path / "expert")
    rewrite(tmp_path / "expert", **change)
    with pytest.raises(UserError, match=match) as error:
        TaskVectors(Checkpoint.open(folder), {"OCR": Checkpoint.open(tmp_path / "expert")}, merged_ab)
    one_line(error)


@pytest.mark.parametrize("change", [{"c": None}, {"c": torch.zeros(9)}, {"z": torch.zeros(1)}])
def test_tensors_that_are_not_merged_need_not_fit(folder, tmp_path, change):
    shutil.copytree(folder, tmp_path / "expert")
    rewrite(tmp_path / "expert", **change)
    vectors = TaskVectors(Checkpoint.open(folder), {"OCR": Checkpoint.open(tmp_path / "expert")}, merged_ab)
    assert vectors.names == ["a", "b"] and not vectors.tau("a").any()


def test_a_checkpoint_under_other_names(folder, tmp_path):
    """It reads the same tensors, and its hash stays that of what is stored."""
    stored = Checkpoint.open(folder)
    found = stored.renamed({"x.a": "a", "x.b": "b"})
    assert found.names == ["x.a", "x.b"] and torch.equal(found.read("x.a"), TENSORS["a"])
    assert found.info("x.b") == stored.info("b") and found.sha256() == stored.sha256()
    seen = {}
    found.scan("here", seen.__setitem__)
    assert set(seen) == {"x.a", "x.b", "c"} and torch.equal(seen["x.b"], TENSORS["b"])
    with pytest.raises(KeyError):
        found.read("a")


def test_nan_in_an_expert_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "expert")
    rewrite(tmp_path / "expert", a=torch.full((2, 2), float("nan"), dtype=torch.bfloat16))
    vectors = TaskVectors(Checkpoint.open(folder), {"OCR": Checkpoint.open(tmp_path / "expert")}, merged_ab)
    with pytest.raises(UserError, match=r"expert: tensor 'a' contains NaN"):
        vectors.tau("a")


def test_task_vectors_are_differences(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "expert")
    rewrite(tmp_path / "expert", a=torch.tensor([[1.5, -2.0], [0.25, 3.5]], dtype=torch.bfloat16))
    vectors = TaskVectors(Checkpoint.open(folder), {"OCR": Checkpoint.open(tmp_path / "expert")}, merged_ab)
    expected = np.array([[[0.5, 0.0], [-0.25, 0.5]]], dtype=np.float32)
    assert vectors.tau("a").dtype == torch.float32
    np.testing.assert_array_equal(vectors.tau("a").numpy(), expected)
    assert vectors.numel("a") == 4


def test_merged_names_are_seven_a_block_and_three_in_every_layout(tiny_zoo):
    """24 × 7 + 3 = 171 for InternVL2.5-1B, by the published names; the same rule on our own checkpoints."""
    original = [f"language_model.model.layers.{i}.{part}" for i in range(24) for part in PARTS]
    original += [f"mlp1.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")]
    original += ["language_model.lm_head.weight", "language_model.model.embed_tokens.weight"]
    original += ["language_model.model.norm.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"]
    assert len(internvl.merged_names(original)) == 171
    on_disk = internvl.merged_names(Checkpoint.open(tiny_zoo / "base").names)
    model, _ = internvl.load(tiny_zoo / "base")
    in_memory = internvl.merged_names(name for name, _ in model.named_parameters())
    assert len(on_disk) == len(in_memory) == 7 * 3 + 3
    assert sorted(map(internvl.parameter_name, on_disk)) == sorted(in_memory)


PARTS = [
    *(f"self_attn.{x}_proj.{kind}" for x in "qkv" for kind in ("weight", "bias")),
    *("self_attn.o_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"),
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
]
