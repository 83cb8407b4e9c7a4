"""Rows one behind another: the loss and gradients of padded rows, and no padding in what is computed for each token."""

import copy

import pytest
import torch

import tiny_models
from warmstart.torch import stack
from warmstart.training.loss import PairLoss

PAIRS = [*tiny_models.PAIRS, ("modernbert", "mistral"), ("electra", "gptj"), ("roformer", "modernbert-decoder")]


def loss_and_gradients(model, batch, monkeypatch, packed):
    one = copy.deepcopy(model).train()
    with monkeypatch.context() as patch:
        if not packed:
            patch.setattr(stack, "packing_of", lambda *arguments: None)
        loss = PairLoss(one, 0.1)(**batch, count=int((batch["labels"] >= 0).sum()))
    loss.backward()
    return loss.item(), tiny_models.gradients(one)


@pytest.mark.parametrize("pair", PAIRS)
def test_equal_to_padded_rows(pair, monkeypatch):
    model, batch = tiny_models.pair(*pair), tiny_models.batch(4, 12, 9)
    (own, ours), (padded, theirs) = (loss_and_gradients(model, batch, monkeypatch, packed) for packed in (True, False))
    assert abs(own - padded) < 1e-6
    tiny_models.assert_equal_gradients(ours, theirs)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_layers_see_no_padding(dropout):
    side = tiny_models.config("bert", hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model, batch, rows = tiny_models.pair(side, copy.deepcopy(side)).train(), tiny_models.batch(4, 12, 9), []
    for part in (model.encoder, model.decoder):
        part.layers[1].mlp.up.register_forward_hook(lambda module, inputs, out: rows.append(out.shape[:-1].numel()))
    model.decoder.layers[0].cross_attention.key.register_forward_hook(
        lambda module, inputs, out: rows.append(len(out[0]))
    )
    PairLoss(model)(**batch, count=3).backward()
    source = int(batch["attention_mask"].sum())
    assert rows[:2] == [source, source] and int((batch["labels"] >= 0).sum()) <= rows[2] < 36


def test_other_masks_are_left_as_they_are(monkeypatch):
    """Padding before the text, and a source that is all padding."""
    model, batch = tiny_models.pair("bert", "bert"), tiny_models.batch()
    for mask in (batch["attention_mask"].flip(1), batch["attention_mask"] * torch.tensor([[1], [0], [1]])):
        given = {**batch, "attention_mask": mask}
        (own, ours), (padded, theirs) = (
            loss_and_gradients(model, given, monkeypatch, packed) for packed in (True, False)
        )
        assert own == padded
        tiny_models.assert_equal_gradients(ours, theirs, 0.0)
