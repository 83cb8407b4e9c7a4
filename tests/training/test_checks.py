"""The checks before training: a right model passes; each mistake they are there for is named."""

import numpy as np
import pytest
import torch

import tiny_models
from tiny_models import END, FIRST, START
from training.conftest import made, write_json_lines
from warmstart import EncoderDecoderModel
from warmstart.training.checks import check_batch, overfit
from warmstart.training.examples import Limits, load_examples
from warmstart.training.pairs import Data


@pytest.mark.parametrize("pair", tiny_models.PAIRS)
def test_a_right_model_passes_and_is_left_as_it_was(pair):
    model, batch = tiny_models.pair(*pair), tiny_models.batch(rows=12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = check_batch(model, batch)
    assert set(seen) == {"ids", "labels", "start", "source", "gradients"}
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def broken(change):
    model, batch = tiny_models.pair("bert", "bert"), tiny_models.batch()
    change(model, batch)
    return model, batch


def source_id(model, batch):
    batch["input_ids"][0, 0] = tiny_models.VOCABULARY


def label_id(model, batch):
    batch["labels"][0, 0] = tiny_models.VOCABULARY


def no_start(model, batch):
    model.config.decoder_start_token_id = None


def all_ignored(model, batch):
    batch["labels"][:] = -100


def start_in_labels(model, batch):
    batch["labels"][:, 0] = START


def one_token_again_and_again(model, batch):
    batch["labels"][:] = START


def deaf(model, batch):
    for layer in model.decoder.layers:
        torch.nn.init.zeros_(layer.cross_attention.output.weight)


def unused(model, batch):
    model.pooler = torch.nn.Linear(2, 2)


def frozen(model, batch):
    model.requires_grad_(False)


def broken_weight(model, batch):
    with torch.no_grad():
        model.encoder.layers[0].mlp.up.weight[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (source_id, "token id 37 .* outside the encoder stack's vocabulary of 37"),
        (label_id, "label 37 is neither -100 nor in the decoder's vocabulary"),
        (no_start, "decoder_start_token_id is not set"),
        (all_ignored, "nothing to learn"),
        (start_in_labels, f"begins with the start id {START}"),
        (one_token_again_and_again, f"begins with the start id {START}"),
        (deaf, "another source gives the same logits"),
        (unused, r"2 of \d+ parameters .* no gradient: pooler.weight, pooler.bias"),
        (frozen, "everything is frozen"),
        (broken_weight, "another source gives the same logits|not finite"),
    ],
)
def test_each_mistake_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        check_batch(*broken(change))


def test_labels_that_are_the_inputs_are_refused(monkeypatch):
    model, batch = tiny_models.pair(), tiny_models.batch()
    monkeypatch.setattr(EncoderDecoderModel, "prepare_decoder_input_ids_from_labels", lambda self, labels: labels)
    with pytest.raises(ValueError, match="the decoder's inputs are its labels"):
        check_batch(model, batch)


def test_one_row_is_looked_at_too():
    batch = {name: value[:1] for name, value in tiny_models.batch().items()}
    assert "moves the logits" in check_batch(tiny_models.pair(), batch)["source"]
    batch["input_ids"][:] = FIRST
    assert "not looked at" in check_batch(tiny_models.pair(), batch)["source"]


@pytest.fixture
def examples(reads, writes, tmp_path):
    return load_examples(Data(write_json_lines(tmp_path / "p.jsonl", made(20))), reads, writes, END, Limits(12, 6))


def test_eight_pairs_are_learnt_by_heart(examples):
    told = []
    loss = overfit(tiny_models.pair(spread=0.05), examples, 8, rate=0.02, watch=lambda step, loss: told.append(loss))
    assert loss < 0.01 < told[0] and told[-1] == loss


def test_what_cannot_be_learnt_is_said(examples):
    with pytest.raises(ValueError, match="8 pairs were not learnt by heart: after 5 steps"):
        overfit(tiny_models.pair(spread=0.05), examples, 8, steps=5)


def test_generation_that_does_not_agree_is_said(examples, monkeypatch):
    model = tiny_models.pair(spread=0.05)
    monkeypatch.setattr(EncoderDecoderModel, "generate", lambda self, **options: torch.tensor([[START, FIRST]]))
    with pytest.raises(ValueError, match=r"2 of 2 targets are not written by greedy search \(rows 0, 1\)"):
        overfit(model, examples.select(np.arange(2)), rate=0.02)
