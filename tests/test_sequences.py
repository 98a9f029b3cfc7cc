"""A folded sequence is the same thing as its rows passed one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emkit import backbones
from emkit.alignment.sequences import Folded, batches, collate, fold
from emkit.zoo.data import example, prompt

internvl = backbones.get("internvl")


@pytest.fixture(scope="module")
def encoded(tiny_zoo):
    """Two images with their questions, one of them asked twice and answered differently."""
    model, processor = internvl.load(tiny_zoo / "base")
    out = []
    for index in (0, 1):
        found = example("gqa", "train", index, 5)
        questions = [prompt("gqa", qa) for qa in found.benchmark_qas] + [prompt("gqa", found.benchmark_qas[0])]
        answers = [qa.answer for qa in found.benchmark_qas] + ["yes, red"]
        out.append(internvl.encode(processor, [found.image] * len(questions), questions, answers))
    return model, out


def rows_of(batch):
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = [ids[:n].numpy() for ids, n in zip(batch["input_ids"], lengths)]
    return rows, batch["response_mask"].sum(1).tolist(), lengths


@pytest.mark.parametrize("tokens", ["response", "all"])
def test_folded_rows_have_the_logits_and_states_of_separate_rows(encoded, tokens):
    model, inputs = encoded
    sequences, features, logits, hidden, counts = [], [], [], [], []
    for batch in inputs:
        rows, responses, lengths = rows_of(batch)
        sequences.append(fold(rows, responses, tokens))
        tiles = len(batch["pixel_values"]) // len(rows)  # an image larger than the model's is cut into tiles
        features.append(internvl.image_features(model, batch["pixel_values"][:tiles]))
        with torch.no_grad():
            alone = internvl.forward(model, batch, hidden_layer=1)
        for r, (n, response) in enumerate(zip(lengths, responses)):
            start = 0 if tokens == "all" else n - response - 1
            stop = n if tokens == "all" else n - 1
            logits.append(alone.logits[r, start:stop])
            hidden.append(alone.hidden[r, start:stop])
    batch, taken = collate(sequences)
    with torch.no_grad():
        found = internvl.forward(model, batch, features=torch.cat(features), hidden_layer=1, positions=taken)
    counts = torch.cat([torch.from_numpy(s.count[s.count > 0]) for s in sequences])
    assert sum(len(s.ids) for s in sequences) < sum(sum(rows_of(b)[2]) for b in inputs) * 0.7
    # sums over all positions, each as often as it stands for a row, and one by one where nothing is shared
    for one, many in ((found.logits, logits), (found.hidden[taken], hidden)):
        many = torch.cat(many)
        assert int(counts.sum()) == len(many)
        torch.testing.assert_close((counts[:, None] * one).sum(0), many.double().sum(0), rtol=1e-4, atol=1e-3)
        if tokens == "response":
            torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5)


def test_sequences_survive_their_file(encoded):
    rows, responses, _ = rows_of(encoded[1][0])
    before = fold(rows, responses, "response")
    after = Folded.from_json(before.to_json())
    for field in ("ids", "positions", "block", "count"):
        np.testing.assert_array_equal(getattr(before, field), getattr(after, field))


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_batches_hold_every_index_once_within_the_budget(lengths, budget):
    found = batches(lengths, budget)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
