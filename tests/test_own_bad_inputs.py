"""``emkit merge`` and bad input: one clear line, status 2, before any work, and nothing written."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import own_models as own
import pytest
import tiny_models as tiny
import torch
import yaml
from test_files import in_child

from emkit import cli
from emkit.own import resources

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return own.write_models(tmp_path_factory.mktemp("models"))


def listing(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


@pytest.fixture
def refuses(tmp_path, capsys, monkeypatch):
    """Check that arguments are refused in one line that contains ``match``, before a weight is read in full."""

    def check(arguments, match, work=False):
        before = listing(tmp_path)
        with monkeypatch.context() as patch:
            if not work:
                patch.setattr("emkit.own.merge.run", None)
            try:
                status = cli.main(arguments)
            except SystemExit as stop:  # argparse's own
                status = stop.code
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        others = [line for line in printed.err.splitlines() if not line.startswith(("error: ", "reading "))]
        assert status == 2 and len(lines) == 1 and match in lines[0], printed.err
        assert work or not others, others
        assert listing(tmp_path) == before and printed.out == ""

    return check


def edited(models: Path, folder: Path, **changes) -> str:
    """A recipe file of which some keys are changed, or (None) left out."""
    data = {
        "method": "task_arithmetic",
        "base": str(models / "base"),
        "experts": {name: str(models / name) for name in own.EXPERTS},
        "out": str(folder / "out"),
        **changes,
    }
    file = folder / "merge.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))
    return str(file)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"method": "tis"}, "merge.yaml: method: unknown method 'tis': did you mean 'ties'?"),
        ({"method": "checkpoint"}, "unknown method 'checkpoint'"),
        ({"method": None}, "merge.yaml: the key 'method' is missing"),
        ({"backbone": "internvll"}, "unknown backbone 'internvll': did you mean 'internvl'?"),
        ({"experst": {}}, "merge.yaml: unknown key 'experst': did you mean 'experts'?"),
        ({"experts": "models/math"}, "experts: 'models/math' is not a mapping"),
        ({"experts": {}}, "experts: no expert is named"),
        ({"experts": {"base": "x"}}, "an expert cannot be called 'base'"),
        ({"scale": "0.3x"}, "scale: '0.3x' is not a number"),
        ({"scale": True}, "scale: True is not a number"),
        ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ({"method": "weight_average", "scale": 0.3}, "the method weight_average has no free scale: leave it out"),
        ({"method": "tsv", "scale": 0.3}, "no free scale: its factor is the option `scale`"),
        ({"method": "ties", "options": {"densty": 0.2}}, "options: unknown key 'densty': did you mean 'density'?"),
        ({"method": "ties", "options": {"density": "most"}}, "options.density: 'most' is not a number"),
        ({"method": "ties", "options": {"density": 2}}, "options.density: 2 is more than 1"),
        ({"options": {"density": 0.2}}, "the method task_arithmetic has no options"),
        ({"options": []}, "options: [] is not a mapping"),
        ({"tokenizer": "maht"}, "tokenizer: 'maht' is neither base nor an expert: did you mean 'math'?"),
        ({"allow": ["rotray"]}, "allow[0]: unknown value 'rotray': did you mean 'rotary'?"),
        ({"tensors": "some"}, "tensors: unknown value 'some'"),
        ({"backbone": "internvl"}, "the backbone internvl does not read a 'llama': leave it out, or say causal_lm"),
        ({"backbone": "qwen2_vl"}, "the backbone qwen2_vl does not read a 'llama'"),
        ({"device": "cudda"}, "device: torch has no 'cudda' here"),
        ({"base": "no/such/folder"}, "the base: there is no folder no/such/folder"),
    ],
)
def test_a_recipe_with_a_mistake(models, tmp_path, refuses, changes, match):
    refuses(["merge", edited(models, tmp_path, **changes)], match)


def learned(models, **changes):
    files = {name: str(models / f"{name}.jsonl") for name in own.EXPERTS}
    return {"method": "expert_merging", "calibration": {"files": files, **changes.pop("calibration", {})}, **changes}


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"options": {"optimiser": {"stpes": 3}}}, "options.optimiser: unknown key 'stpes': did you mean 'steps'?"),
        ({"options": {"optimiser": 3}}, "options.optimiser: 3 is not a mapping"),
        ({"options": {"beta": {"maths": 1.0}}}, "options.beta: unknown expert 'maths': did you mean 'math'?"),
        ({"options": {"initial": {"math": 0.1}}}, "options.initial: the expert 'code' has no value"),
        ({"options": {"initial": 0.1}, "scale": 0.2}, "`scale` is where the fit starts, and so is `options.initial`"),
        ({"calibration": {"files": {}}}, "expert_merging learns from prompts: the expert 'code' has none"),
        ({"calibration": {"sample": 3}}, "calibration: unknown key 'sample': did you mean 'samples'?"),
        ({"calibration": {"samples": 4}}, "code.jsonl has 3 prompts for the 4 samples of expert 'code'"),
        ({"tensors": "all"}, "learns coefficients of the backbone's tensors only"),
    ],
)
def test_a_recipe_of_a_learned_method_with_a_mistake(models, tmp_path, refuses, changes, match):
    refuses(["merge", edited(models, tmp_path, **learned(models, **changes))], match)


@pytest.mark.parametrize(
    "content, match",
    [
        ("", "the calibration set of task 'math' is empty"),
        ("What is this?", "line 1: not of the form"),
        ('{"prompt": 3}', "line 1: the question is not text"),
        ('{"image": "none.png", "question": "?"}', "line 1: there is no image"),
        ('{"image": "math.jsonl", "question": "?"}', "has images, but the backbone causal_lm sees none"),
        (None, "cannot read"),
    ],
)
def test_a_bad_calibration_file(models, tmp_path, refuses, content, match):
    damaged = own.copied(models, tmp_path)
    (damaged / "math.jsonl").unlink()
    if content is not None:
        (damaged / "math.jsonl").write_text(content)
    refuses(["merge", edited(damaged, tmp_path, **learned(damaged))], match)


@pytest.mark.parametrize(
    "content, match",
    [
        ("method: [", "not valid YAML"),
        ("just words", "this is no recipe"),
        ("method: ties\nmethod: ties\n", "the key 'method' stands here twice"),
        (None, "the recipe: cannot read"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, refuses, content, match):
    if content is not None:
        (tmp_path / "merge.yaml").write_text(content)
    refuses(["merge", str(tmp_path / "merge.yaml")], match)


@pytest.mark.parametrize(
    "more, match",
    [
        (["--sclae", "0.3"], "no such option '--sclae'. (Did you mean one of: '--cache', '--place', '--scale'?)"),
        (["--scale", "many"], "invalid value for '--scale': 'many' is not a valid float"),
        (["--option", "density"], "--option density is not of the form KEY=VALUE"),
        (["--option", "density=0.2"], "command line: options: the method task_arithmetic has no options"),
        (["--option", "a.b=1", "--option", "a=[1"], "--option a, line 1: not valid YAML"),
        (["--expert", "math=elsewhere"], "two experts are called 'math'"),
        (["--expert", "=elsewhere"], "is not of the form NAME=MODEL or MODEL"),
        (["--calibration", "math"], "--calibration math is not of the form NAME=FILE"),
        (["--calibration", "maht=a.jsonl"], "calibration.files: unknown expert 'maht': did you mean 'math'?"),
    ],
)
def test_flags_with_a_mistake(models, tmp_path, refuses, more, match):
    refuses([*own.flags(models, tmp_path / "out"), *more], match)


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["merge"], "--base is missing"),
        (["merge", "--base", "a", "--method", "ties", "--out", "b"], "--expert is missing"),
        (["merge", "/", "--base", "a"], "/ is a folder, not a recipe: an expert is given with --expert"),
        (["init", "--backbone", "lama"], "unknown backbone 'lama'"),
        (["merg"], "no such command 'merg'. Did you mean 'merge'?"),
        (["init", "--method", "ties2"], "unknown method 'ties2': did you mean 'ties'?"),
        (["coefficients", "show", "nowhere"], "there is no nowhere"),
    ],
)
def test_commands_with_a_mistake(refuses, arguments, match):
    refuses(arguments, match)


def test_files_of_a_recipe_that_are_no_mapping_and_flags(models, tmp_path, refuses):
    file = edited(models, tmp_path, method="expert_merging", calibration={"files": ["math.jsonl"]})
    refuses(["merge", file, "--calibration", "math=math.jsonl"], "files: ['math.jsonl'] is not a mapping")


def drop_shard(models):
    sorted((models / "code").glob("*-of-*.safetensors"))[1].unlink()


def pickle_weights(models):
    (models / "math" / "model.safetensors").rename(models / "math" / "pytorch_model.bin")


def truncate(models):
    file = models / "math" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def another_model(models, **changes):
    shutil.rmtree(models / "math")
    tiny.save(tiny.language_model(**changes), models / "math", dtype=torch.bfloat16)


def config(models, **changes):
    own.set_json(models / "math" / "config.json", **changes)


def other_words(models):
    file = models / "math" / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    a, b = '"a":', '"b":'
    file.write_text(text.replace(a, '"SWAP":').replace(b, a).replace('"SWAP":', b), encoding="utf-8")


DAMAGE = {
    "a pickled checkpoint": (pickle_weights, "holds pickled weights (pytorch_model.bin)"),
    "a truncated file": (truncate, "model.safetensors is not a whole safetensors file"),
    "a missing shard": (drop_shard, "which the index names, is missing"),
    "another shape": (
        lambda m: own.rewrite(m / "math", {DOWN: torch.zeros(16, 31, dtype=torch.bfloat16)}),
        f"expert 'math' ({{models}}/math) does not fit the base ({{models}}/base): '{DOWN}' has shape [16, 31]",
    ),
    "a tensor less": (lambda m: own.rewrite(m / "math", {DOWN: None}), f"it lacks '{DOWN}'"),
    "an expert that is the base": (
        lambda m: (shutil.rmtree(m / "math"), shutil.copytree(m / "base", m / "math")),
        "expert 'math' ({models}/math) is identical to the base in every tensor that is merged",
    ),
    "another width": (lambda m: another_model(m, hidden_size=32), "width (hidden_size) 32, the base's 16"),
    "more blocks": (lambda m: another_model(m, blocks=3), "blocks (num_hidden_layers) 3, the base's 2"),
    "another family": (lambda m: another_model(m, kind="qwen2"), "it is a qwen2, the base a llama"),
    "another vocabulary": (other_words, "mismatched vocabularies, token 69 is 'b' there and 'a' in the base"),
    "other heads": (lambda m: config(m, num_key_value_heads=2), "key and value heads (num_key_value_heads) 2"),
    "a tied head": (
        lambda m: config(m, tie_word_embeddings=True),
        "expert 'math' ({models}/math) has a lm_head.weight that is not its embedding, yet says it is tied to it",
    ),
    "other positions": (
        lambda m: config(m, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
        "so its weights expect other positions; `--allow rotary` merges all the same",
    ),
    "a quantised model": (
        lambda m: config(m, quantization_config={"bits": 4}),
        "({models}/math) is quantised",
    ),
    "no configuration": (lambda m: (m / "math" / "config.json").unlink(), "has no usable config.json"),
    "an empty folder": (
        lambda m: (shutil.rmtree(m / "math"), (m / "math").mkdir()),
        "has no usable config.json",
    ),
    "a kind that nothing reads": (
        lambda m: own.set_json(m / "base" / "config.json", model_type="bert"),
        "it is a llama, the base a bert",
    ),
    "a damaged tokenizer": (
        lambda m: (m / "math" / "tokenizer.json").write_text("{"),
        "tokenizer.json cannot be read (",
    ),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_models_that_cannot_be_merged(models, tmp_path, refuses, kind):
    damage, match = DAMAGE[kind]
    damaged = own.copied(models, tmp_path)
    damage(damaged)
    refuses(own.flags(damaged, tmp_path / "out"), match.format(models=damaged))


@pytest.mark.parametrize("allow, damage", [("rotary", "other positions"), ("identical", "an expert that is the base")])
def test_what_may_be_allowed(models, tmp_path, allow, damage):
    damaged = own.copied(models, tmp_path)
    DAMAGE[damage][0](damaged)
    assert cli.main([*own.flags(damaged, tmp_path / "out"), "--allow", allow, "--dry-run"]) == 0


@pytest.mark.parametrize("owner", ["base", "math"])
@pytest.mark.parametrize("value, words", [(float("nan"), "contains NaN"), (float("inf"), "contains infinity")])
def test_values_that_are_not_finite(models, tmp_path, refuses, owner, value, words):
    damaged = own.copied(models, tmp_path)
    bad = own.tensors(damaged / owner)[DOWN]
    bad[0, 0] = value
    own.rewrite(damaged / owner, {DOWN: bad})
    refuses(own.flags(damaged, tmp_path / "out"), f"{owner}: tensor '{DOWN}' {words}; nothing was written", work=True)


def test_a_kind_of_model_that_no_backbone_reads(models, tmp_path, refuses):
    damaged = own.copied(models, tmp_path)
    for name in ("base", *own.EXPERTS):
        own.set_json(damaged / name / "config.json", model_type="own_thing", auto_map={"AutoModel": "evil.Model"})
    refuses(own.flags(damaged, tmp_path / "out"), "emkit runs no model's own code")


def test_outputs_that_would_destroy_something(models, tmp_path, refuses):
    damaged = own.copied(models, tmp_path)
    refuses([*own.flags(damaged, damaged / "math"), "--overwrite"], "is one of the models to merge")
    (tmp_path / "file").write_text("kept")
    refuses(own.flags(damaged, tmp_path / "file"), "is a file: choose another output folder")
    refuses(own.flags(damaged, tmp_path / "file" / "out"), "a part of this path is a file")


@pytest.mark.parametrize("what", ["disk", "memory"])
def test_not_enough_room(models, tmp_path, refuses, monkeypatch, what):
    usage = shutil.disk_usage(tmp_path)
    if what == "disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    else:
        monkeypatch.setattr(resources, "available", lambda: 1000)
    refuses(own.flags(models, tmp_path / "out"), f"not enough {what}")
    assert cli.main([*own.flags(models, tmp_path / "out"), "--allow", what, "--dry-run"]) == 0


@pytest.mark.parametrize("method", ["task_arithmetic", "expert_merging"])
def test_a_full_disk_is_one_line_and_leaves_nothing_with_the_name(models, tmp_path, method):
    """A limit on file size stands in for the full disk: the system refuses the write in the same way."""

    def no_large_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    more = ["--samples", "1", "--option", "optimiser.steps=1"] if method == "expert_merging" else []
    # a process of its own, not a fork of this one: autograd refuses to work in a fork of a process that has used it
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "emkit.cli",
            *own.flags(models, tmp_path / "out", method, *more),
        ],
        preexec_fn=no_large_files,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "free some space" in lines[0]
    # the hidden folder has the finished shards, from which the same command goes on
    assert {file.name for file in tmp_path.iterdir()} <= {".emkit-cache", ".out.part"}


def test_a_read_only_folder_is_one_line(models):
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(models, folder / "models")
    for file in (folder, *folder.rglob("*")):
        file.chmod(0o755 if file.is_dir() else 0o644)
    (folder / "closed").mkdir()
    (folder / "closed").chmod(0o555)

    def write():
        if os.getuid() == 0:
            os.setuid(65534)  # nobody: root may write anywhere
        for out in (folder / "closed" / "out", folder / "closed" / "new" / "out"):
            read, end = os.pipe()
            sys.stderr = os.fdopen(end, "w")
            assert cli.main(own.flags(folder / "models", out)) == 2
            sys.stderr.close()
            text = os.fdopen(read).read()
            assert text.count("\n") == 1 and "permission denied: choose a folder" in text, text

    try:
        in_child(write)
        assert list((folder / "closed").iterdir()) == []
    finally:
        shutil.rmtree(folder)


def test_the_command_itself_says_one_line_and_ends_with_2(tmp_path):
    """As typed in a shell: no traceback, nothing from the libraries."""
    given = ["merge", "--base", "no/such/folder", "--expert", "a=b", "--method", "ties", "--out", str(tmp_path / "out")]
    found = subprocess.run([sys.executable, "-m", "emkit.cli", *given], capture_output=True, text=True)
    assert (
        found.returncode == 2 and found.stdout == "" and found.stderr.startswith("error: the base: there is no folder")
    )
    assert found.stderr.count("\n") == 1
