"""``emkit init``: a commented recipe, with every option of its method, its default and where that is from."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from emkit import backbones
from emkit.errors import UserError
from emkit.files import atomic_write
from emkit.methods import REQUIRED, Method, get
from emkit.own import card, defaults
from emkit.own.recipe import ALLOW, AUTO, METHODS

WIDTH = 110
EXPERTS = {"math": "path/to/math-model", "code": "path/to/code-model"}


def write(path: Path, method: str, base: str, experts: Mapping[str, str], backbone: str = AUTO) -> None:
    """Write the recipe ``path``; ``UserError`` if there is one."""
    if path.exists():
        raise UserError(f"{path} is there already: choose another name, or remove it")
    with atomic_write(path) as part:
        part.write_text(text(path.name, get(method), base, experts, backbone), encoding="utf-8")


def backbone_in(base: Path) -> str:
    """The backbone that the configuration in a folder asks for where its defaults are others; else auto."""
    try:
        kind = json.loads((base / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return AUTO
    known = backbones.reading(kind)
    return known[0] if known and known[0] != backbones.GENERAL else AUTO


def text(name: str, method: Method, base: str, experts: Mapping[str, str], backbone: str = AUTO) -> str:
    """The recipe as YAML. Values that stand without a ``#`` hold; the others are the defaults that hold anyway."""
    methods = _comment(f"One of: {', '.join(METHODS)}. `emkit explain METHOD` says more.")
    about = _comment(card.formula(method).split("\n\n")[0])
    parts = [
        f"# A merge of your own models.  Check it: emkit merge {name} --dry-run    Run it: emkit merge {name}",
        f"{methods}\nmethod: {method.name}\n{about}",
        "# A local folder (safetensors) or a hub id, which may end in @revision.\n" + _line("base", base),
        "# A name for each expert, and its model: a whole one, or a LoRA adapter for the base (as PEFT saves it).\n"
        "experts:\n" + "\n".join(f"  {_line(label, folder)}" for label, folder in experts.items()),
        "# The folder to write; it must not be there yet (or say --overwrite).\nout: merged",
    ]
    scale = defaults.scale(method.name, backbone)
    if scale is not None:
        first = " The fit starts from it." if method.learned else " Try a few, and compare the models on your task."
        about = _comment(f"λ, what task vectors are scaled by. Default: {scale.source}.{first}")
        parts.append(f"{about}\nscale: {scale.value:g}")
    if method.learned:
        parts.append(_calibration(experts, backbone))
    if method.options:
        parts.append(_options(method, backbone))
    parts.append(
        _comment("The rest, with what holds where it is left out:")
        + "\n# tokenizer: base        # whose tokenizer and chat template the model gets: base, or an expert's name"
        + ("\n# backbone: auto         #" if backbone == AUTO else f"\nbackbone: {backbone}  #")
        + " which tensors are merged: auto reads it from the base's config.json"
        + ("" if method.learned else "\n# tensors: backbone      # or all: embeddings, norms and biases too")
        + "\n# device: cpu            # left out: cuda when there is one\n# seed: 0"
        f"\n# allow: []              # what to let pass: {', '.join(ALLOW)}"
    )
    return "\n\n".join(parts) + "\n"


def _calibration(experts: Mapping[str, str], backbone: str) -> str:
    lines = [
        _comment(
            "Prompts for each expert, without answers: the expert answers them itself. One JSON object a line, "
            '{"prompt": "…"} or, for models that see, {"image": "a.png", "question": "…"}, the image\'s path being '
            "relative to the file."
        ),
        "calibration:",
        "  files:",
    ]
    lines += [f"    {_line(label, f'{label}.jsonl')}" for label in experts]
    for key, default in defaults.calibration(backbone).items():
        more = ", or as many as there are prompts" if key == "samples" else ""
        lines.append(f"  # {key}: {default.value}    # {default.source}{more}")
    return "\n".join(lines)


def _options(method: Method, backbone: str) -> str:
    """Every option with its default; what is changed or left out is seen in the merged model's card."""
    known = defaults.options(method.name, backbone)
    lines = ["# Options of the method, at their defaults.", "options:"]
    for key, option in method.options.items():
        about = option.about.rstrip(".") + "."
        value, about = (
            (known[key].value, f"{about} Default: {known[key].source}.") if key in known else (option.default, about)
        )
        if value is REQUIRED:
            raise ValueError(f"{method.name} has no default for its option '{key}'")
        lines += [_comment(about, "  "), f"  {_line(key, value)}"]
    return "\n".join(lines)


def _line(key: str, value: Any) -> str:
    return f"{_flow(key)}: {_flow(value)}"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(_line(key, entry) for key, entry in value.items()) + "}"
    if isinstance(value, str):
        # a name that YAML would read as a number, a date or a truth value, or not at all, is quoted
        plain = _PLAIN.fullmatch(value) is not None and yaml.safe_load(value) == value
        return value if plain else yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10**9).strip()
    return json.dumps(value)


_PLAIN = re.compile(r"[^\W\d_][\w./ -]*(?<! )", re.ASCII)


def _comment(words: str, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(words.split()),
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
    )
