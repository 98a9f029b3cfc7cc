"""A cheaper way through the same model during a fit: what no loss looks at is not computed, and norms are one function.

After the last block only the positions where losses are taken matter. There every position gives keys and values, but
queries, the output matrix and the gated part are needed at those positions alone: with answers of a word to images of
many tokens that is one position in fifteen. Values are the model's own, within the rounding of sums in another order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2

# blocks whose attention is known to be the plain one: rotary positions, grouped keys, nothing else
_BLOCKS = {
    modeling_llama.LlamaDecoderLayer: modeling_llama,
    modeling_mistral.MistralDecoderLayer: modeling_mistral,
    modeling_qwen2.Qwen2DecoderLayer: modeling_qwen2,
}
_NORMS = (modeling_llama.LlamaRMSNorm, modeling_mistral.MistralRMSNorm, modeling_qwen2.Qwen2RMSNorm)
_FORWARDS = {norm: norm.forward for norm in _NORMS}  # a class with another forward is left alone


@contextlib.contextmanager
def lean(model: torch.nn.Module) -> Iterator[None]:
    """Inside, fp32 norms are :class:`_Norm`; the model is as it was afterwards."""
    norms = [m for m in model.modules() if type(m) in _NORMS and type(m).forward is _FORWARDS[type(m)]]
    norms = [m for m in norms if m.weight.dtype == torch.float32 and not m.weight.requires_grad]
    for norm in norms:
        norm.forward = lambda x, norm=norm: _Norm.apply(x, norm.weight, norm.variance_epsilon)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


@contextlib.contextmanager
def at_positions(model: torch.nn.Module, taken: torch.Tensor) -> Iterator[None]:
    """Inside, the last block's output holds only at ``taken`` (bool [B, S]); elsewhere it is 0.

    Models of other kinds of blocks, other attention than SDPA and masks of other forms are left as they are.
    """
    block = _last(model)
    if block is None or 2 * int(taken.sum()) > taken.numel():  # little to save
        yield
        return
    whole = block.forward

    def forward(hidden, attention_mask=None, position_embeddings=None, **others):
        if attention_mask is None or attention_mask.ndim != 4 or attention_mask.dtype != torch.bool:
            return whole(hidden, attention_mask=attention_mask, position_embeddings=position_embeddings, **others)
        return _partly(block, hidden, attention_mask, position_embeddings, taken)

    block.forward = forward
    try:
        yield
    finally:
        del block.forward


def _last(model: torch.nn.Module) -> torch.nn.Module | None:
    """The last block, if it is of a kind that is known."""
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and type(m) in _BLOCKS]
    if not blocks or (blocks[-1].gradient_checkpointing and blocks[-1].training):
        return None
    attention = blocks[-1].self_attn
    plain = attention.config._attn_implementation == "sdpa" and getattr(attention, "sliding_window", None) is None
    return blocks[-1] if plain else None


def _partly(block, hidden: torch.Tensor, mask: torch.Tensor, embeddings, taken: torch.Tensor) -> torch.Tensor:
    """The block's output [B, S, d] at the positions taken."""
    attention, (batch, length, _) = block.self_attn, hidden.shape
    order = torch.argsort(~taken, dim=1, stable=True)[:, : max(int(taken.sum(1).max()), 1)]  # [B, n]: taken ones first
    real = taken.gather(1, order)
    rows = torch.arange(batch, device=hidden.device)[:, None]
    residual, normed = hidden[rows, order], block.input_layernorm(hidden)
    width = attention.head_dim
    query = attention.q_proj(normed[rows, order]).view(batch, -1, attention.config.num_attention_heads, width)
    key, value = (
        p(normed).view(batch, length, -1, width).transpose(1, 2) for p in (attention.k_proj, attention.v_proj)
    )
    rotate = _BLOCKS[type(block)].apply_rotary_pos_emb
    cos, sin = embeddings
    key = rotate(key, key, cos, sin)[1]
    query = query.transpose(1, 2)
    query = rotate(query, query, cos.expand(batch, -1, -1)[rows, order], sin.expand(batch, -1, -1)[rows, order])[0]
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    seen = mask.expand(batch, 1, length, length)[rows, 0, order][:, None]
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=attention.scaling)
    states = residual + attention.o_proj(found.transpose(1, 2).reshape(batch, order.shape[1], -1))
    states = states + block.mlp(block.post_attention_layernorm(states))
    out = torch.zeros_like(hidden)
    return out.index_put((rows.expand_as(order)[real], order[real]), states[real])


@contextlib.contextmanager
def recomputed(model: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """Activation checkpointing of every block inside: transformers' own, which asks for a block in training mode."""
    blocks = [module for module in model.modules() if wanted and isinstance(module, GradientCheckpointingLayer)]
    for block in blocks:
        block.gradient_checkpointing, block.training = True, True
        block._gradient_checkpointing_func = _checkpointed(block)
    try:
        yield
    finally:
        for block in blocks:
            block.gradient_checkpointing, block.training = False, False


def _checkpointed(block: torch.nn.Module) -> Callable:
    """Runs the block in evaluation mode now and when it is recomputed, so that dropout of its own stays off too."""

    def quiet(call, *args):
        block.training = False
        try:
            return call(*args)
        finally:
            block.training = True

    return lambda call, *args: checkpoint(quiet, call, *args, use_reentrant=False)


class _Norm(torch.autograd.Function):
    """y = w ⊙ x / √(mean x² + ε) over the last dimension, x fp32; its gradient with respect to x."""

    @staticmethod
    def forward(ctx, x, weight, epsilon):
        scale = torch.rsqrt(torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(epsilon)).unsqueeze(-1)
        ctx.save_for_backward(x, scale, weight)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx, grad):
        x, scale, weight = ctx.saved_tensors
        grad = grad * weight
        share = torch.linalg.vecdot(grad, x).unsqueeze(-1).mul_(scale**3).div_(x.shape[-1])
        return grad.mul_(scale).addcmul_(x, share, value=-1), None, None
