"""Attention with dropout on its weights, for processors: some rows at a time, and no weights are kept.

There torch's own path keeps the weights, their noise and their product in fp32 until the backward pass, for each layer.
Here queries, keys and values are kept, and the seed of the noise; the weights are computed again, as in FlashAttention
(Dao et al. 2022, section 3.1). All is computed in fp32.

Shapes: r rows, n heads, t queries, s keys, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from warmstart.torch.dropout import stays

_WEIGHTS_AT_ONCE = 2**21  # numbers


def dropped_attention(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, dropout: float, causal: bool, scale: float
) -> Tensor:
    """Attention of queries (r, n, t, d) over keys and values (r, n, s, d), of whose weights a share is dropped.

    `allowed` (r or 1, 1, t or 1, s) says what may be seen; with `causal`, what came before.
    """
    if causal:
        allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
    return _Dropped.apply(query, key, value, allowed, dropout, scale)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, dropout: float, scale: float
    ) -> Tensor:
        seed = int(torch.randint(2**62, ()))
        out = query.new_empty((*query.shape[:3], value.shape[3]))
        for rows, stayed in _parts(query, key, dropout, seed):
            weights = _weights(query[rows], key[rows], _of(allowed, rows), scale)
            out[rows] = torch.matmul(weights.mul_(stayed), value[rows].float())
        ctx.save_for_backward(query, key, value, allowed)
        ctx.dropout, ctx.scale, ctx.seed = dropout, scale, seed
        return out.mul_(1 / (1 - dropout))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        query, key, value, allowed = ctx.saved_tensors
        gradients = [torch.empty(x.shape, dtype=x.dtype) for x in (query, key, value)]
        for rows, stayed in _parts(query, key, ctx.dropout, ctx.seed):
            out = upstream[0][rows].float() * (1 / (1 - ctx.dropout))
            weights = _weights(query[rows], key[rows], _of(allowed, rows), ctx.scale)
            gradients[2][rows] = torch.matmul((weights * stayed).transpose(-1, -2), out)
            slope = torch.matmul(out, value[rows].float().transpose(-1, -2)).mul_(stayed)
            slope = torch._softmax_backward_data(slope, weights, -1, torch.float32)
            gradients[0][rows] = torch.matmul(slope, key[rows].float()).mul_(ctx.scale)
            gradients[1][rows] = torch.matmul(slope.transpose(-1, -2), query[rows].float()).mul_(ctx.scale)
        return (*gradients, None, None, None)


def _parts(query: Tensor, key: Tensor, dropout: float, seed: int) -> Iterator[tuple[slice, Tensor]]:
    """Some rows at a time, and which of their weights stay: the same whenever the seed is the same."""
    generator = Generator().manual_seed(seed)
    rows, shape = len(query), (*query.shape[1:3], key.shape[2])
    at_once = max(1, _WEIGHTS_AT_ONCE // max(1, shape[0] * shape[1] * shape[2]))
    for start in range(0, rows, at_once):
        part = slice(start, min(start + at_once, rows))
        yield part, stays((part.stop - start, *shape), dropout, generator)


def _of(allowed: Tensor | None, rows: slice) -> Tensor | None:
    return allowed if allowed is None or len(allowed) == 1 else allowed[rows]


def _weights(query: Tensor, key: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """The softmax of the scores."""
    scores = torch.matmul(query.float() * scale, key.float().transpose(-1, -2))
    if allowed is not None:  # adding is quicker than filling; beside the lowest number, a score is nothing
        scores += torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)
    return torch.softmax(scores, -1)
