"""What is made again for a backward pass: the same gradients bit for bit, from less that is kept."""

import copy

import pytest
import torch

import tiny_models
from warmstart.torch import spared

PAIRS = [("bert", "gpt2"), ("modernbert", "bert"), ("roberta", "llama"), ("bert", "gemma2")]  # norms after and before


def leaves(kept):
    """The tensors that something is made of."""
    return [leaf for one in kept.sources for leaf in leaves(one)] if isinstance(kept, spared._Remade) else [kept]


def run(model, batch):
    """Loss and gradients, and the bytes of what was kept in layers."""
    kept, seen, pack = [], set(), spared._pack

    def counting(x):
        found = pack(x)
        for tensor, _ in leaves(found):
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                kept.append(tensor)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spared, "_pack", counting)
        torch.manual_seed(0)
        loss = model(**batch).loss
    own = {x.data_ptr() for x in model.parameters()}
    size = sum(x.nbytes for x in kept if x.data_ptr() not in own)
    loss.backward()
    return loss.item(), tiny_models.gradients(model), size


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_gradients_are_the_same_bit_for_bit(pair, kind, monkeypatch):
    model = tiny_models.pair(*pair).train()
    other, results = copy.deepcopy(model), []
    for one in (model, other):
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            results.append(run(one, tiny_models.batch()))
        for room in ("attention", "layers"):
            monkeypatch.setattr(f"warmstart.torch.{room}.branches", lambda x, count: [x] * count)
        monkeypatch.setattr("warmstart.torch.layers.note", lambda out, *_: out)
        monkeypatch.setattr("warmstart.torch.layers.normed", lambda norm, x: norm(x))
    (loss, gradients, size), (own_loss, own_gradients, own_size) = results
    assert loss == own_loss and gradients.keys() == own_gradients.keys()
    assert all(torch.equal(value, own_gradients[name]) for name, value in gradients.items())
    assert size < own_size


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_hooks_see_all_and_those_of_others_keep_all():
    model, batch = tiny_models.pair("bert", "bert").train(), tiny_models.batch()
    results = [run(model, batch)]
    model.zero_grad()
    seen = []
    for layer in model.encoder.layers:
        layer.mlp_norm.register_forward_hook(lambda module, inputs, out: seen.append(out) or out.clone())
    results.append(run(model, batch))
    assert seen and all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (packed.append(x), x)[1], lambda x: x):
        loss = model(**batch).loss
    assert packed and loss.item() == results[0][0]


def test_a_tensor_changed_in_place_is_refused():
    model, batch = tiny_models.pair("bert", "bert").train(), tiny_models.batch()
    held = []
    model.encoder.layers[0].mlp.up.register_forward_hook(lambda module, inputs, out: held.append(out))
    loss = model(**batch).loss
    with torch.no_grad():
        held[0].zero_()
    with pytest.raises(RuntimeError, match="was changed in place after it was used"):
        loss.backward()


def test_second_derivatives_are_there():
    model, batch = tiny_models.pair("bert", "bert").train(), tiny_models.batch()
    weight = model.encoder.layers[0].mlp.up.weight
    found = []
    for wanted in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not wanted:
                patch.setattr(spared, "_has_hooks", lambda: True)
            loss = model(**batch, output_attentions=True).loss
            (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
            found.append(torch.autograd.grad(gradient.square().sum(), weight)[0])
    assert torch.allclose(found[0], found[1], atol=1e-6) and found[0].abs().max() > 0
