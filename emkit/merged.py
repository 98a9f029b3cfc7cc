"""A merge that was asked for in Python: made when it is looked at, changed, or saved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from emkit import methods
from emkit.alignment.options import EngineOptions
from emkit.alignment.sources import Samples
from emkit.coefficients import Coefficients
from emkit.config import default, own_defaults
from emkit.disk import user_cache
from emkit.errors import UserError
from emkit.experts import Experts
from emkit.files import atomic_write, sha256_json
from emkit.job import Job
from emkit.merging import Context, Merge
from emkit.own import merge as own
from emkit.own import prepare, recipe
from emkit.results import History, Importance


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
        first = methods.resolved(under, own_defaults(under.options), part, backbone=experts.backbone, where=method.name)
    cache = Path(given.get("cache") or user_cache())
    return Context(
        task_vectors=experts.vectors,
        options=methods.resolved(
            method, own_defaults(method.options), own, backbone=experts.backbone, where=method.name
        ),
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
