"""Which parameter of transformers' class each tensor of a checkpoint becomes, so that layouts can be compared.

One model is stored under several names: the hub's ``gpt2`` says ``h.0.attn…`` where ``save_pretrained`` writes
``transformer.h.0.attn…``; Qwen2-VL has ``visual.`` and ``model.visual.``; old files hold buffers that are computed anew
today. What is the same is what transformers makes of a name, so the renaming here is transformers' own: its conversion
rules and its rule of adding or taking away the base model's prefix, on an outline of the class without weights.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from emkit.backbones.base import Backbone, Batch, Output
from emkit.bounds import bounded
from emkit.checkpoints import Checkpoint
from emkit.content import side_files_sha256
from emkit.errors import UserError
from emkit.pretrained import configuration

# buffers that older versions stored and that are computed from the configuration: positions and causal masks
_BUFFERS = re.compile(
    r"(?:^|\.)(?:rotary_emb\.inv_freq|(?:attn|attention)\.(?:masked_)?bias|masked_bias|position_ids)$"
)

_OUTLINE = 30.0  # seconds for the modules of a model, on no device; those of 400 billion parameters take one


@dataclass(frozen=True)
class Layout:
    """The names of a class: its ``parameters``, which of them are ``tied`` to which other, and transformers' renaming.

    ``outline`` is the class on the meta device; None for a kind whose class only its own code has, where names are
    compared as the backbone writes them.
    """

    backbone: Backbone
    outline: torch.nn.Module | None = None
    parameters: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    _ignored: tuple[re.Pattern, ...] = field(default=(), repr=False)

    def parameter(self, name: str) -> str:
        """The parameter that a stored tensor becomes; of one that the class has no place for, its name."""
        if self.outline is None:
            return self.backbone.parameter_name(name)
        return _renamed(self.outline, name)[0]

    def unused(self, name: str) -> bool:
        """Whether transformers passes over a tensor: a buffer that is made anew, or a name that the class ignores."""
        parameter = self.parameter(name)
        if parameter in self.parameters:
            return False
        return bool(_BUFFERS.search(parameter)) or any(pattern.search(parameter) for pattern in self._ignored)

    def lacking(self, checkpoint: Checkpoint) -> list[str]:
        """Parameters that a checkpoint has no tensor for, and that transformers would fill with random numbers.

        Empty where parameters are put together of several tensors (the experts of a mixture): names say too little.
        """
        if self.outline is None or any(_renamed(self.outline, name, convert=True)[1] for name in checkpoint.names):
            return []
        there = {self.parameter(name) for name in checkpoint.names}
        return sorted(self.parameters - there - set(self.tied))

    def module(self, parameter: str) -> torch.nn.Module | None:
        """The module that a parameter called ``….weight`` belongs to; None where that cannot be told."""
        name = parameter.removesuffix(".weight")
        return dict(self.outline.named_modules()).get(name) if self.outline is not None else None

    def of_vocabulary(self, parameter: str) -> bool:
        """Whether a parameter has a row for each token: the embedding's or the head's."""
        found = self.module(parameter)
        if found is None or self.outline is None:
            return False
        return found is self.outline.get_input_embeddings() or found is self.outline.get_output_embeddings()


def of(folder: Path, backbone: Backbone) -> Layout:
    """The layout that a folder's configuration asks for."""
    try:
        config = configuration(folder)
        with (
            bounded(f"an outline of the model that {folder / 'config.json'} describes", _OUTLINE),
            torch.device("meta"),
        ):
            outline = backbone.auto().from_config(config, trust_remote_code=False)
    except UserError:  # one of a million blocks
        raise
    except Exception:  # whatever a kind that transformers has no class for raises: no code but its own is run
        return Layout(backbone)
    names = frozenset(name for name, _ in outline.named_parameters(remove_duplicate=False))
    tied = dict(getattr(outline, "all_tied_weights_keys", None) or {})
    ignored = tuple(map(re.compile, outline._keys_to_ignore_on_load_unexpected or ()))
    return Layout(backbone, outline, names, tied, ignored)


def _renamed(outline: torch.nn.Module, name: str, convert: bool = False) -> tuple[str, str | None]:
    """transformers' name of a stored tensor (``core_model_loading``), before tensors are split or put together, or with
    ``convert`` after it; and the rule that does that, if any."""
    from transformers.core_model_loading import rename_source_key

    renamings, converters, state = _rules(outline)
    prefix = outline.base_model_prefix
    made, rule = rename_source_key(name, renamings, converters, prefix, state)
    if convert or rule is None:
        return made, rule
    # the prefix that what is made of this tensor gets or loses is the tensor's too
    bare, plain = rename_source_key(name, renamings, converters)[0], rename_source_key(name, renamings, [])[0]
    if made == f"{prefix}.{bare}":
        return f"{prefix}.{plain}", rule
    return (plain.removeprefix(f"{prefix}.") if bare == f"{prefix}.{made}" else plain), rule


