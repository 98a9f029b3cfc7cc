"""InternVL2.5's original layout: converted, scored, merged and written back as the authors' own code has it.

Numbers were got by running the authors' modelling code (OpenGVLab/InternVL, September 2025) and VLMEvalKit's picture
preparation on the checkpoints of ``published.py``; nothing of either is here.
"""

import json
import shutil

import pytest
import torch
from PIL import Image
from published import SPECIAL, internvl_chat, value
from safetensors.torch import load_file, save_file

from emkit import backbones, cli, originals
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.own.export import export

internvl = backbones.get("internvl")
NORMS = {"vision": {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}}
QUESTION = "What is in the picture?\nAnswer the thing."
SIZES = {1: (56, 56), 5: (200, 56), 13: (60, 50)}  # tiles: an image's width and height
# (norms, tiles): the last position's first six logits, the mean square of all, and the next token
LOGITS = {
    ("plain", 1): ([-1.7729, 1.3249, -1.0948, 0.465, -0.2312, -1.9128], 5.12988, 46),
    ("plain", 5): ([0.2739, -1.1961, 4.7344, -1.6123, 1.6999, -1.178], 5.08769, 85),
    ("plain", 13): ([-1.0113, -0.8489, 2.7656, 1.9937, -0.8217, 3.288], 5.10541, 103),
    ("norms", 1): ([-1.5047, 1.2926, -1.5399, 1.7385, -0.5732, -2.4978], 5.13633, 46),
    ("norms", 5): ([-0.9428, 0.4971, 3.1661, -0.0192, 1.2569, 0.521], 5.09826, 103),
    ("norms", 13): ([0.8134, 0.0847, 3.6016, 2.2032, 0.5185, 2.8444], 5.07583, 127),
}
IDS = {1: (225, 3972434), 5: (241, 4858170), 13: (273, 6833162)}  # tiles: tokens of the question, Σ place · id

# an image's size: its tiles, thumbnail included, where at most 6 and at most 12 are allowed (VLMEvalKit's wrapper)
TILES = {(640, 480): (7, 13), (375, 500): (7, 13), (1700, 2200): (7, 13), (200, 150): (7, 13), (850, 600): (7, 7)}
TILES |= {(448, 448): (1, 1), (900, 300): (4, 4), (120, 1000): (7, 9)}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return internvl_chat(tmp_path_factory.mktemp("original") / "plain")


@pytest.fixture
def experts(plain, tmp_path):
    return {name: internvl_chat(tmp_path / name, seed, like=plain) for seed, name in enumerate(("VQA", "Chart"), 1)}


@pytest.mark.parametrize("kind, tiles", LOGITS)
def test_logits_are_those_of_the_authors_code(kind, tiles, tmp_path):
    folder = originals.readable(internvl_chat(tmp_path / kind, **(NORMS if kind == "norms" else {})))
    model, processor = internvl.load(folder)
    batch = internvl.encode(processor, [Image.new("RGB", SIZES[tiles])], [QUESTION])
    ids = batch["input_ids"]
    assert (ids.shape[1], int((ids * torch.arange(1, ids.shape[1] + 1)).sum())) == IDS[tiles]
    assert batch["pixel_values"].shape == (tiles, 3, 56, 56)
    with torch.no_grad():
        pixels = value(f"pixels {tiles}", (tiles, 3, 56, 56))
        logits = internvl.forward(model, batch | {"pixel_values": pixels}).logits
    first, square, token = LOGITS[kind, tiles]
    assert logits[0, -1, :6].tolist() == pytest.approx(first, abs=2e-4)
    assert float(logits.double().square().mean()) == pytest.approx(square, abs=2e-5)
    assert int(logits[0, -1].argmax()) == token


