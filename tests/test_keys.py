"""A score's code is what it reaches: a new method, backbone, harness or column leaves the others, a change does not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emkit import methods
from emkit.imports import code_sha256, reached
from eval import columns, keys

ROOT = Path(__file__).parent.parent


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


TREE = {
    "emkit/__init__.py": "",
    "emkit/a.py": "from __future__ import annotations\nimport os\nfrom typing import TYPE_CHECKING\n"
    "import emkit.b\nfrom emkit.room import part, name\nif TYPE_CHECKING:\n    from emkit import types_only\n",
    "emkit/b.py": "def late():\n    from . import late_one\n    from .room.deep import x\n",
    "emkit/late_one.py": "from torch import nn\n",
    "emkit/types_only.py": "",
    "emkit/unused.py": "import emkit.a\n",
    "emkit/room/__init__.py": "from emkit.room.shared import name\n",
    "emkit/room/shared.py": "name = 1\n",
    "emkit/room/part.py": "",
    "emkit/room/deep.py": "import emkit.aside.one\nx = 1\n",
    "emkit/room/other.py": "",
    "emkit/aside/__init__.py": "",
    "emkit/aside/one.py": "import emkit.unused\n",
    "torch.py": "",
}


def test_what_a_module_reaches(tmp_path):
    """Whole packages above it, functions, relative imports and circles; no types, no strangers, nothing aside."""
    home = write(tmp_path, TREE)
    wanted = ["", ".a", ".b", ".late_one", ".room", ".room.deep", ".room.part", ".room.shared"]
    assert list(reached(["emkit.a"], ["emkit.aside"], home)) == [f"emkit{name}" for name in wanted]
    whole = {*(f"emkit{name}" for name in wanted), "emkit.aside", "emkit.aside.one", "emkit.unused"}
    assert set(reached(["emkit.a"], home=home)) == whole
    with pytest.raises(ModuleNotFoundError, match=r"there is no module emkit\.absent"):
        reached(["emkit.absent"], home=home)


def test_python_itself_imports_what_is_reached(tmp_path):
    """Against the interpreter: all modules of ours that importing a leaf brings in are reached from it."""
    code = "import sys, eval.scores; print(*(m for m in sys.modules if m.split('.')[0] in ('emkit', 'eval')))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= set(reached(["eval.scores"]))


@pytest.mark.parametrize(
    ("file", "text", "same"),
    [
        ("emkit/b.py", TREE["emkit/b.py"] + "# a remark\n", True),
        ("emkit/b.py", '"""Documented."""\n' + TREE["emkit/b.py"], True),
        ("emkit/unused.py", "x = 1\n", True),
        ("emkit/new.py", "x = 1\n", True),
        ("emkit/types_only.py", "x = 1\n", True),
        ("emkit/b.py", TREE["emkit/b.py"] + "x = 2\n", False),
        ("emkit/late_one.py", "x = 1\n", False),
        ("emkit/__init__.py", "x = 1\n", False),
    ],
)
def test_the_hash_is_of_the_code_that_is_reached(tmp_path, file, text, same):
    before, after = write(tmp_path / "before", TREE), write(tmp_path / "after", {**TREE, file: text})
    found = [code_sha256(("emkit.a",), ("emkit.aside",), home) for home in (before, after)]
    assert (found[0] == found[1]) == same


# ---- the keys of real scores
TIES, LEARNED = (methods.get(name).run.__module__ for name in ("ties", "expert_merging"))
SCORES = {  # a row's merge (method's module, backbone, fitted, on drawn samples) and the column that it is scored on
    "TIES on images": ((TIES, "internvl", False, False), "GQA"),
    "TIES on text": ((TIES, "mistral", False, False), "GSM8K"),
    "Expert Merging": ((LEARNED, "mistral", True, True), "MBPP"),
    "its own samples": ((LEARNED, "mistral", True, False), "AlpacaEval"),
}


def found(home: Path) -> dict[str, list[str]]:
    """The hashes of the code behind each of ``SCORES``, of the repository at ``home``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "code_sha256", lambda roots, aside=(): code_sha256.__wrapped__(roots, aside, home))
        return {name: [keys.merging(*merge), keys.scoring(columns.load(of))] for name, (merge, of) in SCORES.items()}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    for package in ("emkit", "eval"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.csv", "__pycache__"))
    return folder


MERGES, ALL = [0], [0, 1]
CASES = [  # the file that is new or has a line more, and the parts of the keys that are others then
    ("emkit/methods/new_method.py", {}),
    ("emkit/backbones/new_backbone.py", {}),
    ("eval/harness/asking.py", {}),
    ("eval/columns/New.yaml", {}),
    ("emkit/explain.py", {}),
    ("emkit/cli.py", {}),
    ("emkit/progress.py", {}),
    ("eval/plan.py", {}),
    ("eval/pipeline.py", {}),
    ("eval/judge/estimate.py", {}),
    ("emkit/files.py", dict.fromkeys(SCORES, ALL)),
    ("emkit/shards.py", dict.fromkeys(SCORES, MERGES)),
    # what is kept: fits and the samples they are made on, image features
    ("emkit/sealed.py", {"TIES on images": [1], "Expert Merging": MERGES, "its own samples": MERGES}),
    ("emkit/backbones/internvl.py", {"TIES on images": MERGES}),
    ("emkit/zoo/text/skills.py", {}),
    ("emkit/alignment/objectives.py", {"Expert Merging": MERGES, "its own samples": MERGES}),
    ("emkit/methods/wudi.py", {}),
    ("emkit/zoo/text/problems.py", {"Expert Merging": MERGES}),
    ("eval/vlm/patches.py", {"TIES on images": [1]}),
    ("eval/lm/scoring.py", {"TIES on text": [1], "Expert Merging": [1]}),
    ("eval/sandbox/walls.py", {"Expert Merging": [1]}),
    ("eval/judge/rules.py", {"its own samples": [1]}),
    ("eval/scores.py", {name: [1] for name in SCORES}),
]


@pytest.fixture(scope="module")
def before(copy) -> dict[str, list[str]]:
    return found(copy)


@pytest.mark.parametrize(("file", "expected"), CASES, ids=[file for file, _ in CASES])
def test_a_changed_file_makes_stale_what_reaches_it_and_nothing_else(copy, before, file, expected):
    path = copy / file
    was = path.read_text() if path.is_file() else None
    try:
        write(copy, {file: (was or "") + "\nadded = 1\n"})
        after = found(copy)
    finally:
        path.unlink() if was is None else path.write_text(was)
    different = {name: [at for at in ALL if before[name][at] != after[name][at]] for name in SCORES}
    assert {name: parts for name, parts in different.items() if parts} == expected
