"""What others wrote: no side file, recipe or template is a traceback, hangs, or brings in what lies elsewhere."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import own_models as own
import published
import pytest
from test_own_adapters import DOWN, Q, write_adapter

from emkit import cli, foreign
from emkit.bounds import bounded
from emkit.errors import UserError
from emkit.own import hub
from emkit.schema import load_yaml

WRONG = [None, [], {}, "", "x", -1, 1.5, True, 10**30, float("nan"), [[[]]], {"a": {"b": [1]}}, "\ud800", "a/b"]
RAW = [b"", b"{", b"\xff\xfe", b"[" * 5000, b'{"a":' * 3000, b"null", b'{"\\ud800": 1}', b'{"a": 1e999}', b"\x00" * 9]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = own.write_models(tmp_path_factory.mktemp("foreign") / "models")
    write_adapter(folder / "lora", None, {Q: (16, 16), DOWN: (16, 32)})
    return folder


@pytest.fixture(autouse=True)
def faults(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "emkit" / "faults"


def check(arguments, capsys, faults) -> int:
    """Run a command: it succeeds, or says in one line what is wrong, and no fault of ours is behind it."""
    status = cli.main(arguments)
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (status, len(errors)) in {(0, 0), (2, 1)}, said
    assert not faults.exists(), "".join(file.read_text() for file in faults.iterdir())
    assert "Traceback" not in said
    return status


def dry(models: Path, out: Path, *experts: str) -> list[str]:
    named = [word for name in (*own.EXPERTS, *experts) for word in ("--expert", f"{name}={models / name}")]
    return ["merge", "--base", str(models / "base"), *named, "--method", "ties", "--out", str(out), "--dry-run"]


FILES = [
    ("base", "config.json"),
    ("base", "generation_config.json"),
    ("base", "tokenizer.json"),
    ("base", "tokenizer_config.json"),
    ("code", "model.safetensors.index.json"),
    ("lora", "adapter_config.json"),
]


@pytest.mark.parametrize(("who", "name"), FILES, ids=[name for _, name in FILES])
def test_no_wrong_value_of_a_side_file_is_a_traceback(models, tmp_path, capsys, faults, who, name):
    """Every key in turn with values of other kinds, and the whole file with other content."""
    mine = tmp_path / "models"
    shutil.copytree(models, mine)
    file = mine / who / name
    good = json.loads(file.read_bytes())
    cases = [*RAW, *(json.dumps(value).encode() for value in WRONG)]
    for number, key in enumerate(good):
        several = [WRONG[(number + step) % len(WRONG)] for step in (0, 5, 9)]  # all kinds come up over the keys
        cases += [json.dumps({**good, key: value}).encode() for value in several]
        cases.append(json.dumps({k: v for k, v in good.items() if k != key}).encode())
    refused = 0
    for case in cases:
        file.write_bytes(case)
        refused += check(dry(mine, tmp_path / "out", *([who] if who == "lora" else [])), capsys, faults) == 2
    assert len(RAW) - 2 <= refused < len(cases)  # the last two are mappings, in which a key or a value is odd


def test_a_library_that_panics_is_a_line(tmp_path, capsys, faults):
    """tokenizers is Rust: over a vocabulary with a hole it does not raise but panics, which is no Exception."""
    published.qwen2_vl(tmp_path / "base")
    for number, name in enumerate("ab", 1):
        published.qwen2_vl(tmp_path / name, seed=number, like=tmp_path / "base")
    words = json.loads((tmp_path / "base" / "vocab.json").read_text())
    given = ["merge", "--base", str(tmp_path / "base"), "--method", "ties", "--out", str(tmp_path / "out"), "--dry-run"]
    given += ["--expert", str(tmp_path / "a"), "--expert", str(tmp_path / "b")]
    assert check(given, capsys, faults) == 0
    for wrong in ({}, "a/b", True):
        (tmp_path / "base" / "vocab.json").write_text(json.dumps({**words, "Ġthe": wrong}))
        check(given, capsys, faults)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "added_tokens.json"])
def test_no_wrong_value_of_an_original_layout_is_a_traceback(tmp_path, capsys, faults, name, monkeypatch):
    """InternVL's own layout, which is read by emkit before transformers sees anything."""
    monkeypatch.setattr("emkit.bounds.SECONDS", 1.0)
    published.internvl_chat(tmp_path / "base")
    published.internvl_chat(tmp_path / "a", seed=1, like=tmp_path / "base")
    given = ["merge", "--base", str(tmp_path / "base"), "--method", "ties", "--out", str(tmp_path / "out"), "--dry-run"]
    given += ["--expert", str(tmp_path / "a")]
    file = tmp_path / "base" / name
    good = json.loads(file.read_bytes())
    parts = [[key] for key in good] + [
        [key, inner] for key in good if isinstance(good[key], dict) for inner in good[key]
    ]
    for number, path in enumerate(parts):
        content = json.loads(json.dumps(good))
        into = content
        for key in path[:-1]:
            into = into[key]
        into[path[-1]] = WRONG[number % len(WRONG)]
        file.write_text(json.dumps(content))
        check(given, capsys, faults)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_merge_with_wrong_values_ends_in_a_line(models, tmp_path, capsys, faults, name):
    """What a dry run lets pass, such as a wrong end token, is found when the result is checked."""
    mine = tmp_path / "models"
    shutil.copytree(models, mine)
    file = mine / "base" / name
    good = json.loads(file.read_bytes())
    for number, key in enumerate(good):
        file.write_text(json.dumps({**good, key: WRONG[number % len(WRONG)]}))
        if check(own.flags(mine, tmp_path / "out", "weight_average"), capsys, faults) == 0:
            shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "tokenizer_config.json"])