@pytest.mark.parametrize("size, tiles", TILES.items())
def test_pictures_are_cut_as_the_wrapper_cuts_them(size, tiles):
    from transformers import GotOcr2ImageProcessor

    for most, expected in zip((6, 12), tiles, strict=True):
        cut = GotOcr2ImageProcessor(size={"height": 448, "width": 448}, crop_to_patches=True, max_patches=most)
        assert cut.get_number_of_image_patches(size[1], size[0], {}) == expected
        assert len(cut(Image.new("RGB", size), return_tensors="pt")["pixel_values"]) == expected


def test_the_system_turn_stands_before_a_question_without_a_picture(plain):
    processor = internvl.processor(originals.readable(plain))
    said = processor.tokenizer.decode(internvl.encode(processor, [None], ["the thing"])["input_ids"][0])
    assert said == (
        "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
        "<|im_end|>\n<|im_start|>user\nthe thing<|im_end|>\n<|im_start|>assistant\n"
    )


def test_answers_end_where_the_authors_end_them_whatever_the_folder_says(plain):
    """Its generation_config.json names <|im_start|>; the authors' ``chat`` passes <|im_end|>."""
    model, processor = internvl.load(originals.readable(plain))
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == end == processor.tokenizer.eos_token_id


def test_a_conversion_is_made_once_and_again_when_the_model_is_another(plain, tmp_path, cache):
    own = internvl_chat(tmp_path / "own")
    first = originals.readable(own)
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert originals.readable(own) == first and (first / "model.safetensors").stat().st_mtime_ns == made
    tensors = load_file(own / "model.safetensors")
    tensors["mlp1.1.bias"] += 1
    save_file(tensors, own / "model.safetensors", {"format": "pt"})
    second = originals.readable(own)
    assert second != first
    read = Checkpoint.open(second).read("multi_modal_projector.linear_1.bias")
    assert torch.equal(read, tensors["mlp1.1.bias"])
    assert {path.name for path in originals.cache().iterdir()} == {first.name, second.name}  # nothing is left of it


@pytest.mark.parametrize("damage", ["a bit", "a zeroed head", "a lost file", "a planted file", "another setting"])
def test_a_conversion_that_is_not_as_it_was_written_is_made_again(plain, damage, capsys):
    """The cache is believed by its hashes: a disk that damaged it must not change a merge in silence."""
    folder = originals.readable(plain)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "a bit":
        data[-5] ^= 1
    elif damage == "a zeroed head":
        data[:4096] = bytes(4096)
    weights.write_bytes(data)
    if damage == "a lost file":
        (folder / "generation_config.json").unlink()
    elif damage == "a planted file":
        (folder / "added_tokens.json").write_text("{}")
    elif damage == "another setting":
        (folder / "config.json").write_bytes(whole["config.json"].replace(b"56", b"28"))
    capsys.readouterr()
    assert originals.readable(plain) == folder
    assert "is not as it was written; it is converted again" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole
    originals.readable(plain)
    assert "converted" not in capsys.readouterr().err


