"""The chunked loss: equal to the model's own, its gradients too; in parts equal to the whole; never all logits."""

import copy

import pytest
import torch

import tiny_models
from warmstart.torch import widened
from warmstart.torch.engine import native
from warmstart.training import loss as module
from warmstart.training.loss import PairLoss


def both(model, batch, smoothing):
    """Loss and gradients of the model's own loss and of the chunked one."""
    results = []
    for chunked in (False, True):
        one = copy.deepcopy(model).train()
        if chunked:
            loss = PairLoss(one, smoothing)(**batch, count=int((batch["labels"] != -100).sum()))
        else:
            loss = one(**batch, label_smoothing=smoothing).loss
        loss.backward()
        results.append((loss.item(), tiny_models.gradients(one)))
    return results


@pytest.mark.parametrize("pair", tiny_models.PAIRS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equal_to_the_whole(pair, smoothing, monkeypatch):
    monkeypatch.setitem(module._LOGITS_AT_ONCE, "cpu", 4 * tiny_models.VOCABULARY)  # several chunks, the last not full
    (own, theirs), (chunked, ours) = both(tiny_models.pair(*pair), tiny_models.batch(), smoothing)
    assert abs(own - chunked) < 1e-6
    tiny_models.assert_equal_gradients(ours, theirs)


def test_tied_models_have_both_gradients():
    model = tiny_models.pair("bert", "bert", tie_encoder_decoder=True)
    (own, theirs), (chunked, ours) = both(model, tiny_models.batch(), 0.1)
    assert abs(own - chunked) < 1e-6
    tiny_models.assert_equal_gradients(ours, theirs)


def test_frozen_head_gets_no_gradient_and_states_do():
    model = tiny_models.pair("bert", "gpt2").train()
    model.freeze_all_but_cross_attention()
    PairLoss(model)(**tiny_models.batch(), count=3).backward()
    had = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert had == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert had and all("cross_attention" in name or "proj" in name for name in had)


def test_no_gradient_is_made_where_none_is_wanted():
    model, batch = tiny_models.pair().eval(), tiny_models.batch()
    with torch.no_grad():
        loss = PairLoss(model, 0.1)(**batch, count=int((batch["labels"] != -100).sum()))
    assert not loss.requires_grad and abs(loss - model(**batch).loss) < 1e-6  # no smoothing in eval mode


def test_the_logits_of_a_batch_never_stand_in_memory():
    """Peak of what autograd and the loss allocate, from torch's profiler: below the logits of the batch."""
    model = tiny_models.pair(
        tiny_models.config("bert", vocab_size=20_000), tiny_models.config("bert", vocab_size=20_000)
    )
    labels = torch.randint(5, 100, (64, 30))
    batch = {"input_ids": labels, "attention_mask": torch.ones_like(labels), "labels": labels}
    largest = {}
    for name, run in (
        ("own", lambda: model(**batch).loss),
        ("chunked", lambda: PairLoss(model)(**batch, count=labels.numel())),
    ):
        model.train().zero_grad()
        with torch.profiler.profile(profile_memory=True) as profile:
            run().backward()
        largest[name] = max(event.self_cpu_memory_usage for event in profile.events())
    logits = labels.numel() * 20_000 * 4
    assert largest["own"] >= logits > 4 * largest["chunked"], largest


def test_bf16_autocast_is_close():
    model, batch = tiny_models.pair("bert", "bert").train(), tiny_models.batch()
    exact = PairLoss(model, 0.1)(**batch, count=10)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = PairLoss(model, 0.1)(**batch, count=10)
    rounded.backward()
    assert 0 < abs(exact - rounded) < 0.02 * exact
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_add_up_to_the_whole(parts):
    """1 x 8 = 2 x 4 = 4 x 2 = 8 x 1."""
    model, batch = tiny_models.pair("roberta", "gpt2").train(), tiny_models.batch(rows=8, source=12, target=11)
    count = int((batch["labels"] != -100).sum())
    whole = PairLoss(model, 0.1)(**batch, count=count)
    whole.backward()
    theirs = tiny_models.gradients(model)
    model.zero_grad()
    total = 0.0
    for rows in torch.arange(8).chunk(parts):
        loss = PairLoss(model, 0.1)(**{name: value[rows] for name, value in batch.items()}, count=count)
        loss.backward()
        total += loss.item()
    assert abs(total - whole.item()) < 1e-6
    tiny_models.assert_equal_gradients(tiny_models.gradients(model), theirs, 1e-6)


@pytest.mark.parametrize("is_fast", [True, False])
def test_bf16_by_either_kind_of_products(is_fast, monkeypatch):
    """Loss and gradients are near to those of fp32 either way; products are widened where that is faster."""
    monkeypatch.setattr(native, "has_fast_bf16", lambda: is_fast)
    model, batch = tiny_models.pair("bert", "gpt2").train(), tiny_models.batch()
    other, results, seen = copy.deepcopy(model), [], []
    own = widened._Linear.backward
    monkeypatch.setattr(widened._Linear, "backward", staticmethod(lambda *x: (seen.append(1), own(*x))[1]))
    model.encoder.layers[0].mlp.up.register_forward_hook(lambda module, inputs, out: results.append(out.dtype))
    for one, dtype in ((model, torch.bfloat16), (other, None)):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = PairLoss(one, 0.1)(**batch, count=15)
        loss.backward()
        results += [loss.item(), tiny_models.gradients(one)]
    kind, rounded, gradients, exact, wanted = results
    assert kind == torch.bfloat16 and 0 < abs(rounded - exact) < 0.01 * exact and bool(seen) != is_fast
    for name, value in wanted.items():
        assert gradients[name].dtype == torch.float32
        assert (gradients[name] - value).norm() < 0.1 * value.norm() + 1e-2, name  # keys' biases have none
