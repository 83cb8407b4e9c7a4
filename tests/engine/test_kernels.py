"""The compiled kernels against torch's operators, at shapes that meet every edge of theirs."""

import pytest
import torch
from torch import nn

from engine_helpers import PROCESSORS, kernels_for
from warmstart.torch.arrays import TorchArrays
from warmstart.torch.elements import ACTIVATIONS
from warmstart.torch.engine import native
from warmstart.torch.engine.int8 import Int8Linear, quantised
from warmstart.torch.engine.memory import Heads, NativeMemory, TorchMemory
from warmstart.torch.engine.products import add_norm, norm, product


@pytest.fixture(params=[*PROCESSORS, "torch"])
def kernels(request, monkeypatch):
    """The kernels for some processors, and torch's operators."""
    library = None if request.param == "torch" else kernels_for(request.param)
    monkeypatch.setattr(native, "library", lambda: library)
    return request.param


ROWS = [1, 2, 3, 4, 5, 8, 10, 11, 13, 20, 21, 28, 29, 33, 48, 64, 81, 200, 270]
SHAPES = [(8, 3), (24, 17), (31, 1), (260, 40), (768, 130), (2048, 37), (3100, 19)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_products_side_by_side_are_those_of_the_layers(inputs, outputs, dtype, kernels):
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, outputs).to(dtype), nn.Linear(inputs, outputs + 5, bias=False).to(dtype)]
    multiply = product(*layers)
    for rows in ROWS:
        x = torch.randn(rows, inputs).to(dtype).float()
        wanted = torch.cat(
            [nn.functional.linear(x, y.weight.float(), None if y.bias is None else y.bias.float()) for y in layers], 1
        )
        bound = 2e-5 if dtype is torch.float32 or kernels != "torch" else 2e-2
        assert (multiply(x) - wanted).abs().max() <= bound


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_int8_products_are_within_the_steps_of_their_inputs(inputs, outputs, kernels):
    torch.manual_seed(0)
    layers = [Int8Linear(nn.Linear(inputs, outputs)), Int8Linear(nn.Linear(inputs, 2, bias=False))]
    multiply = product(*layers)
    for rows in ROWS:
        x = torch.randn(rows, inputs) * torch.logspace(-3, 3, rows)[:, None]
        x[0] = 0
        y = multiply(x)
        weights = torch.cat([y.weight * y.scale[:, None] for y in layers])
        bias = torch.cat([layers[0].bias, torch.zeros(2)])
        # each row has a scale of its own: an input is off by half a step of 127 in twice its largest at most
        bound = x.abs().amax(1)[:, None] / 127 * weights.abs().sum(1) * 1.01 + 1e-4
        assert ((y - (x @ weights.T + bias)).abs() <= bound).all()
        whole = torch.cat([layer(x) for layer in layers], 1)
        assert ((whole - (x @ weights.T + bias)).abs() <= bound / 2 + 1e-4).all()
        if kernels != "torch":  # the same whole numbers, but for one input that lies between two
            small, scale = quantised(x)
            sums = torch.cat([small.double() @ layer.weight.double().T * layer.scale for layer in layers], 1)
            exact = sums * scale[:, None] + bias
            assert ((y - exact).abs() <= scale[:, None] * weights.abs().amax() * 1.01 + 1e-6).all()


@pytest.mark.parametrize("activation", [*native.ACTIVATIONS, "tanh"])
def test_activations_of_products(activation, kernels):
    torch.manual_seed(0)
    layer = nn.Linear(20, 37)
    layer.weight.data *= 20
    x = torch.randn(50, 20)
    wanted = ACTIVATIONS[activation](layer(x))
    for rows in (3, 50):
        y = product(layer, activation=activation)(x[:rows])
        assert torch.allclose(y, wanted[:rows], rtol=1e-6, atol=1e-5)


def test_packed_int8_weights_follow_a_change():
    layer = Int8Linear(nn.Linear(16, 4))
    x = torch.randn(3, 16)
    before = product(layer)(x)
    layer.weight.neg_()
    assert torch.allclose(product(layer)(x) - layer.bias, layer.bias - before, atol=1e-6)


def test_int8_weights_are_within_half_a_step():
    weight = torch.randn(5, 300)
    layer = nn.Linear(300, 5)
    layer.weight.data = weight
    small = Int8Linear(layer)
    steps = weight.abs().amax(1, keepdim=True) / 127
    assert ((small.weight * small.scale[:, None] - weight).abs() <= steps / 2 + 1e-6).all()
    assert quantised(torch.zeros(1, 4))[0].abs().max() == 0