@functools.lru_cache(maxsize=4)  # modules are told apart by identity
def _rules(outline: torch.nn.Module) -> tuple[list, list, dict]:
    """transformers' rules for the class: renamings, those that split or put together, and the names it has."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    rules = get_model_conversion_mapping(outline)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    return [rule for rule in rules if rule not in converters], converters, dict(outline.state_dict())


def aligned(
    base: Checkpoint, experts: Mapping[str, Checkpoint], backbone: Backbone, layout: Layout | None = None
) -> dict[str, Checkpoint]:
    """The experts under the base's names: views with each tensor that becomes a parameter the base has.

    What the base has no place for is left out (see :func:`beyond`), and what an expert lacks is missing: only of merged
    tensors does that matter, and there :class:`emkit.task_vectors.TaskVectors` says so. ``UserError`` where two tensors
    of one checkpoint claim a parameter.
    """
    found = {}
    for label, expert in experts.items():
        if base.names != expert.names:
            layout = of(base.path, backbone) if layout is None else layout
            own = by_parameter(expert, layout, f"expert '{label}'")
            wanted = by_parameter(base, layout, "the base")
            names = {name: own[parameter] for parameter, name in wanted.items() if parameter in own}
            expert = expert.renamed(names) if names else expert
        found[label] = expert
    return found


def beyond(base: Checkpoint, expert: Checkpoint, layout: Layout) -> list[str]:
    """The names of an expert's tensors that become no parameter of the base's, buffers aside."""
    there = {layout.parameter(name) for name in base.names}
    return [name for name in expert.names if layout.parameter(name) not in there and not layout.unused(name)]


def by_parameter(checkpoint: Checkpoint, layout: Layout, label: str) -> dict[str, str]:
    """Parameter → stored name of a checkpoint's tensors."""
    found: dict[str, str] = {}
    for name in checkpoint.names:
        parameter = layout.parameter(name)
        if parameter in found and not layout.unused(name):
            raise UserError(
                f"{label} ({checkpoint.path}): '{found[parameter]}' and '{name}' are both the parameter '{parameter}': "
                "save the model again with transformers"
            )
        found[parameter] = name
    return found


class Wrapped(Backbone):
    """Another backbone, for a subclass that does something of it in its own way."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self.VISION = backbone.VISION
        self.PICTURES = backbone.PICTURES

    @property
    def name(self) -> str:
        return self.backbone.name

    @property
    def asked_as(self) -> str | None:
        return self.backbone.asked_as

    def reads(self, kind: str) -> bool:
        return self.backbone.reads(kind)

    def auto(self) -> Any:
        return self.backbone.auto()

    def merged_block(self, name: str) -> int | None:
        return self.backbone.merged_block(name)

    def by_head(self, name: str) -> bool:
        return self.backbone.by_head(name)

    def head_rows(self, model: Any) -> int:
        return self.backbone.head_rows(model)

    def parameter_name(self, name: str) -> str:
        return self.backbone.parameter_name(name)

    def processor(self, folder: str | Path) -> Any:
        return self.backbone.processor(folder)

    def encode(self, *args: Any, **kwargs: Any) -> Batch:
        return self.backbone.encode(*args, **kwargs)

    def image_features(self, model: Any, *inputs: torch.Tensor | None) -> torch.Tensor:
        return self.backbone.image_features(model, *inputs)

    def vision_state(self, model: Any) -> dict[str, torch.Tensor]:
        return self.backbone.vision_state(model)

    def forward(self, *args: Any, **kwargs: Any) -> Output:
        return self.backbone.forward(*args, **kwargs)

    def asked(self, model: Any, batch: Batch, features: list[torch.Tensor] | None) -> dict[str, Any]:
        return self.backbone.asked(model, batch, features)

    def answer(self, text: str) -> str:
        return self.backbone.answer(text)


class Asked(Wrapped):
    """A backbone that asks every model with the tokenizer, or processor, and the chat template of one ``folder``."""

    def __init__(self, backbone: Backbone, folder: Path):
        super().__init__(backbone)
        self.folder = folder

    @property
    def asked_as(self) -> str | None:
        return side_files_sha256(self.folder)

    def processor(self, folder: str | Path) -> Any:
        return self.backbone.processor(self.folder)

    def load(self, folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Any, Any]:
        """The model as the backbone loads it, an adapter's too, whatever tokenizer comes with it."""
        return self.backbone.load(folder, dtype, device)[0], self.processor(folder)


class Named(Wrapped):
    """A backbone for a base that is stored under other names than the backbone's rule knows."""

    def __init__(self, backbone: Backbone, names: Mapping[str, str]):
        super().__init__(backbone)
        self._names = dict(names)

    def parameter_name(self, name: str) -> str:
        return self._names.get(name, name)

    def merged_names(self, names: Iterable[str]) -> list[str]:
        """The stored names of the parameters that merging touches, in the backbone's order."""
        stored = {self.parameter_name(name): name for name in names}
        return [stored[parameter] for parameter in self.backbone.merged_names(stored)]
