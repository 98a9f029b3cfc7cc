"""The wheel: what it holds, and that it declares what it imports."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMES = {"PIL": "pillow", "yaml": "pyyaml", "huggingface_hub": "huggingface-hub"}
OPTIONAL = {"matplotlib": "plot", "peft": "zoo", "tokenizers": "zoo"}  # imported where they are used alone


def imported(path: Path) -> set[str]:
    """Distributions of the packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return {NAMES.get(name, name) for name in found - sys.stdlib_module_names - {"emkit"}}


def declared(extra: str | None = None) -> dict[str, Requirement]:
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return {(found := Requirement(line)).name: found for line in lines}


def test_every_import_is_declared_and_nothing_else():
    files = list((ROOT / "emkit").rglob("*.py"))
    assert set().union(*map(imported, files)) - OPTIONAL.keys() == declared().keys()
    for name, extra in OPTIONAL.items():
        assert name in declared(extra)
    for path in files:
        if "zoo" not in path.parts:
            assert not imported(path) & {"peft", "tokenizers"}, path


def test_the_locks_versions_are_within_the_bounds():
    every = [*declared().values(), *(r for extra in PROJECT["optional-dependencies"] for r in declared(extra).values())]
    for requirement in every:
        assert {"<", ">="} == {part.operator for part in requirement.specifier} or requirement.name == "emkit"
        if requirement.name != "emkit":
            assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), requirement


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tracked files without a network."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT / "emkit", folder / "emkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "eval", folder / "eval", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-c", code, "dist"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return next((folder / "dist").glob("*.whl"))


def test_the_wheel_holds_emkit_alone_and_all_of_it(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = {p.relative_to(ROOT).as_posix() for p in (ROOT / "emkit").rglob("*") if p.is_file()}
    assert names == {name for name in source if "__pycache__" not in name}
    assert "emkit/py.typed" in names


def test_what_is_in_the_wheel_runs_without_the_repository(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import emkit, sys; from emkit.cli import main; print(emkit.__file__); sys.exit(main(['explain', 'ties']))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert str(tmp_path / "site") in ran.stdout and re.search("TIES", ran.stdout)
