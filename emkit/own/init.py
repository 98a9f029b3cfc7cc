"""``emkit init``: a commented recipe, with every option of its method, its default and where that is from."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic.fields import FieldInfo

from emkit import backbones, foreign
from emkit.alignment.sources import Samples
from emkit.config import Settings, about, default, own_default
from emkit.errors import UserError
from emkit.files import atomic_write
from emkit.methods import Method, get
from emkit.own.recipe import AUTO, METHODS, Allowed

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
        kind = foreign.mapping(base / "config.json").get("model_type")
    except UserError:
        return AUTO
    known = backbones.reading(kind) if isinstance(kind, str) else []
    return known[0] if known and known[0] != backbones.GENERAL else AUTO


def text(name: str, method: Method, base: str, experts: Mapping[str, str], backbone: str = AUTO) -> str:
    """The recipe as YAML. Values that stand without a ``#`` hold; the others are the defaults that hold anyway."""
    methods = _comment(f"One of: {', '.join(METHODS)}. `emkit explain METHOD` says more.")
    formula = _comment(method.about.split("\n\n")[0])
    parts = [
        f"# A merge of your own models.  Check it: emkit merge {name} --dry-run    Run it: emkit merge {name}",
        f"{methods}\nmethod: {method.name}\n{formula}",
        "# A local folder (safetensors) or a hub id, which may end in @revision.\n" + _line("base", base),
        "# A name for each expert, and its model: a whole one, or a LoRA adapter for the base (as PEFT saves it).\n"
        "experts:\n" + "\n".join(f"  {_line(label, folder)}" for label, folder in experts.items()),
        "# The folder to write; it must not be there yet (or say --overwrite).\nout: merged",
    ]
    if method.scale is not None:
        value, source = default(method.scale, backbone)
        use = "The fit starts from it." if method.learned else "Try a few, and compare the models on your task."
        parts.append(_comment(f"{about(method.scale)}. Default: {source}. {use}") + f"\n# scale: {value:g}")
    if method.learned:
        parts.append(_calibration(experts, backbone))
    if method.options.model_fields:
        parts.append(_options(method, backbone))
    parts.append(
        _comment("The rest, with what holds where it is left out:")
        + "\n# tokenizer: base        # whose tokenizer and chat template the model gets: base, or an expert's name"
        + ("\n# backbone: auto         #" if backbone == AUTO else f"\nbackbone: {backbone}  #")
        + " which tensors are merged: auto reads it from the base's config.json"
        + ("" if method.learned else "\n# tensors: backbone      # or all: embeddings, norms and biases too")
        + "\n# device: cpu            # left out: cuda when there is one\n# seed: 0"
        f"\n# allow: []              # what to let pass: {', '.join(get_args(Allowed))}"
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
    for key, field in Samples.model_fields.items():
        lines += [] if key == "files" else _option(key, field, backbone)
    return "\n".join(lines)


def _options(method: Method, backbone: str) -> str:
    """Every option with its default, which holds anyway: only what a person uncomments is given."""
    lines = ["# Options of the method. To change one, take the # from its line.", "options:"]
    for key, field in method.options.model_fields.items():
        lines += _option(key, field, backbone)
    return "\n".join(lines)


def _option(key: str, field: FieldInfo, backbone: str) -> list[str]:
    value, source = own_default(field, backbone)
    if value is ...:
        return [_comment(f"{about(field).rstrip('.')}. It has to be given.", "  "), f"  # {key}:"]
    value = value.model_dump(exclude_unset=True) if isinstance(value, Settings) else value
    said = f"{about(field).rstrip('.')}." + (f" Default: {source}." if source else "")
    return [_comment(said, "  "), f"  # {_line(key, value)}"]


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
