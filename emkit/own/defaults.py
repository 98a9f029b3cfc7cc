"""What a merge of one's own models takes where its recipe says nothing, and why.

There is no validation set to choose a scale on, and the learned methods have options that every recipe of a table must
give; here each has a value: the paper's where it has one, else ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emkit.alignment.learner import SCALE


@dataclass(frozen=True)
class Default:
    """A ``value`` and its ``source``: who says so, or why it is ours."""

    value: Any
    source: str


_AVERAGED = Default(1.0, "TIES' authors: 1 without a validation set, because agreeing entries are averaged, not added")
_ADDED = Default(0.3, "paper, Appendix B.2: 0.3, validated by Task Arithmetic, for its Mistral and its Qwen2-VL")
_INTERNVL = Default(0.1, "paper, Appendix B.2: 0.1, validated by Task Arithmetic, for InternVL2.5")
_ISO_C = Default(
    1.0, "ours: the singular values then sum to those of the added task vectors; its authors search (0, 3]"
)


def scale(method: str, backbone: str) -> Default | None:
    """λ of a method with a free scale, or where a learned method starts; None for a method without one.

    Task vectors that are added up take the paper's value for the kind of model, averaged ones 1.
    """
    added = _INTERNVL if backbone == "internvl" else _ADDED
    known = dict.fromkeys(("task_arithmetic", "ta_dare", "expert_merging", "expert_merging_pp"), added)
    return {**known, "ties": _AVERAGED, "ties_dare": _AVERAGED, "iso_c": _ISO_C}.get(method)


_OPTIMISER = {"name": "adamw", "lr": 0.01, "weight_decay": 0.0, "steps": 50, "schedule": "cosine", "batch": 1}
_LEARNED = {
    "initial": Default(SCALE, "paper, Section 3.2: the fit starts from Task Arithmetic's coefficient; here `scale`"),
    "parameterisation": Default("plain", "paper, Section 3.2: α itself (the authors' code trains a sigmoid's input)"),
    "temperature": Default(1.0, "authors' code: 1.0"),
    "beta": Default({}, "authors' code: 1 for every expert; the paper's values are unpublished"),
    "regulariser": Default("authors", "authors' code, whose units Appendix B.2's γ is in"),
    "hidden_loss": Default("mean_squared", "authors' code (Eq. 1's squared norm outweighs the KL by the width)"),
    "hidden_layer": Default("middle", "paper, Appendix B.2: the middle block"),
    "tokens": Default("response", "ours: the responses are what the experts are experts in (the authors' code: all)"),
    "optimiser": Default(_OPTIMISER, "ours: AdamW on α, one sample of every expert a step; the paper publishes none"),
}
_CHUNKS = {
    "kappa": Default(1.2, "paper, Appendix B.2: 1.2"),
    "budget": Default(1.0, "paper, Appendix B.2: 0.9 to 1.2 times the number of merged tensors"),
    "fixed": Default("stage1", "ours: keeps what the first fit learned (the authors' code: initial)"),
    "start": Default("stage1", "paper, Section 4.1: the second fit starts from the learned coefficients"),
}
_GAMMA = {
    "internvl": Default(5.0, "paper, Appendix B.2: 5 for InternVL2.5"),
    None: Default(0.8, "paper, Appendix B.2: 0.8 for its Mistral and its Qwen2-VL"),
}


def options(method: str, backbone: str) -> Mapping[str, Default]:
    """Values of the options that the method itself has no default for."""
    if method not in ("expert_merging", "expert_merging_pp"):
        return {}
    gamma = {"gamma": _GAMMA.get(backbone, _GAMMA[None])}
    return {**_LEARNED, **gamma, **(_CHUNKS if method == "expert_merging_pp" else {})}


_SAMPLES = {
    "internvl": Default(5, "paper, Appendix B.2: 5 a task for InternVL2.5"),
    "qwen2_vl": Default(10, "paper, Appendix B.2: 10 a task for Qwen2-VL"),
    None: Default(5, "paper, Appendix B.2: 5 a task for its Mistral"),
}


def calibration(backbone: str) -> Mapping[str, Default]:
    """The ``calibration`` section of a learned method's recipe, but for its files."""
    return {
        "samples": _SAMPLES.get(backbone, _SAMPLES[None]),
        "response_tokens": Default(1, "paper: a sample is one prompt with the expert's whole response"),
        "max_new_tokens": Default(128, "ours: the length of the experts' responses is unpublished"),
    }