@pytest.mark.parametrize("module", [nn.LayerNorm(24), nn.LayerNorm(700, bias=False)], ids=["layer", "no bias"])
def test_norm_of_a_sum(module, kernels):
    torch.manual_seed(0)
    nn.init.normal_(module.weight)
    x, y = torch.randn(2, 40, module.weight.shape[0])
    total, out = add_norm(x, y, norm(module))
    assert (out - module(x + y)).abs().max() <= 1e-5
    if kernels != "torch":
        assert torch.equal(total, x + y)


@pytest.mark.parametrize("size", [4, 20, 64, 128])
@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_memory_is_torchs(size, window, dtype):
    """Rows of different age, a prompt, padding before it, rows that move, leave and join."""
    if (library := native.library()) is None:
        pytest.skip("no compiler here")
    torch.manual_seed(0)
    heads = Heads(2, 3, size, size**-0.5, window)
    memories = []
    for kind in (NativeMemory, TorchMemory):
        memory = kind.__new__(kind)
        spec = _spec(size, window)
        memory.__init__(*([library, spec, 8] if kind is NativeMemory else [spec]), 40, dtype)
        memories.append(memory)

    def both(act):
        ours, theirs = (act(memory) for memory in memories)
        if ours is not None:
            bound = 2e-5 if dtype is torch.float32 else 4e-2
            assert (ours - theirs).abs().max() <= bound

    def step(rows, tokens, counts=None):
        counts = torch.tensor(counts or [tokens] * rows, dtype=torch.int32)
        query = torch.randn(int(counts.sum()), 6 * size)
        key, value = torch.randn(2, len(query), 2 * size)
        for memory in memories:
            memory.expect(counts)
        both(lambda memory: memory.own(0, query, key, value))
        both(lambda memory: memory.source(0, query))
        both(lambda memory: memory.advance())

    def pair(length):
        return torch.randn(1, 2, 2, length, size).to(dtype)

    pairs = [pair(5), pair(33)]
    both(lambda memory: memory.join(pairs, 1))
    for memory in memories:
        memory.first = torch.tensor([0, 2], dtype=torch.int32)
    step(2, 4)
    both(lambda memory: memory.spread(2))
    for moved in ([1, 1, 2, 3], [0, 1, 3, 2], [1, 0, 3, 3]):
        step(4, 1)
        both(lambda memory, moved=moved: memory.take(torch.tensor(moved)))
    both(lambda memory: memory.crop(5))
    step(4, 2)
    step(4, 0, [3, 1, 0, 5])
    both(lambda memory: memory.crop(torch.tensor([7, 6, 7, 9], dtype=torch.int32)))
    step(4, 0, [1, 0, 4, 2])
    both(lambda memory: memory.take(torch.tensor([3, 2]), torch.tensor([1])))
    more = [pair(120), pair(1)]
    both(lambda memory: memory.join(more, 2))
    for _ in range(3):
        step(6, 1)
        both(lambda memory: memory.take(torch.tensor([1, 0, 2, 2, 5, 5])))
    assert heads.group == 3


def _spec(size, window):
    from warmstart.spec import AttentionSpec, EmbeddingSpec, MLPSpec, NormSpec, StackSpec

    attention = AttentionSpec(6, 2, size, windows=(window,) if window else ())
    return StackSpec("test", 6 * size, 1, EmbeddingSpec(9, 6 * size), attention, MLPSpec(8, "gelu"), NormSpec(),
                     cross_attention=attention)  # fmt: skip


def test_no_row_writes_beyond_its_room():
    if (library := native.library()) is None:
        pytest.skip("no compiler here")
    memory = NativeMemory(library, _spec(8, 0), 2, 3, torch.float32)
    memory.join([torch.randn(1, 2, 2, 4, 8)], 2)
    with pytest.raises(ValueError, match="4 tokens in a row, and there is room for 3"):
        memory.expect(torch.tensor([4, 2], dtype=torch.int32))
    with pytest.raises(ValueError, match="3 rows for 2 slots"):
        memory.take(torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("width", [9000, 4096, 122088])
def test_the_largest_of_many_are_torchs(width):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, width, generator=draw)
    x[1] = float("-inf")
    x[1, [5, 70, width - 1]] = torch.tensor([1.0, 3.0, 2.0])
    x[2, -10:] += 9
    values, index = TorchArrays().top_k(x, 8)
    wanted = torch.topk(x, 8)
    assert torch.equal(values, wanted[0]) and torch.equal(index[[0, 2]], wanted[1][[0, 2]])
    assert index[1, :3].tolist() == [70, width - 1, 5] and len(set(index[1].tolist())) == 8
    x[2] = x[2].round()  # several are largest: the first of them
    assert torch.equal(TorchArrays().argmax(x), x.argmax(1))
    x[0, width // 2] = float("nan")
    assert torch.equal(TorchArrays().argmax(x.repeat(2, 1)), x.argmax(1).repeat(2))