def test_a_file_that_is_none_is_refused_at_once(models, tmp_path, capsys, faults, kind, name):
    mine = tmp_path / "models"
    shutil.copytree(models, mine)
    file = mine / "math" / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        with open(file, "wb") as out:
            out.truncate(foreign.LARGEST + 1)
    start = time.monotonic()
    status = check(dry(mine, tmp_path / "out"), capsys, faults)
    assert status == 2 or (kind == "folder" and name != "config.json")  # the rest of a tokenizer does without
    assert time.monotonic() - start < 20


def test_a_link_out_of_a_model_s_folder_is_not_followed(models, tmp_path, capsys, faults):
    """A tokenizer's file that is a link to somebody's key would be copied into a model that is then uploaded."""
    secret = tmp_path / "id_rsa"
    secret.write_text("PRIVATE KEY")
    for name in ("added_tokens.json", "spm.model", "merges.txt"):
        mine = tmp_path / name
        shutil.copytree(models, mine)
        (mine / "base" / name).symlink_to(secret)
        assert check(own.flags(mine, tmp_path / "out", "weight_average"), capsys, faults) == 2
        assert not (tmp_path / "out").exists()
    mine = tmp_path / "unlisted"
    shutil.copytree(models, mine)
    (mine / "base" / "tokenizer.notes").symlink_to(secret)  # no file of a tokenizer: it is not taken
    out = own.merge(mine, tmp_path / "out", "weight_average")
    assert not [file for file in out.rglob("*") if file.is_file() and b"PRIVATE KEY" in file.read_bytes()]


def test_a_link_is_read_where_nothing_of_it_is_copied(models, tmp_path):
    """An expert's configuration that is its base's, a folder that data managers fill with links."""
    mine = tmp_path / "models"
    shutil.copytree(models, mine)
    for name in ("config.json", "tokenizer.json"):
        (mine / "math" / name).unlink()
        (mine / "math" / name).symlink_to("../base/" + name)
    own.merge(mine, tmp_path / "out", "weight_average")


