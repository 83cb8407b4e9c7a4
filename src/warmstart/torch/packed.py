"""Rows without their padding, one behind another: what is computed for each token alone is computed for no padding.

Shapes: r rows, t length, s source length, n tokens that are no padding, h hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from warmstart.spec import StackSpec
from warmstart.torch.dropped_attention import Counts
from warmstart.torch.masks import eager


@dataclass(frozen=True)
class Rows:
    """Where the tokens of some rows stand: their places (n,) among the r * t, and how many each row has."""

    places: Tensor
    counts: tuple[int, ...]
    shape: tuple[int, int]

    def pack(self, x: Any) -> Any:
        """(r or 1, t, ...) to (1, n, ...); None stays None."""
        if x is None:
            return x
        return x.expand(*self.shape, *x.shape[2:]).flatten(0, 1).index_select(0, self.places)[None]

    def spread(self, x: Tensor) -> Tensor:
        """(1, n, h) to (r, t, h); padding is 0."""
        out = x.new_zeros(self.shape[0] * self.shape[1], x.shape[2])
        return out.index_copy(0, self.places, x[0]).unflatten(0, self.shape)


@dataclass(frozen=True)
class Packing:
    """A stack's own rows, and those of the source that it reads."""

    own: Rows
    source: Rows | None

    @property
    def counts(self) -> tuple[Counts, Counts | None]:
        """How many queries and keys each row has, in self-attention and in cross-attention."""
        own = self.own.counts
        return (own, own), None if self.source is None else (own, self.source.counts)


def packing_of(
    spec: StackSpec, shape: tuple[int, int], mask: Tensor | None, source: Tensor | None, source_mask: Tensor | None
) -> Packing | None:
    """How a stack's rows (r, t) and the sources (r, s, h) are packed; None where there is no padding, or none can be.

    It can be where nothing but attention looks at other tokens, and attention at no bias between them.
    """
    attention = spec.attention
    odd = attention.soft_cap or attention.alibi or attention.relative or attention.disentangled
    if odd or attention.global_tokens or spec.convolution or not any(_pads(x) for x in (mask, source_mask)):
        return None
    own = _rows(mask, shape)
    if source is None or own is None:
        return None if own is None else Packing(own, None)
    other = _rows(source_mask, (source.shape[0], source.shape[1]))
    return None if other is None or len(other.counts) != shape[0] else Packing(own, other)


def _pads(mask: Tensor | None) -> bool:
    return mask is not None and eager(mask) and not bool(mask.all())


def _rows(mask: Tensor | None, shape: tuple[int, int]) -> Rows | None:
    """Rows (r, t) packed; None where padding stands before a token, or a row is all padding."""
    if mask is None:
        return Rows(torch.arange(shape[0] * shape[1]), (shape[1],) * shape[0], shape)
    if tuple(mask.shape) != shape:
        return None
    real = mask.bool()
    counts = real.sum(1)
    if int(counts.min()) == 0 or not torch.equal(real, torch.arange(shape[1]) < counts[:, None]):
        return None
    return Rows(real.flatten().nonzero()[:, 0], tuple(counts.tolist()), shape)
