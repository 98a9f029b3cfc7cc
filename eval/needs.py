"""What a profile's rows take of disk and memory: by the models' headers and configurations, once these are here."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emkit import backbones, layouts
from emkit.alignment.memory import GPU_OWN, gpu_bytes, model_bytes
from emkit.own import checks
from emkit.own.resources import estimate, human, size
from emkit.task_vectors import TaskVectors
from eval import models
from eval.checkpoints import base_and_experts
from eval.plan import Plan


@dataclass(frozen=True)
class Needs:
    """Bytes: ``merged`` of a merged model on disk, one for each row at once; of the device's memory what a ``fit``
    takes at least (0: nothing is fitted), and ``answers``: the model with the keys and values of as many of the longest
    answers as are given at once, their prompts left out."""

    merged: int
    fit: int
    answers: int

    @property
    def said(self) -> str:
        """The two of memory in words."""
        fit = f"a fit about {human(self.fit)}, " if self.fit else ""
        return f"{fit}answers about {human(self.answers)} and what their prompts take"

    @property
    def device(self) -> int:
        """The most that is needed of a device at a time."""
        return max(self.fit, self.answers)


def needs(plan: Plan) -> Needs | None:
    """What the plan's rows need; None while not all models are here."""
    if not models.are_there(plan):
        return None
    profile, backbone = plan.profile, backbones.get(plan.backbone)
    folders = {role: plan.folder(role) for role in ("base", *profile.models.experts)}
    base, experts = base_and_experts(folders.pop("base"), folders, backbone, profile.models.base)
    outline = layouts.of(base.path, backbone).outline
    if outline is None:
        return None
    vectors = TaskVectors(base, layouts.aligned(base, experts, backbone), backbone.merged_names)
    fit = _fit(plan, vectors, outline)
    return Needs(size(base), fit, _answers(plan, outline.to(getattr(torch, plan.dtype))))


def _fit(plan: Plan, vectors: TaskVectors, outline: torch.nn.Module) -> int:
    """Of a GPU's memory, or on the CPU of the host's as ``emkit merge`` estimates it, what the plan's fits take."""
    engine, learned = plan.profile.fits.engine, {job.row for job in plan.jobs if plan.method(job.row).learned}
    if not learned:
        return 0
    if plan.on_gpu:
        return gpu_bytes(vectors, outline.to(engine.torch_dtype), engine)
    text, device = dict(checks.config(vectors.base.path, "the base").text), plan.profile.device
    each = ((plan.method(row), vectors, text, plan.calibration(row), engine, device) for row in sorted(learned))
    return max(estimate(*about).memory for about in each)


def _answers(plan: Plan, model: torch.nn.Module) -> int:
    config, longest = model.config.get_text_config(), max(c.max_new_tokens for c in plan.protocol.columns.values())
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * width * next(model.parameters()).element_size()
    return model_bytes(model) + plan.protocol.generation.batch * longest * token + GPU_OWN * plan.on_gpu
