"""The commands for one's own models: ``init``, ``merge`` and ``coefficients``."""

from __future__ import annotations

import contextlib
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from emkit import words
from emkit.alignment.options import EngineOptions, parse_bytes
from emkit.command_line import PATH, Groups, engine, fits, models, writing
from emkit.errors import UserError


@click.command
@click.argument("recipe", type=PATH, default="merge.yaml")
@click.option("--method", default="expert_merging", show_default=True, help="`emkit explain` lists them.")
@models
@click.option("--backbone", help="Kind of model, for its defaults; default: that of a base that is a folder.")
def init(recipe: Path, method: str, base: str | None, expert: tuple[str, ...], backbone: str | None) -> None:
    """Write a commented recipe for a merge."""
    from emkit import backbones
    from emkit.own import init
    from emkit.own.recipe import METHODS
    from emkit.schema import nearest

    if method not in METHODS:
        raise UserError(f"unknown method '{method}': {nearest(method, METHODS)}")
    if backbone is not None and backbone not in backbones.NAMES:
        raise UserError(f"unknown backbone '{backbone}': {nearest(backbone, backbones.NAMES)}")
    experts, base = _experts(expert) or init.EXPERTS, base or "path/to/base-model"
    init.write(recipe, method, base, experts, backbone or init.backbone_in(Path(base)))
    print(words.line(f"{recipe} written: fill in your models, then `emkit merge {recipe} --dry-run`"))


@click.command
@click.argument("recipe", type=PATH, required=False)
@models
@click.option("--method", help="What `emkit explain` lists.")
@click.option("--out", metavar="FOLDER", help="Where the merged model is written.")
@click.option("--scale", type=float, metavar="λ", help="For methods with a free scale.")
@click.option("--option", multiple=True, metavar="KEY=VALUE", help="An option of the method.")
@click.option(
    "--calibration", multiple=True, metavar="NAME=FILE", help="JSONL of prompts for an expert, for learned methods."
)
@click.option("--samples", type=int, metavar="N", help="Prompts used of each expert's.")
@click.option("--tokenizer", metavar="NAME", help="Whose tokenizer and chat template to take: base, or an expert.")
@click.option("--backbone", help="Which tensors are merged; default: what the base's config.json says.")
@click.option("--tensors", help="backbone (default), or all: embeddings, norms and biases too.")
@click.option("--device", help="cpu or cuda (default: cuda when there is one).")
@click.option("--seed", type=int, help="Of whatever the method draws (default: 0).")
@click.option("--allow", multiple=True, metavar="WHAT", help="Let pass what a message says it can.")
@click.option("--overwrite", is_flag=True, help="Replace a model that emkit wrote to --out before.")
@click.option("--dry-run", is_flag=True, help="Check everything, and stop before the weights are read.")
@writing
@fits
@click.pass_context
def merge(ctx: click.Context, recipe: Path | None, overwrite: bool, dry_run: bool, **flags: Any) -> None:
    """Merge experts into one model, checked before and after.

    Give a recipe, flags, or both (a flag changes what the recipe says).

    \b
      emkit merge merge.yaml
      emkit merge --base models/base --expert math=models/math --expert code=models/code --method ties --out merged
      emkit merge … --method expert_merging --calibration math=math.jsonl --calibration code=code.jsonl

    `emkit explain` lists the methods. Models are local folders of safetensors or hub ids; an expert may be a LoRA
    adapter. Everything is checked before any weight is read (--dry-run: nothing else), and the result before it gets
    its name.
    """
    from emkit.own import merge as job
    from emkit.own import prepare, resources

    data = _read(recipe, flags)
    _quieten()
    use, shard = engine(flags), parse_bytes(flags["shard_size"])
    _note_unused(data["method"], use)
    cache = flags["cache"] or resources.place(data["out"]).parent / ".emkit-cache"
    needed = [cache, *([recipe] if recipe is not None else [])]
    with tempfile.TemporaryDirectory() if dry_run else contextlib.nullcontext() as folder:
        hollow = None if folder is None else Path(folder)
        prepared = prepare.prepare(data, overwrite, engine=use, needed=needed, hollow=hollow)
        for line in prepared.plan:
            words.say(line)
        if dry_run:
            print("everything fits; nothing was merged (--dry-run)")
            return
    command = shlex.join(["emkit", *ctx.obj])
    report = job.run(prepared, command, cache, progress=sys.stderr.isatty(), engine=use, shard_bytes=shard)
    print(words.line(f"{data['out']}: {report['checked']}"))
    if "learned" in report["coefficients"]:
        print(words.line(f"its coefficients: emkit coefficients show {data['out']}"))


