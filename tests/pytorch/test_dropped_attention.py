"""Attention with dropout, some rows at a time: the numbers and gradients of the plain formula, without its memory."""

import pytest
import torch

from warmstart.torch import dropped_attention as module
from warmstart.torch.dropout import Dropout, new_seed, stays
from warmstart.torch.dropped_attention import dropped_attention
from warmstart.torch.engine import native


def inputs(rows=3, heads=2, target=5, source=7, size=4):
    draw = torch.Generator().manual_seed(0)
    shapes = ((rows, target, heads, size), (rows, source, heads, size), (rows, source, heads, size))
    return [torch.randn(shape, generator=draw).transpose(1, 2).requires_grad_() for shape in shapes]


def what_stays(query, key, dropout, scale, counts=None):
    """Which weights of each part stay, from the random numbers as they are now."""
    weights, found = module._weights(new_seed(), dropout, scale), []
    for own, seen, _ in module._parts(query, key, None, counts):
        found.append(weights.of(module._scores(query[own], key[seen], None))[1] != 0)
    return found


@pytest.mark.parametrize("at_once", [1, 2**21])
@pytest.mark.parametrize("seen", ["all", "some of each row", "before"])
def test_values_and_gradients_are_those_of_the_formula(seen, at_once, kernels, monkeypatch):
    monkeypatch.setattr(module, "_WEIGHTS_AT_ONCE", at_once)
    query, key, value = tensors = inputs(target=20, source=20 if seen == "before" else 23)
    shape = (3, 2, 20, key.shape[2])
    torch.manual_seed(1)
    stayed = torch.cat(what_stays(query, key, 0.3, 0.5))
    assert stayed.shape == shape and 0.6 < stayed.float().mean() < 0.8
    torch.manual_seed(1)
    allowed = None
    if seen == "some of each row":
        allowed = torch.arange(23)[None, None, None] < torch.tensor([23, 4, 1])[:, None, None, None]
    out = dropped_attention(query, key, value, allowed, 0.3, seen == "before", 0.5)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad(out, tensors, upstream)
    scores = query @ key.transpose(-1, -2) * 0.5
    hidden = torch.ones(shape[-2:], dtype=torch.bool).triu(1) if seen == "before" else None
    if allowed is not None or hidden is not None:
        scores = scores.masked_fill(hidden if allowed is None else ~allowed, float("-inf"))
    wanted = (scores.softmax(-1) * stayed / 0.7) @ value
    assert torch.allclose(out, wanted, atol=1e-6)
    for one, other in zip(ours, torch.autograd.grad(wanted, tensors, upstream), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_rows_one_behind_another(causal, kernels):
    queries = (5, 1, 20)
    counts = queries, queries if causal else (7, 33, 2)
    tensors = query, key, value = inputs(1, 2, 26, sum(counts[1]))
    torch.manual_seed(1)
    stayed = what_stays(query, key, 0.3, 0.5, counts)
    torch.manual_seed(1)
    out = dropped_attention(query, key, value, None, 0.3, causal, 0.5, counts)
    wanted = []
    parts = (x.split(count, 2) for x, count in zip(tensors, (*counts, counts[1]), strict=True))
    for q, k, v, stay in zip(*parts, stayed, strict=True):
        scores = q @ k.transpose(-1, -2) * 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
        wanted.append((scores.softmax(-1) * stay / 0.7) @ v)
    wanted = torch.cat(wanted, 2)
    assert torch.allclose(out, wanted, atol=1e-6)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    both = (torch.autograd.grad(x, tensors, upstream) for x in (out, wanted))
    for one, other in zip(*both, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_noise_of_the_kernels_is_as_good_as_drawn():
    """Shares of rows and columns, of pairs of neighbours, and of other seeds: as far from 0.9 as chance has it."""
    if native.library() is None:
        pytest.skip("no compiler here")
    torch.manual_seed(0)
    one, other = (Dropout(0.1)(torch.ones(1000, 1000)).ne(0).double() - 0.9 for _ in range(2))
    bound = 5 * 0.3 / 1000**0.5  # five deviations of the mean of a thousand
    assert one.mean().abs() < bound / 30 and one.mean(0).abs().max() < bound and one.mean(1).abs().max() < bound
    pairs = [other, one.roll(1, 1), one.roll(1, 0), one.roll(16, 1), one.roll(512, 1), one.T]
    assert all((one * x).mean().abs() < 5 * 0.09 / 1000 for x in pairs)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped(dropout):
    torch.manual_seed(0)
    stayed = stays((3, 7, 100, 101), dropout)
    assert stayed.shape == (3, 7, 100, 101) and stayed.float().mean().item() == pytest.approx(1 - dropout, abs=0.005)
    again = stays((3, 7, 100, 101), dropout)
    assert not torch.equal(stayed, again)
    torch.manual_seed(0)
    assert torch.equal(stays((3, 7, 100, 101), dropout), stayed)


def test_little_is_kept_for_the_backward_pass():
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    query, key, value = inputs(rows=2, heads=4, target=64, source=64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        dropped_attention(query, key, value, None, 0.1, False, 0.5)
    assert sum(sizes) == 4 * sum(x.numel() for x in (query, key, value))


def test_bf16_is_computed_in_fp32_and_rounded(kernels):
    exact, rounded = inputs(), [x.detach().bfloat16().requires_grad_() for x in inputs()]
    results = []
    for tensors, cast in ((exact, False), (exact, True), (rounded, False), (rounded, True)):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            out = dropped_attention(*tensors, None, 0.3, False, 0.5)
            results.append([out, *torch.autograd.grad(out.float().square().sum(), tensors)])
    assert all(x.dtype == torch.bfloat16 for x in results[2])
    for one, other in (results[:2], results[2:]):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))  # autocast changes nothing
    for one, other in zip(results[0], results[2], strict=True):
        assert torch.allclose(one, other.float(), atol=0.1, rtol=0.05) and not torch.equal(one, other.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_of_states(dtype, kernels):
    x = torch.randn(41, 53, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    sizes = []
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(lambda y: (sizes.append(y.nbytes), y)[1], lambda y: y):
        out = Dropout(0.25)(x)
    stayed = out != 0
    assert 0.7 < stayed.float().mean() < 0.8 and sizes == ([] if kernels == "compiled" else [41 * 53])
    assert torch.allclose(out, x * stayed / 0.75)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.allclose(gradient, (stayed / 0.75).to(dtype))
    torch.manual_seed(0)
    assert torch.equal(Dropout(0.25)(x), out) and not torch.equal(Dropout(0.25)(x), out)
    assert torch.equal(Dropout(0.25).eval()(x), x) and not Dropout(1.0)(x).any()