def test_links_within_a_model_and_to_the_hub_s_blobs_are_files(models, tmp_path):
    folder = tmp_path / "models--user--model" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    for file in (models / "base").iterdir():
        blob = tmp_path / "models--user--model" / "blobs" / f"of-{file.name}"
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(file, blob)
        (folder / file.name).symlink_to(os.path.relpath(blob, folder))
    assert hub.folder(str(folder), "it", hub.SMALL) == folder
    foreign.check_inside(folder / "config.json", folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(models / "base" / "config.json")
    with pytest.raises(UserError, match=r"config\.json leads out of the model's folder"):
        foreign.check_inside(folder / "config.json", folder)
    for to in ("nowhere", "config.json"):  # and itself
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to(to)
        with pytest.raises(UserError, match="leads nowhere"):
            hub.folder(str(folder), "it", hub.SMALL)


def test_a_file_that_nobody_reads_may_be_anything(models, tmp_path):
    mine = tmp_path / "models"
    shutil.copytree(models, mine)
    (mine / "math" / "data_config.json").write_text("[1, 2]")
    with open(mine / "base" / "model.gguf", "wb") as file:
        file.truncate(foreign.LARGEST + 1)
    own.merge(mine, tmp_path / "out", "weight_average")


def test_a_recipe_may_come_through_a_pipe(models, tmp_path, capsys, faults):
    text = json.dumps({"base": str(models / "base"), "experts": {"math": str(models / "math")}, "method": "ties"})
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(text), daemon=True)
    writer.start()
    assert check(["merge", str(tmp_path / "pipe"), "--out", str(tmp_path / "out"), "--dry-run"], capsys, faults) == 0


def test_a_million_blocks_are_refused(models, tmp_path, capsys, faults, monkeypatch):
    monkeypatch.setattr("emkit.layouts._OUTLINE", 2.0)
    mine = tmp_path / "models"
    shutil.copytree(models, mine)
    for name in ("base", *own.EXPERTS):
        own.set_json(mine / name / "config.json", num_hidden_layers=10**6)
    start = time.monotonic()
    assert check(dry(mine, tmp_path / "out"), capsys, faults) == 2
    assert time.monotonic() - start < 30


def test_a_configuration_is_written_not_copied(models, tmp_path):
    mine = tmp_path / "models"
    shutil.copytree(models, mine)
    own.set_json(
        mine / "base" / "config.json",
        auto_map={"AutoModel": "evil.Model"},
        _attn_implementation="evil/kernel",
        attn_implementation="evil/kernel",
        experts_implementation="evil/kernel",
    )
    own.set_json(mine / "base" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    out = own.merge(mine, tmp_path / "out", "weight_average")
    for file in out.glob("*config.json"):
        assert "evil" not in file.read_text()
    kept = json.loads((out / "config.json").read_text())
    assert kept == json.loads((models / "base" / "config.json").read_text())
    assert "evil" in (out / "README.md").read_text()  # which says what it named


def test_nothing_in_a_configuration_chooses_code(models, tmp_path, monkeypatch, capsys, faults):
    """``_attn_implementation: "user/kernel"`` makes transformers fetch and run a kernel of the hub."""
    import transformers.integrations.hub_kernels as kernels

    asked = []
    for name in [name for name in dir(kernels) if "kernel" in name.lower() and callable(getattr(kernels, name))]:
        if name.startswith(("load", "get", "register")):
            monkeypatch.setattr(kernels, name, lambda *a, **k: asked.append((a, k)))
    for name in ("base", *own.EXPERTS):
        mine = tmp_path / name
        shutil.copytree(models, mine)
        for who in ("base", *own.EXPERTS):
            own.set_json(
                mine / who / "config.json", _attn_implementation="evil/kernel", attn_implementation="evil/kernel"
            )
        own.merge(mine, tmp_path / f"out-{name}", "expert_merging", "--option", "optimiser.steps=1", "--samples", "1")
    assert asked == []


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[0]['content'] * 10**11 }}",
        "{{ 'a'.join(messages[0]['content'] * 10**10) }}",
        "{{ undefined_thing.attribute }}",
        "{% if %}",
        "{{ ''.__class__.__mro__ }}",
    ],
    ids=["loop", "recursion", "memory", "more memory", "undefined", "no template", "escape"],
)
def test_a_template_ends(models, tmp_path, capsys, faults, monkeypatch, template):
    monkeypatch.setattr("emkit.bounds.SECONDS", 2.0)
    mine = tmp_path / "models"
    shutil.copytree(models, mine)
    (mine / "base" / "chat_template.jinja").write_text(template)
    start = time.monotonic()
    status = check(own.flags(mine, tmp_path / "out", "weight_average"), capsys, faults)
    assert status == 2 or "class" in template  # the sandbox of templates knows that one, and it comes to nothing
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("pattern", [r"(.*a)*b|((x+x+)+y)", r"(", "(" * 3000 + ")" * 3000, "(" * 200 + ")" * 200, 3])
def test_an_adapter_s_pattern_ends(models, tmp_path, capsys, faults, monkeypatch, pattern):
    monkeypatch.setattr("emkit.bounds.SECONDS", 2.0)
    mine = tmp_path / "models"
    shutil.copytree(models, mine)
    slow = pattern if pattern != r"(.*a)*b|((x+x+)+y)" else r"(([a-z._0-9]+)+)+!"
    own.set_json(mine / "lora" / "adapter_config.json", rank_pattern={str(slow): 2 if pattern != 3 else "2"})
    start = time.monotonic()
    check(dry(mine, tmp_path / "out", "lora"), capsys, faults)
    assert time.monotonic() - start < 20


