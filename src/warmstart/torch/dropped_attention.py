"""Attention with dropout on its weights in fp32, for processors: some rows at a time, and no weights are kept.

There torch's own path keeps the weights, their noise and their product in fp32 until the backward pass, for each layer.
Here one byte of each weight is kept (whether it stayed), and the weights are computed again from queries and keys, as
in FlashAttention (Dao et al. 2022, section 3.1).

Shapes: r rows, n heads, t queries, s keys, d head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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


def is_dropped_apart(*inputs: Tensor) -> bool:
    """Whether such attention is computed here: on a processor, in fp32, and not where torch compiles."""
    return not torch.compiler.is_compiling() and all(
        type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and x.dtype == torch.float32 for x in inputs
    )


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, dropout: float, scale: float
    ) -> Tensor:
        stayed = _stays((*query.shape[:3], key.shape[2]), dropout)
        out = torch.empty((*query.shape[:3], value.shape[3]))
        for rows in _parts(stayed):
            weights = _weights(query[rows], key[rows], _of(allowed, rows), scale)
            torch.matmul(weights.mul_(stayed[rows]), value[rows], out=out[rows])
        ctx.save_for_backward(query, key, value, allowed, stayed)
        ctx.dropout, ctx.scale = dropout, scale
        return out.mul_(1 / (1 - dropout))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        query, key, value, allowed, stayed = ctx.saved_tensors
        gradients = [torch.empty(x.shape) for x in (query, key, value)]
        for rows in _parts(stayed):
            out = upstream[0][rows] * (1 / (1 - ctx.dropout))
            weights = _weights(query[rows], key[rows], _of(allowed, rows), ctx.scale)
            kept = weights * stayed[rows]
            torch.matmul(kept.transpose(-1, -2), out, out=gradients[2][rows])
            slope = torch.matmul(out, value[rows].transpose(-1, -2)).mul_(kept)
            # The softmax's gradient; `kept` holds the weights already.
            slope.addcmul_(weights, slope.sum(-1, keepdim=True), value=-1).mul_(ctx.scale)
            torch.matmul(slope, key[rows], out=gradients[0][rows])
            torch.matmul(slope.transpose(-1, -2), query[rows], out=gradients[1][rows])
        return (*gradients, None, None, None)


def _stays(shape: tuple[int, ...], dropout: float) -> Tensor:
    """Which weights stay: a share of 1 - dropout, to 1 / 65,536; four are drawn with each number, which is quicker."""
    count = math.prod(shape)
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (drawn[:count] >= round(dropout * 2**16) - 2**15).view(shape)


def _parts(stayed: Tensor) -> list[slice]:
    at_once = max(1, _WEIGHTS_AT_ONCE // max(1, stayed[0].numel()))
    return [slice(start, start + at_once) for start in range(0, len(stayed), at_once)]


def _of(allowed: Tensor | None, rows: slice) -> Tensor | None:
    return allowed if allowed is None or len(allowed) == 1 else allowed[rows]


def _weights(query: Tensor, key: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """The softmax of the scores."""
    scores = torch.matmul(query, key.transpose(-1, -2)).mul_(scale)
    if allowed is not None:
        scores.masked_fill_(~allowed, torch.finfo(torch.float32).min)
    return torch.softmax(scores, -1)
