"""The commands for one's own models: ``init``, ``merge`` and ``coefficients``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emkit.alignment import options as engine
from emkit.errors import UserError

COMMANDS = {
    "init": "write a commented recipe for a merge",
    "merge": "merge experts into one model, checked before and after",
    "coefficients": "show what a learned method weighted each expert with",
}
_MERGE = """\
Merge experts into one model. Give a recipe, flags, or both (a flag changes what the recipe says).

  emkit merge merge.yaml
  emkit merge --base models/base --expert math=models/math --expert code=models/code --method ties --out merged
  emkit merge … --method expert_merging --calibration math=math.jsonl --calibration code=code.jsonl

`emkit explain` lists the methods. Models are local folders of safetensors or hub ids; an expert may be a LoRA adapter.
Everything is checked before any weight is read (--dry-run: nothing else), and the result before it gets its name.
"""


def add(commands) -> None:
    """Add the commands to ``emkit``'s parser."""
    _add_init(commands.add_parser("init", help=COMMANDS["init"], description="Write a commented recipe for a merge."))
    raw = argparse.RawDescriptionHelpFormatter
    _add_merge(commands.add_parser("merge", help=COMMANDS["merge"], description=_MERGE, formatter_class=raw))
    show = commands.add_parser("coefficients", help=COMMANDS["coefficients"])
    actions = show.add_subparsers(required=True, metavar="ACTION")
    drawn = actions.add_parser("show", help="draw learned coefficients as a heat map")
    drawn.add_argument("model", type=Path, help="a merged model's folder, or its coefficients.json")
    drawn.add_argument("--out", type=Path, metavar="FILE", help="write a picture (.png, .pdf, .svg) instead of text")
    drawn.set_defaults(call=_show)


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("merge.yaml"), help="default: merge.yaml")
    parser.add_argument(
        "--method", default="expert_merging", help="default: expert_merging; `emkit explain` lists them"
    )
    _add_models(parser)
    parser.add_argument("--backbone", help="kind of model, for its defaults; default: that of a base that is a folder")
    parser.set_defaults(call=_init)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", metavar="MODEL", help="folder or hub id of the model that the experts were made from")
    parser.add_argument(
        "--expert",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="an expert, once for each; its name is that of its folder unless one is given",
    )


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a recipe, as `emkit init` writes it")
    _add_models(parser)
    parser.add_argument("--method", help="what `emkit explain` lists")
    parser.add_argument("--out", metavar="FOLDER", help="where the merged model is written")
    parser.add_argument("--scale", type=float, metavar="λ", help="for methods with a free scale")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the method")
    parser.add_argument(
        "--calibration",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="JSONL of prompts for an expert, for learned methods",
    )
    parser.add_argument("--samples", type=int, metavar="N", help="prompts used of each expert's")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="whose tokenizer and chat template to take: base, or an expert"
    )
    parser.add_argument("--backbone", help="which tensors are merged; default: what the base's config.json says")
    parser.add_argument("--tensors", help="backbone (default), or all: embeddings, norms and biases too")
    parser.add_argument("--device", help="cpu or cuda (default: cuda when there is one)")
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--allow", action="append", default=[], metavar="WHAT", help="let pass what a message says it can"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model that emkit wrote to --out before")
    parser.add_argument("--cache", type=Path, help="where calibration sets and fits are kept (default: beside --out)")
    parser.add_argument("--shard-size", default="5GB", help="largest file of weights (default: 5GB)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, and stop before the weights are read")
    engine.add_arguments(parser)
    parser.set_defaults(call=_merge)


def _init(options) -> None:
    from emkit import backbones
    from emkit.own import init
    from emkit.own.recipe import METHODS
    from emkit.schema import nearest

    if options.method not in METHODS:
        raise UserError(f"unknown method '{options.method}': {nearest(options.method, METHODS)}")
    if options.backbone not in (None, *backbones.NAMES):
        raise UserError(f"unknown backbone '{options.backbone}': {nearest(options.backbone, backbones.NAMES)}")
    experts = _experts(options.expert) or init.EXPERTS
    base = options.base or "path/to/base-model"
    backbone = options.backbone or init.backbone_in(Path(base))
    init.write(options.recipe, options.method, base, experts, backbone)
    print(f"{options.recipe} written: fill in your models, then `emkit merge {options.recipe} --dry-run`")