def test_an_adapter_of_a_large_base_is_no_harm(models, tmp_path):
    """A base of 3 GB is mapped into memory as it is opened: what bounds a pattern must not bound that."""
    from emkit import backbones, layouts
    from emkit.checkpoints import Checkpoint
    from emkit.own import headers
    from emkit.own.adapters import AdapterCheckpoint

    small = Checkpoint.open(models / "base")
    infos = {name: small.info(name) for name in small.names}
    infos["model.embed_tokens.weight"] = replace(infos["model.embed_tokens.weight"], shape=(50_000_000, 32))
    base = Checkpoint.open(headers.hollow(models / "base", tmp_path / "base", {"model.safetensors": infos}))
    shutil.copytree(models / "lora", tmp_path / "lora")
    own.set_json(tmp_path / "lora" / "adapter_config.json", rank_pattern={"q_proj": 4, "no_such": 3})
    layout = layouts.of(models / "base", backbones.get("causal_lm"))
    assert set(AdapterCheckpoint(tmp_path / "lora", base, layout, "x").adapted) == {f"{Q}.weight", f"{DOWN}.weight"}


def test_what_looks_for_no_signal_ends_with_the_process(tmp_path):
    """``strip`` of twenty million letters by as many is one call of C for hours."""
    code = (
        "from emkit import bounds\nbounds._GRACE = 1.0\n"
        "with bounds.bounded('it', 0.5):\n    len(('a' * 20_000_000).strip('b' * 20_000_000 + 'a'))\n"
    )
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode != 0 and "Timeout" in run.stderr and time.monotonic() - start < 40


