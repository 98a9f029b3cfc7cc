"""``emkit`` commands in a notebook: the line as one types it, and what it says."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file

from emkit import cli


def emkit(*arguments: str | Path) -> None:
    """Show ``$ emkit …``, run it, and show what it says, but for how much room this machine has."""
    words, said = [str(argument) for argument in arguments], io.StringIO()
    print(f"$ emkit {shlex.join(words)}")
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        cli.main(words)
    print("\n".join(line for line in said.getvalue().splitlines() if not line.startswith("disk ")))


def models(base: str, experts: Mapping[str, str | Path]) -> list[str]:
    """A base and its experts as arguments of ``emkit init`` and ``emkit merge``."""
    named = [("--expert", f"{name}={folder}") for name, folder in experts.items()]
    return ["--base", base, *(word for pair in named for word in pair)]


def prompts(files: Mapping[str, str | Path]) -> list[str]:
    """Files of prompts as arguments of ``emkit merge``."""
    return [word for name, file in files.items() for word in ("--calibration", f"{name}={file}")]


def _other_words(folder: Path) -> None:
    """Two ordinary tokens change places, as in a tokenizer that was trained again."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    first, second = list(words)[300:302]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(content), encoding="utf-8")


def _other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("[INST]", "USER:"), encoding="utf-8")


def _tensors(folder: Path, change: Callable[[dict], None]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def _no_embeddings(folder: Path) -> None:
    _tensors(folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))


def _no_matrix(folder: Path) -> None:
    _tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))


def _trained_embeddings(folder: Path) -> None:
    _tensors(folder, lambda tensors: tensors["model.embed_tokens.weight"].mul_(1.05))


DAMAGES = {
    "another tokenizer": _other_words,
    "another chat template": _other_template,
    "no embeddings": _no_embeddings,
    "a matrix is missing": _no_matrix,
    "trained embeddings": _trained_embeddings,
}


def damaged(expert: str | Path, out: str | Path, how: str) -> Path:
    """A copy of an expert's folder in which one thing is as it often is in practice (a key of ``DAMAGES``)."""
    out = Path(out)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(expert, out)
    DAMAGES[how](out)
    return out


def listing(folders: Mapping[str, str | Path]) -> str:
    """The files of every folder with their sizes, as a Markdown list."""
    lines = []
    for name, folder in folders.items():
        files = sorted(Path(folder).glob("*")) if Path(folder).is_dir() else []
        shown = ", ".join(f"`{file.name}` ({file.stat().st_size / 1000:,.0f} kB)" for file in files if file.is_file())
        lines.append(f"- **{name}**, `{folder}`: {shown or 'not a local folder'}")
    return "\n".join(lines)


def head(file: str | Path, lines: int) -> str:
    """The first lines of a YAML file as a Markdown block."""
    shown = Path(file).read_text(encoding="utf-8").splitlines()[:lines]
    return "```yaml\n" + "\n".join(shown) + "\n…\n```"


def card(folder: str | Path) -> str:
    """A merged folder's card up to its options, without the front matter, its headings one level lower."""
    text = (Path(folder) / "README.md").read_text(encoding="utf-8").split("---", 2)[-1].split("\n## Options")[0]
    return "\n".join(f"##{line}" if line.startswith("#") else line for line in text.strip().splitlines())