def test_what_is_written_back_is_what_there_was(plain, tmp_path):
    out = tmp_path / "back"
    assert export(originals.readable(plain), plain, out) == 77
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (plain, out))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)
    for file in plain.iterdir():
        if file.suffix != ".safetensors":
            assert (out / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_merge_is_that_of_the_tensors_in_their_own_layout_and_can_be_written_in_it(plain, experts, tmp_path, capsys):
    """7 × blocks + 3 tensors are θ_base + λ Σ τ; all others the base's, to the last bit."""
    given = [part for name, folder in experts.items() for part in ("--expert", f"{name}={folder}")]
    given = ["merge", "--base", str(plain), *given, "--method", "task_arithmetic", "--scale", "0.5"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 0
    assert "a forward pass of transformers' own class gives finite logits" in capsys.readouterr().out
    assert cli.main(["export", str(tmp_path / "out"), "--like", str(plain), "--out", str(tmp_path / "back")]) == 0
    base, found, *others = (load_file(f / "model.safetensors") for f in (plain, tmp_path / "back", *experts.values()))
    merged = [f"mlp1.{i}.weight" for i in (0, 1, 3)]
    merged += [name for name in base if "layers" in name and name.endswith("_proj.weight") and "language" in name]
    assert len(merged) == 7 * 3 + 3
    for name, tensor in base.items():
        expected = tensor + 0.5 * sum(other[name] - tensor for other in others) if name in merged else tensor
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6 if name in merged else 0)


def test_learned_coefficients_and_a_chat(plain, experts, tmp_path, capsys):
    Image.new("RGB", (60, 50), (200, 30, 30)).save(tmp_path / "red.png")
    lines = [{"prompt": "What is the thing?", "image": "red.png"}, {"prompt": "And in the end?"}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["merge", "--base", str(plain), "--method", "expert_merging", "--out", str(tmp_path / "out")]
    for name, folder in experts.items():
        given += ["--expert", f"{name}={folder}", "--calibration", f"{name}={tmp_path / 'asked.jsonl'}"]
    assert cli.main([*given, "--option", "optimiser.steps=3"]) == 0
    report = json.loads((tmp_path / "out" / "emkit_merge.json").read_text())
    assert report["backbone"] == "internvl" and report["merged_tensors"] == 24
    capsys.readouterr()
    assert cli.main(["chat", str(plain), "--image", str(tmp_path / "red.png"), "--ask", "What?"]) == 0


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"llm_config": {"architectures": ["InternLM2ForCausalLM"]}}, "its language model is a InternLM2ForCausalLM"),
        ({"select_layer": -4}, "takes the vision tower's layer -4"),
        ({"ps_version": "v1"}, "its pixel shuffle is v1"),
        ({"use_thumbnail": False}, "cuts images without a thumbnail"),
        ({"use_llm_lora": 16}, "LoRA matrices are still apart"),
        ({"template": "phi3-chat"}, "its conversation 'phi3-chat' is not known"),
    ],
)
def test_variants_that_transformers_class_does_otherwise_are_refused(changes, words, tmp_path):
    folder = internvl_chat(tmp_path / "other", **changes)
    with pytest.raises(UserError, match=words):
        originals.readable(folder)
    assert not originals.cache().exists() or not list(originals.cache().glob("other-*"))


def test_no_room_is_said_before_anything_is_written(plain, cache, monkeypatch):
    usage = shutil.disk_usage(cache)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="no room to convert"):
        originals.readable(plain)
    assert not list(cache.rglob("*.safetensors"))


def test_a_code_file_that_the_configuration_names_has_to_be_there(plain, tmp_path):
    lacking = internvl_chat(tmp_path / "lacking")
    (lacking / "modeling_internvl_chat.py").unlink()
    with pytest.raises(UserError, match=r"has no modeling_internvl_chat\.py, which its config\.json names"):
        export(originals.readable(plain), lacking, tmp_path / "back")


@pytest.mark.parametrize("lost", ["vision_model.encoder.layers.1.attn.qkv.weight", "language_model.lm_head.weight"])
def test_a_tensor_that_is_missing_is_named(lost, plain, experts, tmp_path, capsys):
    tensors = load_file(experts["VQA"] / "model.safetensors")
    del tensors[lost]
    save_file(tensors, experts["VQA"] / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="does not fit the layout"):
        export(originals.readable(experts["VQA"]), plain, tmp_path / "back")


def test_a_tokenizer_without_the_image_mark_is_refused(tmp_path):
    folder = internvl_chat(tmp_path / "text")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    gone = str(max(int(i) for i, entry in settings["added_tokens_decoder"].items() if entry["content"] == SPECIAL[5]))
    del settings["added_tokens_decoder"][gone]
    settings["additional_special_tokens"].remove(SPECIAL[5])
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    added = json.loads((folder / "added_tokens.json").read_text())
    del added[SPECIAL[5]]
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "special_tokens_map.json").unlink()
    with pytest.raises(UserError, match="does not know <IMG_CONTEXT>"):
        originals.readable(folder)