def test_limits_of_others_are_left_as_they_were():
    """Two threads at once, and a timer of somebody else's around."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    inside, leave = threading.Barrier(2), threading.Event()

    def hold():
        with bounded("it"):
            inside.wait(10)
            leave.wait(10)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    inside.wait(10)
    threading.Timer(0.2, leave.set).start()
    with bounded("it"):
        assert leave.is_set()  # one at a time
    thread.join(10)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    rung = []
    old = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with bounded("it"):
            pass
        assert not rung
        time.sleep(0.5)
        assert rung == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_what_is_bounded_is_ended_and_the_limits_are_as_before():
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    timer = signal.getitimer(signal.ITIMER_REAL)[0]
    with pytest.raises(UserError, match=r"it does not end within 0\.2 s"), bounded("it", seconds=0.2):
        while True:
            pass
    with pytest.raises(UserError, match="it takes more than 1 GiB"), bounded("it", memory=2**30):
        bytearray(2**33)
    with pytest.raises(ZeroDivisionError), bounded("it"):
        _ = 1 / 0
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert abs(signal.getitimer(signal.ITIMER_REAL)[0] - timer) < 30  # pytest's own, where it has one


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BOMB, "stand for more than 200,000 values"),
        ("a: &a [*a]", "stand for more than 200,000 values"),
        ("a: " + "[" * 5000, "not valid YAML"),
        ("a: " + "[" * 70 + "]" * 70, "nested deeper than 64 levels"),
        ("a: !!python/object/apply:os.system [touch PWN]", "could not determine a constructor"),
        ("? [a]\n: b", "a key is no single word"),
        ("when: 2026-99-99", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: \x07", "unacceptable character"),
    ],
    ids=["bomb", "itself", "deep", "nested", "object", "key", "date", "tag", "control"],
)
def test_yaml_is_bounded(tmp_path, capsys, faults, content, words):
    with pytest.raises(UserError, match=words) as error:
        load_yaml(content, "merge.yaml")
    assert "\n" not in str(error.value)
    (tmp_path / "merge.yaml").write_text(content, encoding="utf-8")
    assert check(["merge", str(tmp_path / "merge.yaml")], capsys, faults) == 2


@pytest.mark.parametrize("value", [None, [], {}, "x", -1, 1.5, True, "a\nb", [[1]], {"a": 1}])
def test_no_wrong_value_of_a_recipe_is_a_traceback(models, tmp_path, capsys, faults, value):
    experts = {name: str(models / name) for name in own.EXPERTS}
    files = {name: str(models / f"{name}.jsonl") for name in own.EXPERTS}
    good = {
        **{"base": str(models / "base"), "experts": experts, "method": "expert_merging", "out": str(tmp_path / "out")},
        **{"calibration": {"files": files, "samples": 1}, "options": {"gamma": 0.1}, "scale": 0.5, "seed": 0},
        **{"backbone": "causal_lm", "tensors": "backbone", "device": "cpu", "tokenizer": "base", "allow": []},
    }
    for key in good:
        (tmp_path / "merge.yaml").write_text(json.dumps({**good, key: value}))
        check(["merge", str(tmp_path / "merge.yaml"), "--dry-run"], capsys, faults)
    for name in ("math", "\u202e", "a" * 300, "é", "\ud83d", "", ".", "..", "-x", "a/b", "a b", "a\nb"):
        text = json.dumps({**good, "experts": {**experts, name: str(models / "math")}})
        (tmp_path / "merge.yaml").write_text(text)
        check(["merge", str(tmp_path / "merge.yaml"), "--dry-run"], capsys, faults)


def test_a_fault_of_ours_is_one_line_and_a_file(models, tmp_path, capsys, faults, monkeypatch):
    def fail(*_, **__):
        raise KeyError("what\nnobody expected")

    monkeypatch.setattr("emkit.own.prepare.prepare", fail)
    assert cli.main(dry(models, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    (file,) = faults.iterdir()
    assert said.count("\n") == 1 and said.startswith("error: this is a fault of emkit's, not yours (KeyError")
    assert str(file) in said and "Traceback" in file.read_text() and "nobody expected" in file.read_text()
    assert file.parent.stat().st_mode & 0o077 == 0


def test_depth_is_counted_without_falling_into_it():
    deep = inner = []
    for _ in range(sys.getrecursionlimit() * 3):
        inner.append([])
        inner = inner[0]
    with pytest.raises(UserError, match="nested deeper"):
        foreign.check_depth(deep, "it")
