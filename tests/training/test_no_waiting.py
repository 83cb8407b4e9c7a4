"""A step asks the device for no value: shown on a processor, by what a step calls where values are not looked at."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny_models
from training.test_loop import LEARNS, data  # noqa: F401 (a fixture)
from warmstart.torch import masks
from warmstart.training.batches import Order
from warmstart.training.run import Run
from warmstart.training.stepper import Stepper

# What needs a value, or a number of values, on the host.
_ASKING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "unique",
    "_unique2",
    "repeat_interleave",
)


class Listed(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in args[1]
        )
        if name in _ASKING or by_mask:
            self.asked.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def far(monkeypatch):
    """Values are not looked at, as on a GPU."""
    own = masks.eager
    for name, module in list(sys.modules.items()):
        if name.startswith("warmstart") and getattr(module, "eager", None) is own:
            monkeypatch.setattr(module, "eager", lambda tensor: False)
    for room in ("dropout", "attention"):
        monkeypatch.setattr(f"warmstart.torch.{room}.is_drawn_apart", lambda *tensors: False)


@pytest.mark.parametrize("pair", [("bert", "gpt2"), ("roberta", "llama"), ("modernbert", "bart")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits(pair, precision, data, far, monkeypatch):  # noqa: F811
    monkeypatch.setattr("warmstart.torch.engine.native.has_fast_bf16", lambda: True)
    run = Run("out", steps=9, batch_tokens=120, cpu=True, accumulate=2, precision=precision)
    stepper = Stepper(tiny_models.pair(*pair), run, LEARNS, 9)
    order = Order(data[0], 120, 0)
    try:
        for step in range(2):  # the first makes the optimizer's state
            with Listed() as listed:
                stepper.step(step, *order.batch(step))
                stepper.finish()
        assert listed.asked == []
    finally:
        stepper.close()


def test_rows_whose_labels_are_not_selected_have_the_same_gradients(data, far, monkeypatch):  # noqa: F811
    from warmstart.training import loss as module

    model, batch, results = tiny_models.pair("bert", "bert"), tiny_models.batch(), []
    for is_near in (False, True):
        monkeypatch.setattr(module, "eager", lambda tensor, near=is_near: near)
        model.train().zero_grad()
        loss = module.PairLoss(model, 0.1)(**batch, count=15)
        loss.backward()
        results.append((loss.item(), tiny_models.gradients(model)))
    assert abs(results[0][0] - results[1][0]) < 1e-6
    tiny_models.assert_equal_gradients(results[0][1], results[1][1], 1e-6)
