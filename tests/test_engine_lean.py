"""The cheaper pass of a fit: equal to the stock model's at the positions taken, really cheaper, and gone afterwards."""

import pytest
import tiny_models as tiny
import torch

from emkit import backbones
from emkit.alignment.lean import at_positions, lean

causal_lm = backbones.get("causal_lm")


def batch_of(model, rows=3, length=20):
    """Sequences of a prefix and two rows that do not see each other; few positions taken, in one sequence none."""
    ids = torch.randint(5, 100, (rows, length), generator=torch.Generator().manual_seed(0))
    block = torch.tensor([0] * 8 + [1] * 6 + [2] * 6)
    seen = ((block[None] == 0) | (block[None] == block[:, None])).tril().expand(rows, 1, length, length)
    taken = torch.zeros(rows, length, dtype=torch.bool)
    taken[0, [5, 12, 13]] = taken[1, [19]] = True
    return {"input_ids": ids, "attention_mask": seen, "position_ids": torch.arange(length).expand(rows, -1)}, taken


def passed(model, batch, taken, cheap: bool):
    """Logits at the positions taken and the gradients of every matrix."""
    model.requires_grad_(False)
    weights = [p for name, p in model.named_parameters() if "proj" in name]
    for weight in weights:
        weight.requires_grad_(True)
    rows = []
    handle = model.model.layers[-1].mlp.register_forward_hook(lambda m, x, y: rows.append(y[..., 0].numel()))
    if cheap:
        with lean(model), at_positions(model, taken):
            logits = causal_lm.forward(model, batch, positions=taken).logits
    else:
        logits = causal_lm.forward(model, batch, positions=taken).logits
    handle.remove()
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    return logits.detach(), torch.autograd.grad((logits * weight).sum(), weights, allow_unused=True), rows[0]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_values_and_gradients_are_the_stock_models(kind):
    model = tiny.language_model(kind, blocks=3)
    batch, taken = batch_of(model)
    logits, gradients, rows = passed(model, batch, taken, False)
    found, others, fewer = passed(model, batch, taken, True)
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    for one, two in zip(others, gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert (rows, fewer) == (60, 9)  # three sequences of the longest three
    assert not any("forward" in vars(module) for module in model.modules())


def test_other_attention_and_other_masks_take_the_stock_way():
    for changes in ({"attn_implementation": "eager"}, {}):
        model = tiny.language_model("qwen2", blocks=2)
        if changes:
            model.set_attn_implementation("eager")
        batch, taken = batch_of(model)
        if not changes:
            batch["attention_mask"] = torch.zeros(batch["attention_mask"].shape).masked_fill(
                ~batch["attention_mask"], torch.finfo(torch.float32).min
            )
        logits, _, rows = passed(model, batch, taken, False)
        found, _, same = passed(model, batch, taken, True)
        torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
        assert rows == same == 60


def test_where_most_positions_are_taken_nothing_is_left_out():
    model = tiny.language_model("qwen2", blocks=2)
    batch, taken = batch_of(model)
    assert passed(model, batch, torch.ones_like(taken), True)[2] == 60


def test_norms_in_bfloat16_stay_as_they_are():
    model = tiny.language_model("qwen2").to(torch.bfloat16)
    with lean(model):
        assert not any("forward" in vars(module) for module in model.modules())
