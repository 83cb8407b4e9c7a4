"""Attention with dropout on its weights, for processors: some rows at a time, and no weights are kept.

There torch's own path keeps the weights, their noise and their product in fp32 until the backward pass, for each layer.
Here queries, keys and values are kept, and the seed of the noise; the weights are computed again, as in FlashAttention
(Dao et al. 2022, section 3.1). All is computed in fp32.

Shapes: r rows, n heads, t queries, s keys, d head size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from warmstart.torch.dropout import new_seed, noise, stays
from warmstart.torch.engine import native

_WEIGHTS_AT_ONCE = 2**21  # numbers
_NEXT = 0x9E3779B97F4A7C15  # from one part's seed to the next one's

Counts = tuple[tuple[int, ...], tuple[int, ...]]  # of the queries of each row, and of its keys
_Part = tuple[Any, Any, Tensor | None]  # which queries, which keys, and what may be seen of these


def dropped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float,
    counts: Counts | None = None,
) -> Tensor:
    """Attention of queries (r, n, t, d) over keys and values (r, n, s, d), of whose weights a share is dropped.

    `allowed` (r or 1, 1, t or 1, s) says what may be seen; with `causal`, what came before. With `counts`, rows stand
    one behind another in one: (1, n, all queries, d) and (1, n, all keys, d).
    """
    if causal:
        longest = max(counts[0]) if counts else query.shape[2]
        allowed = torch.ones(longest, longest if counts else key.shape[2], dtype=torch.bool).tril()[None, None]
    return _Dropped.apply(query, key, value, allowed, dropout, scale, counts)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Tensor | None,
        dropout: float,
        scale: float,
        counts: Counts | None,
    ) -> Tensor:
        ctx.given = new_seed(), dropout, scale
        weights = _weights(*ctx.given)
        rows, heads, length, _ = query.shape
        out = query.new_empty(rows, length, heads, value.shape[3]).transpose(1, 2)  # heads are joined without a copy
        with torch.autocast("cpu", enabled=False):
            for own, seen, may in _parts(query, key, allowed, counts):
                _, dropped = weights.of(_scores(query[own], key[seen], may))
                out[own] = torch.matmul(dropped, value[seen].float())
        ctx.save_for_backward(query, key, value, allowed)
        ctx.counts = counts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        query, key, value, allowed = ctx.saved_tensors
        weights, gradients = _weights(*ctx.given), [torch.empty_like(x) for x in (query, key, value)]
        with torch.autocast("cpu", enabled=False):
            for own, seen, may in _parts(query, key, allowed, ctx.counts):
                out = upstream[0][own].float()
                kept, dropped = weights.of(_scores(query[own], key[seen], may))
                gradients[2][seen] = torch.matmul(dropped.transpose(-1, -2), out)
                slope = weights.slope(torch.matmul(out, value[seen].float().transpose(-1, -2)), kept)
                gradients[0][own] = torch.matmul(slope, key[seen].float())
                gradients[1][seen] = torch.matmul(slope.transpose(-1, -2), query[own].float())
        return (*gradients, None, None, None, None)


class _Drawn:
    """Weights and their dropout where there are no kernels. What stays is drawn: the same from the same seed."""

    def __init__(self, seed: int, dropout: float, scale: float):
        self.generator, self.dropout, self.scale = Generator().manual_seed(seed), dropout, scale

    def of(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The softmax of `scale` times the scores, and what dropout leaves of it."""
        self.stayed = stays(tuple(scores.shape), self.dropout, self.generator)
        weights = torch.softmax(scores.mul_(self.scale), -1)
        return weights, (weights * self.stayed).mul_(1 / (1 - self.dropout))

    def slope(self, gradient: Tensor, weights: Tensor) -> Tensor:
        """The gradient of the scores, from that of the weights with dropout."""
        gradient = gradient.mul_(self.stayed).mul_(self.scale / (1 - self.dropout))
        return torch._softmax_backward_data(gradient, weights, -1, torch.float32)


class _Hashed:
    """The same by the kernels, in one pass each; what stays follows from the seed and the place."""

    def __init__(self, seed: int, dropout: float, scale: float):
        self.seed, self.dropout, self.scale = seed, dropout, scale

    def of(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        self.seed += _NEXT
        self.noise, dropped = ctypes.byref(noise(self.seed, self.dropout)), torch.empty_like(scores)
        lines, width = scores.numel() // scores.shape[-1], scores.shape[-1]
        given = lines, width, self.scale, self.noise
        _kernels().warmstart_weigh(scores.data_ptr(), *given, dropped.data_ptr())
        return scores, dropped

    def slope(self, gradient: Tensor, weights: Tensor) -> Tensor:
        lines, width = weights.numel() // weights.shape[-1], weights.shape[-1]
        _kernels().warmstart_slope(gradient.data_ptr(), weights.data_ptr(), lines, width, self.scale, self.noise)
        return gradient


def _weights(seed: int, dropout: float, scale: float) -> _Drawn | _Hashed:
    return (_Drawn if native.library() is None else _Hashed)(seed, dropout, scale)


def _kernels() -> ctypes.CDLL:
    library = native.library()
    assert library is not None
    return library


def _parts(query: Tensor, key: Tensor, allowed: Tensor | None, counts: Counts | None) -> Iterator[_Part]:
    """Some rows at a time; or one, where they stand one behind another."""
    if counts is not None:
        ends = (pairwise((0, *accumulate(count))) for count in counts)
        for (first, last), (begin, end) in zip(*ends, strict=True):
            may = None if allowed is None else allowed[..., : last - first, : end - begin]
            yield (..., slice(first, last), slice(None)), (..., slice(begin, end), slice(None)), may
        return
    at_once = max(1, _WEIGHTS_AT_ONCE // max(1, query.shape[1] * query.shape[2] * key.shape[2]))
    for start in range(0, len(query), at_once):
        part = slice(start, min(start + at_once, len(query)))
        yield part, part, allowed if allowed is None or len(allowed) == 1 else allowed[part]


def _scores(query: Tensor, key: Tensor, allowed: Tensor | None) -> Tensor:
    """What queries have to do with keys, in fp32; with what may not be seen nothing."""
    scores = torch.matmul(query.float(), key.float().transpose(-1, -2))
    if allowed is not None:  # adding is quicker than filling; beside the lowest number, a score is nothing
        scores += torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)
    return scores
