"""Merging in Python: ``emkit.ties(base, experts, density=0.2)``, and a merge that can be changed and asked again.

Models are folders, hub ids or state dicts. Every method of :mod:`emkit.methods` is a function here, whose keyword
arguments are the method's options; :func:`merge` takes the method by name. Nothing is computed before it is asked for.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from emkit import backbones, methods
from emkit.alignment.options import EngineOptions
from emkit.alignment.sources import Samples
from emkit.checkpoints import Checkpoint
from emkit.coefficients import Coefficients
from emkit.config import default
from emkit.errors import UserError
from emkit.files import atomic_write, sha256_json
from emkit.job import Job
from emkit.live import Live
from emkit.merging import Context, Merge
from emkit.own import merge as own
from emkit.own import models, prepare, recipe
from emkit.results import History, Importance
from emkit.state_dicts import StateDict
from emkit.task_vectors import TaskVectors

Model = str | Path | Mapping[str, torch.Tensor]  # a folder, a hub id, or a state dict
Prompts = Mapping[str, str | Path | Sequence[str]]  # of each expert: a JSONL file, or the prompts themselves


class Experts:
    """A base and its experts, opened and compared once: what any number of merges start from.

    ``experts`` maps a name to a model (a LoRA adapter's folder may be one), or lists models, which are then called by
    their folders' names. ``tensors``: those that the backbone's rule merges, or ``all``. ``backbone``: how they are
    called; state dicts are taken for language models unless it says otherwise. ``UserError`` for models that do not
    fit.
    """

    def __init__(
        self,
        base: Model,
        experts: Mapping[str, Model] | Sequence[Model],
        *,
        backbone: str = models.AUTO,
        tensors: str = "backbone",
        allow: Sequence[str] = (),
    ):
        given = {"base": base, **_named(experts)}
        dicts = {label: model for label, model in given.items() if isinstance(model, Mapping)}
        if dicts and len(dicts) < len(given):
            raise UserError("some models are state dicts and some are folders: give all in the same way")
        self.models: models.Models | None = None
        self.asked: dict[str, Any] = {"backbone": backbone, "tensors": tensors, "allow": list(allow)}
        if dicts:
            self.backbone = "causal_lm" if backbone == models.AUTO else backbone
            self.vectors = _vectors({label: StateDict(t, label) for label, t in dicts.items()}, self.backbone, tensors)
        else:
            names = {label: str(model) for label, model in given.items()}
            described = models.describe(names, models.folders_of(names), **self.asked)
            self.models = models.open_models(described, prepare.say_to_stderr)
            self.backbone, self.vectors = described.backbone, self.models.vectors
        self.labels = self.vectors.experts

    def tau(self, name: str) -> torch.Tensor:
        """τ_k of one merged tensor for every expert: fp32 [K, *shape]."""
        return self.vectors.tau(name)

    def merge(self, method: str = "ties", **options: Any) -> Merged:
        """:func:`merge` of these experts."""
        return Merged(self, method, options)

    def live(self, device: str = "cpu") -> Live:
        """The base's model in memory, to be given merged weights and asked."""
        if self.models is None:
            raise UserError("a state dict cannot be asked: give the models' folders or hub ids")
        return Live(self.models, device)

    def __repr__(self) -> str:
        return f"Experts({', '.join(self.labels)}; {len(self.vectors.names)} merged tensors)"


def _named(experts: Mapping[str, Model] | Sequence[Model]) -> dict[str, Model]:
    if isinstance(experts, Mapping):
        return dict(experts)
    named: dict[str, Model] = {}
    for number, model in enumerate(experts, 1):
        label = f"expert{number}" if isinstance(model, Mapping) else Path(str(model).partition("@")[0]).name
        if label in named:
            raise UserError(f"two experts are called '{label}': give a mapping from names to models")
        named[label] = model
    return named


def _vectors(opened: Mapping[str, Checkpoint], backbone: str, tensors: str) -> TaskVectors:
    """Task vectors of state dicts; ``UserError`` where the backbone's rule merges none of their tensors."""
    base, *experts = opened.values()

    def merged(names: Iterable[str]) -> list[str]:
        if tensors == "all":
            return [name for name in names if base.info(name).dtype.is_floating_point]
        if chosen := backbones.get(backbone).merged_names(names):
            return chosen
        raise UserError(
            f"the backbone {backbone} merges none of the state dict's tensors (it takes the matrices of numbered "
            "blocks): name its `backbone`, or give tensors='all'"
        )

    return TaskVectors(base, dict(zip(list(opened)[1:], experts, strict=True)), merged)


class Merged:
    """A merge of experts by one method. Tensors are made when they are asked for, and only those.

    ``merged["model.layers.0.mlp.up_proj.weight"]``, :meth:`state_dict`, :meth:`save`; :meth:`changed` is the same merge
    with other options. A learned method is fitted when the first tensor, or what was learned, is asked for.
    """

    def __init__(self, experts: Experts, method: str, given: Mapping[str, Any]):
        self.experts, self.method, self.given = experts, methods.get(method), dict(given)
        if not self.method.merges:
            raise UserError(f"{method} is a row of a table that merges nothing: read the checkpoint itself")
        self.job = Job(self.method, _context(experts, self.method, self.given))

    @cached_property
    def _merge(self) -> Merge:
        return self.job.run()

    @property
    def options(self) -> dict[str, Any]:
        """The value of every option of the method."""
        return self.job.context.options.model_dump()

    @property
    def coefficients(self) -> Coefficients | None:
        """α of every merged tensor, expert and chunk, of a linear method; None for others."""
        return self._merge.coefficients

    @property
    def history(self) -> History | None:
        """The steps of a learned method's fits; None for others."""
        learned = self._merge.learned
        return None if learned is None else History(learned.stages)

    @property
    def importance(self) -> Importance | None:
        """Layer importance and chunk counts of Expert Merging++; None for others."""
        last = {} if self._merge.learned is None else self._merge.learned.stages[-1]
        return Importance(last["importance"], last["chunks"]) if "importance" in last else None

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._merge.tensors(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.experts.vectors.base.names)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor of the merged model, in the base's names, shapes and dtypes."""
        return {name: self[name] for name in self}

    def changed(self, **options: Any) -> Merged:
        """The same merge with other values of some options."""
        return Merged(self.experts, self.method.name, {**self.given, **options})

    def save(self, out: str | Path, overwrite: bool = False) -> Path:
        """Write the merged model: of folders a folder, which is checked before it gets its name, with its card, as
        ``emkit merge`` does; of state dicts one safetensors file."""
        out, context = Path(out), self.job.context
        if self.experts.models is None:
            if out.exists() and not overwrite:
                raise UserError(f"{out} is there already: choose another name, or say overwrite=True")
            with atomic_write(out) as part:
                save_file({name: t.contiguous() for name, t in self.state_dict().items()}, part, {"format": "pt"})
            return out
        names = dict(self.experts.models.described.names)
        options = {key: value for key, value in self.given.items() if key in self.method.options.model_fields}
        scale = {"scale": self.given["scale"]} if "scale" in self.given and "scale" not in options else {}
        calibration = {"calibration": _prompted(self.experts, self.given, context.cache)} if self.method.learned else {}
        data = {
            "method": self.method.name,
            "base": names.pop("base"),
            "experts": names,
            "out": str(out),
            "seed": context.seed,
            "device": context.device,
            "options": options,
            **self.experts.asked,
            **scale,
            **calibration,
        }
        recipe.check(data, "save: ")
        prepared = prepare.prepare(data, overwrite, engine=context.engine)
        own.run(prepared, f"emkit.{self.method.name}(…).save({str(out)!r})", context.cache, engine=context.engine)
        return out

    def __repr__(self) -> str:
        return f"{self.method.name} of {', '.join(self.experts.labels)}"


_GENERAL: tuple[str, ...] = ("scale", "seed", "device", "prompts", "samples", "response_tokens", "max_new_tokens")
_GENERAL += ("cache", "progress", "engine")


def _context(experts: Experts, method: methods.Method, given: Mapping[str, Any]) -> Context:
    """What the method runs with; ``UserError`` for an option that it has not, or of another type."""
    fields = method.options.model_fields
    own = {key: value for key, value in given.items() if key in fields or key not in _GENERAL}
    scale = None
    if "scale" not in fields:
        if "scale" in given and "scale" not in method.needs:
            raise UserError(f"{method.name} has no scale: leave it out")
        scale = given.get("scale", None if method.scale is None else default(method.scale, experts.backbone)[0])
    if own:
        methods.check_options(method, own, method.name, experts.labels)
    first = None
    if method.inherits:
        under = methods.get(method.inherits)
        part = {key: value for key, value in own.items() if key in under.options.model_fields}
        first = methods.resolved(under, part, backbone=experts.backbone, where=method.name)
    cache = Path(given.get("cache") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "emkit")
    return Context(
        task_vectors=experts.vectors,
        options=methods.resolved(method, own, backbone=experts.backbone, where=method.name),
        scale=scale,
        seed=given.get("seed", 0),
        device=given.get("device", "cpu"),
        backbone=experts.models.backbone if experts.models is not None else None,
        calibration=_calibration(experts, given, cache) if method.learned else None,
        first=first,
        cache=cache,
        progress=given.get("progress", True),
        engine=given.get("engine") or EngineOptions(),
    )


def _calibration(experts: Experts, given: Mapping[str, Any], cache: Path) -> Samples:
    """The calibration of a learned method, every default filled in; ``UserError`` where it cannot be fitted."""
    if experts.models is None:
        raise UserError("a learned method runs the models: give folders or hub ids, not state dicts")
    prepare.check_learnable(experts.models)
    asked = _prompted(experts, given, cache)
    found = recipe.MergeRecipe({"calibration": asked}, experts.backbone).calibration
    return found.model_copy(update={"samples": prepare.enough(found, "samples" in asked, experts.backbone)})


def _prompted(experts: Experts, given: Mapping[str, Any], cache: Path) -> dict[str, Any]:
    """The calibration section of a recipe: prompts that are given as such become files in the cache."""
    prompts = given.get("prompts") or {}
    missing = [label for label in experts.labels if label not in prompts]
    if missing:
        raise UserError(
            f"the expert '{missing[0]}' has no prompts: give prompts={{'{missing[0]}': [...]}} or a JSONL file"
        )
    files = {}
    for label, asked in prompts.items():
        if not isinstance(asked, str | Path):
            lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in asked]
            asked = cache / "prompts" / f"{sha256_json(lines)}.jsonl"
            with atomic_write(asked) as part:
                part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files[label] = str(asked)
    numbers = {key: given[key] for key in ("samples", "response_tokens", "max_new_tokens") if key in given}
    return {"files": files, **numbers}