def _merge(options) -> None:
    from emkit.own import merge, prepare, recipe, resources

    data = recipe.read(options.recipe) if options.recipe is not None else {}
    where = f"{options.recipe}: " if options.recipe is not None else ""
    if options.method is not None and data.get("method", options.method) != options.method:
        others = [key for key in ("scale", "options") if data.pop(key, None)]
        if others:
            print(f"note: {' and '.join(others)} of {options.recipe} are left out: another method's", file=sys.stderr)
    read, data = data, with_flags(data, options)
    if where and data != read:
        where = f"{options.recipe} and flags: "
    if where == "" and (missing := [f"--{key}" for key in ("base", "method", "out") if key not in data]):
        raise UserError(f"{missing[0]} is missing: give it, or a recipe; `emkit merge --help` has examples")
    if where == "" and "experts" not in data:
        raise UserError("--expert is missing: give one for each expert, or a recipe; `emkit merge --help` has examples")
    recipe.check(data, where or "command line: ")
    _quieten()
    use, shard = engine.from_arguments(options), engine.parse_bytes(options.shard_size)
    _note_unused(data["method"], use)
    cache = options.cache or resources.place(data["out"]).parent / ".emkit-cache"
    needed = [cache, *([Path(options.recipe)] if where else [])]
    prepared = prepare.prepare(data, options.overwrite, engine=use, needed=needed)
    for line in prepared.plan:
        print(line, file=sys.stderr)
    if options.dry_run:
        print("everything fits; nothing was merged (--dry-run)")
        return
    report = merge.run(
        prepared,
        shlex.join(["emkit", *options.given]),
        cache,
        progress=sys.stderr.isatty(),
        engine=use,
        shard_bytes=shard,
    )
    print(f"{data['out']}: {report['checked']}")
    if "learned" in report["coefficients"]:
        print(f"its coefficients: emkit coefficients show {data['out']}")


def _note_unused(method: str, use: engine.EngineOptions) -> None:
    """Say so where options of a fit are given to a method that fits nothing."""
    from emkit.methods import get

    usual = vars(engine.EngineOptions())
    unused = [f"--{key.replace('_', '-')}" for key, value in vars(use).items() if value != usual[key] and key != "like"]
    if unused and not get(method).learned:
        print(f"note: {', '.join(unused)}: of no effect, {method} fits nothing", file=sys.stderr)


def _quieten() -> None:
    """transformers' own bars and notes would stand between emkit's lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def with_flags(data: Mapping[str, Any], options) -> dict[str, Any]:
    """A recipe's data with what the flags say in place of, or added to, what it says."""
    out = dict(data)
    for key in ("base", "method", "out", "scale", "tokenizer", "backbone", "tensors", "device", "seed"):
        if getattr(options, key) is not None:
            out[key] = getattr(options, key)
    if options.expert:
        out["experts"] = _experts(options.expert)
    if options.allow:
        out["allow"] = [*_part(out, "allow", list), *options.allow]
    changes: dict[str, Any] = {}
    for key, value in (_pair(entry, "--option", "KEY=VALUE") for entry in options.option):
        _place(changes, key.split("."), _value(key, value))
    if changes:
        given = dict(_part(out, "options", dict))
        for key, value in changes.items():
            deep = isinstance(value, dict) and isinstance(given.get(key), dict)
            given[key] = {**given[key], **value} if deep else value
        out["options"] = given
    calibration = dict(_part(out, "calibration", dict))
    if options.calibration:
        files = dict(_pair(entry, "--calibration", "NAME=FILE") for entry in options.calibration)
        calibration["files"] = {**_part(calibration, "files", dict), **files}
    if options.expert and "files" in calibration:  # prompts of experts that the flags do without
        named = {name for name, _ in (entry.split("=", 1) for entry in options.calibration)}
        files = _part(calibration, "files", dict)
        calibration["files"] = {k: v for k, v in files.items() if k in named or k in out["experts"]}
    if options.samples is not None:
        calibration["samples"] = options.samples
    return {**out, "calibration": calibration} if calibration else out


def _part(data: Mapping[str, Any], key: str, kind: type) -> Any:
    """A recipe's value that flags add to; one of another kind is left for the recipe's check to refuse."""
    value = data.get(key, kind())
    if not isinstance(value, kind):
        raise UserError(f"{key}: {value!r} is not a {'mapping' if kind is dict else 'list'}")
    return value


def _experts(entries: list[str]) -> dict[str, str]:
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


def _show(options) -> None:
    from emkit.coefficients import Coefficients
    from emkit.own import show

    coefficients = Coefficients.load(show.find(options.model))
    if options.out is None:
        print(show.text(coefficients))
        return
    show.picture(coefficients, options.out)
    print(f"{options.out} written")