def _read(file: Path | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's data with what the flags say, checked."""
    from emkit.own import recipe

    read = recipe.read(file) if file is not None else {}
    kept, where = dict(read), f"{file}: " if file is not None else ""
    method = flags["method"]
    if method is not None and kept.get("method", method) != method:
        others = [key for key in ("scale", "options") if kept.pop(key, None)]
        if others:
            words.say(f"note: {' and '.join(others)} of {file} are left out: another method's")
    data = with_flags(kept, flags)
    if where and data != read:
        where = f"{file} and flags: "
    if where == "" and (missing := [f"--{key}" for key in ("base", "method", "out") if key not in data]):
        raise UserError(f"{missing[0]} is missing: give it, or a recipe; `emkit merge --help` has examples")
    if where == "" and "experts" not in data:
        raise UserError("--expert is missing: give one for each expert, or a recipe; `emkit merge --help` has examples")
    recipe.check(data, where or "command line: ")
    return data


def _note_unused(method: str, use: EngineOptions) -> None:
    """Say so where options of a fit are given to a method that fits nothing."""
    from emkit.methods import get

    usual = vars(EngineOptions())
    unused = [f"--{key.replace('_', '-')}" for key, value in vars(use).items() if value != usual[key] and key != "like"]
    if unused and not get(method).learned:
        words.say(f"note: {', '.join(unused)}: of no effect, {method} fits nothing")


def _quieten() -> None:
    """transformers' own bars and notes would stand between emkit's lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def with_flags(data: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's data with what the flags say in place of, or added to, what it says."""
    out = dict(data)
    for key in ("base", "method", "out", "scale", "tokenizer", "backbone", "tensors", "device", "seed"):
        if flags.get(key) is not None:
            out[key] = flags[key]
    expert, prompts = flags.get("expert") or [], flags.get("calibration") or []
    if expert:
        out["experts"] = _experts(expert)
    if flags.get("allow"):
        out["allow"] = [*_part(out, "allow", list), *flags["allow"]]
    changes: dict[str, Any] = {}
    for key, value in (_pair(entry, "--option", "KEY=VALUE") for entry in flags.get("option") or []):
        _place(changes, key.split("."), _value(key, value))
    if changes:
        given = dict(_part(out, "options", dict))
        for key, value in changes.items():
            deep = isinstance(value, dict) and isinstance(given.get(key), dict)
            given[key] = {**given[key], **value} if deep else value
        out["options"] = given
    calibration = dict(_part(out, "calibration", dict))
    if prompts:
        files = dict(_pair(entry, "--calibration", "NAME=FILE") for entry in prompts)
        calibration["files"] = {**_part(calibration, "files", dict), **files}
    if expert and "files" in calibration:  # prompts of experts that the flags do without
        named = {name for name, _ in (entry.split("=", 1) for entry in prompts)}
        files = _part(calibration, "files", dict)
        calibration["files"] = {k: v for k, v in files.items() if k in named or k in out["experts"]}
    if flags.get("samples") is not None:
        calibration["samples"] = flags["samples"]
    return {**out, "calibration": calibration} if calibration else out


def _part(data: Mapping[str, Any], key: str, kind: type) -> Any:
    """A recipe's value that flags add to; one of another kind is left for the recipe's check to refuse."""
    value = data.get(key, kind())
    if not isinstance(value, kind):
        raise UserError(f"{key}: {value!r} is not a {'mapping' if kind is dict else 'list'}")
    return value


def _experts(entries: Sequence[str]) -> dict[str, str]:
    """Name → model of every ``--expert``."""
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, model = entry.partition("=")
        if not equals or "/" in name or Path(entry).is_dir():  # a path may have a = in it
            name, model = Path(entry.partition("@")[0]).name, entry
        if not name or not model:
            raise UserError(f"--expert {entry} is not of the form NAME=MODEL or MODEL")
        if name in found:
            raise UserError(f"two experts are called '{name}': name them, --expert NAME=MODEL")
        found[name] = model
    return found


def _pair(entry: str, flag: str, form: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not name or not equals or not value:
        raise UserError(f"{flag} {entry} is not of the form {form}")
    return name, value


def _value(key: str, value: str) -> Any:
    from emkit.schema import load_yaml

    return load_yaml(value, f"--option {key}")


def _place(into: dict[str, Any], keys: list[str], value: Any) -> None:
    """``optimiser.steps`` = value, in the mapping ``optimiser``."""
    for key in keys[:-1]:
        into = into.setdefault(key, {})
        if not isinstance(into, dict):
            raise UserError(f"--option {'.'.join(keys)}: '{key}' has a value already")
    into[keys[-1]] = value


@click.command
@click.argument("model")
@click.option("--image", type=PATH, metavar="FILE", help="A picture that the questions are about.")
@click.option("--ask", multiple=True, metavar="QUESTION", help="Ask this and end; may be given several times.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest answer.")
@click.option("--device", help="cpu or cuda (default: cuda when there is one).")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), help="Default: float32 on a CPU, bfloat16 elsewhere."
)
def chat(model: str, image: Path | None, ask: tuple[str, ...], max_new_tokens: int, device, dtype) -> None:
    """Ask a model questions: a merged model's folder, or a hub id.

    Each question stands by itself, and answers are greedy, as in the tables. Questions come from --ask, from a pipe
    (one a line), or from a prompt, which an empty line ends.
    """
    from emkit.own import chat

    _quieten()
    opened = chat.load(model, image, device, dtype)
    terminal = sys.stdin.isatty()
    if terminal and not ask:
        words.say(str(opened))
        words.say("Each question stands by itself; an empty line ends.")
    questions = ask or (chat.typed() if terminal else filter(None, map(str.strip, sys.stdin)))
    for answer in opened.answers(questions, max_new_tokens):
        print(answer, flush=True)