def merge(
    base: Model | Experts,
    experts: Mapping[str, Model] | Sequence[Model] | None = None,
    method: str = "ties",
    *,
    out: str | Path | None = None,
    **options: Any,
) -> Merged:
    """Merge ``experts`` of one ``base`` by a method; with ``out`` the result is written there at once.

    Models are folders, hub ids or state dicts; ``base`` may be :class:`Experts`, which are opened already. ``options``
    are the method's own (``emkit explain METHOD``), ``scale`` (λ, of a method with a free one), ``seed``, ``device``,
    and for learned methods ``prompts`` (of each expert, without answers: a JSONL file or a list), ``samples``,
    ``max_new_tokens``, ``cache`` (where calibration sets and fits are kept) and ``progress``. How models are opened:
    ``backbone``, ``tensors`` and ``allow`` of :class:`Experts`.
    """
    opening = {key: options.pop(key) for key in ("backbone", "tensors", "allow") if key in options}
    if not isinstance(base, Experts):
        if experts is None:
            raise UserError("there are no experts: emkit.merge(base, experts, method)")
        base = Experts(base, experts, **opening)
    merged = Merged(base, method, options)
    if out is not None:
        merged.save(out)
    return merged


def function(name: str) -> Callable[..., Merged]:
    """The method ``name`` as a function of a base and its experts, with its options as keyword arguments."""
    found = methods.get(name)

    def merge_by(base, experts=None, **options):
        return merge(base, experts, name, **options)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("base", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        inspect.Parameter("experts", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None),
    ]
    if "scale" in found.needs and "scale" not in found.options.model_fields:
        parameters.append(
            inspect.Parameter("scale", keyword, default=None if found.scale is None else found.scale.default)
        )
    if found.learned:
        parameters.append(inspect.Parameter("prompts", keyword))
    for key, field in found.options.model_fields.items():
        parameters.append(inspect.Parameter(key, keyword, default=default(field)[0], annotation=field.annotation))
    parameters.append(inspect.Parameter("more", inspect.Parameter.VAR_KEYWORD))
    merge_by.__name__ = merge_by.__qualname__ = name
    merge_by.__doc__ = f"{found.about}\n\nFurther keyword arguments are those of :func:`emkit.merge`."
    merge_by.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return merge_by


def methods_that_merge() -> list[str]:
    """The methods that are functions here."""
    return [name for name, found in methods.registry().items() if found.merges]


def named(name: str) -> Any:
    """What ``emkit.<name>`` is; ``AttributeError`` for nothing of this module and no method."""
    if name in ("Experts", "Live", "Merged", "merge"):
        return globals()[name]
    if name in methods_that_merge():
        return function(name)
    raise AttributeError(f"module 'emkit' has no attribute '{name}'")