@click.command
@click.argument("model", type=PATH)
@click.option("--like", required=True, metavar="ORIGINAL", help="The model whose layout is wanted, such as the base.")
@click.option("--out", type=PATH, required=True, metavar="FOLDER", help="Where it is written.")
@click.option("--shard-size", default="5GB", show_default=True, help="Largest file of weights.")
def export(model: Path, like: str, out: Path, shard_size: str) -> None:
    """Write a merged model in its original's layout (InternVL's), for the authors' code and harnesses.

    `emkit merge` writes transformers' layout. ORIGINAL's other files, its code among them, are copied as they are.
    """
    from emkit.own import export, hub, resources

    _quieten()
    resources.check_writable(resources.place(out), False, [model])
    files = (*hub.SMALL, *hub.WEIGHTS, "*.py")  # the code is copied, never run
    written = export.export(model, hub.stored(like, "the original", files), out, parse_bytes(shard_size))
    print(words.line(f"{out}: {written} tensors in the layout of {like}"))


@click.group(cls=Groups)
def coefficients() -> None:
    """Show what a learned method weighted each expert with."""


@coefficients.command
@click.argument("model", type=PATH)
@click.option("--out", type=PATH, metavar="FILE", help="Write a picture (.png, .pdf, .svg) instead of text.")
def show(model: Path, out: Path | None) -> None:
    """Draw learned coefficients as a heat map; MODEL is a merged model's folder, or its coefficients.json."""
    from emkit import pictures
    from emkit.coefficients import Coefficients
    from emkit.own import show

    found = Coefficients.load(show.find(model))
    if out is None:
        print(words.block(show.text(found)))
        return
    pictures.save(found.plot(), out)
    print(words.line(f"{out} written"))
