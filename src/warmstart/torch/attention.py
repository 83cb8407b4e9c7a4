"""Attention: masks, rotary positions, scores, and the layer that holds the projections.

Shapes: r rows, b sources (r = b * beams), t target length, s source length, h hidden size, n heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from warmstart.spec import AttentionSpec, NormSpec
from warmstart.torch.cache import LayerCache
from warmstart.torch.disentangled import Disentangled, Rows
from warmstart.torch.dropout import is_drawn_apart
from warmstart.torch.dropped_attention import Counts, dropped_attention
from warmstart.torch.elements import HeadNorms, capped, make_norm
from warmstart.torch.spared import branches


@dataclass
class Mask:
    """What a query may see: `allowed` (r or 1, 1, t or 1, s), True where it may, or None; or all before it.

    `bias` (r or 1, n, t, s), where there is one, is added to the scores, and forbids what `allowed` would. With
    `counts`, rows stand one behind another in one (r = 1): how many queries each has, and how many keys. `allowed` is
    then what the longest one's queries may see.
    """

    allowed: Tensor | None = None
    causal: bool = False
    bias: Tensor | None = None
    counts: Counts | None = None

    def repeated(self, times: int) -> Mask:
        """The mask of queries that stand so many times one behind the other."""
        allowed, bias = (
            x if x is None or x.shape[2] == 1 else x.repeat(1, 1, times, 1) for x in (self.allowed, self.bias)
        )
        return Mask(allowed, self.causal, bias)


OPEN = Mask()


def biased(bias: Tensor, allowed: Tensor | None) -> Mask:
    """A mask whose bias (r or 1, n, t, s) is added to scores, and forbids what is not allowed."""
    return Mask(bias=bias if allowed is None else bias.masked_fill(~allowed, torch.finfo(bias.dtype).min))


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the first numbers of each head (r, n, t, d) by cosine and sine (r or 1, 1, t, rotated size)."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    turned = x[..., :size] if size < x.shape[-1] else x
    left, right = turned.chunk(2, -1)
    turned = turned * cosine + torch.cat((-right, left), -1) * sine
    return torch.cat((turned, x[..., size:]), -1) if size < x.shape[-1] else turned


def rotate_neighbours(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """As `rotate`, where neighbours turn together: numbers 0 and 1, 2 and 3, and so on."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    turned = x[..., :size] if size < x.shape[-1] else x
    crossed = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
    turned = turned * cosine + crossed * sine
    return torch.cat((turned, x[..., size:]), -1) if size < x.shape[-1] else turned


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    scale: float,
    dropout: float,
    want_weights: bool,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of queries (r, n, t, d) over keys and values (b, m, s, d); heads n may share m, and rows r share b.

    Gives (r, n, t, d) and, if wanted, the weights (r, n, t, s).
    """
    rows, heads, length, _ = query.shape
    shared = rows // key.shape[0]
    if shared > 1:  # the beams of a source stand one after another on the query axis: no key is copied
        query = query.unflatten(0, (-1, shared)).transpose(1, 2).flatten(2, 3)
    grouped = heads // key.shape[1]
    folds = (
        length == 1
        and not (want_weights or soft_cap or dropout or mask.causal or mask.counts)
        and _is_for_all_heads(mask)
    )
    if grouped > 1 and folds:  # so do, with one new token, the heads that share keys
        query, mask = query.unflatten(1, (-1, grouped)).flatten(2, 3), mask.repeated(grouped)
    elif grouped > 1:
        key, value = (x.repeat_interleave(grouped, 1) for x in (key, value))
    weights = None
    if want_weights or soft_cap is not None:  # torch's own attention caps nothing
        scores = query @ key.transpose(-1, -2) * scale
        weights = scores_to_weights(scores if soft_cap is None else capped(scores, soft_cap), mask)
        weights = F.dropout(weights, dropout, training=dropout > 0)
        out = weights @ value
    elif dropout > 0 and mask.bias is None and is_drawn_apart(query, key, value):
        out = dropped_attention(query, key, value, mask.allowed, dropout, mask.causal, scale, mask.counts)
    elif mask.counts is not None:
        out = _row_by_row(query, key, value, mask, mask.counts, dropout, scale)
    else:
        seen = mask.allowed if mask.bias is None else mask.bias
        out = F.scaled_dot_product_attention(query, key, value, seen, dropout, mask.causal, scale=scale)
    if grouped > 1 and folds:
        out = out.unflatten(2, (grouped, -1)).flatten(1, 2)
    if shared > 1:
        out = out.unflatten(2, (shared, length)).transpose(1, 2).flatten(0, 1)
        weights = None if weights is None else weights.unflatten(2, (shared, length)).transpose(1, 2).flatten(0, 1)
    return out, weights


def _is_for_all_heads(mask: Mask) -> bool:
    return all(x is None or x.shape[1] == 1 for x in (mask.allowed, mask.bias))


def _row_by_row(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, counts: Counts, dropout: float, scale: float
) -> Tensor:
    """Attention where rows stand one behind another: of each in turn."""
    parts, out = (x.split(count, 2) for x, count in zip((query, key, value), (*counts, counts[1]), strict=True)), []
    for q, k, v in zip(*parts, strict=True):
        seen = None if mask.allowed is None else mask.allowed[..., : q.shape[2], : k.shape[2]]
        out.append(F.scaled_dot_product_attention(q, k, v, seen, dropout, mask.causal, scale=scale).transpose(1, 2))
    return torch.cat(out, 1).transpose(1, 2)


def scores_to_weights(scores: Tensor, mask: Mask) -> Tensor:
    """Softmax over the keys that may be seen, in fp32."""
    allowed = mask.allowed
    if mask.bias is not None:
        scores, allowed = scores + mask.bias, None
    if mask.causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return F.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)


def _norm_of(spec: AttentionSpec, heads: int, norm: NormSpec) -> nn.Module | None:
    """The norm of queries or of keys, where they have one."""
    if spec.head_norms_apart:
        return HeadNorms(heads, spec.head_size, norm)
    if spec.whole_norm:
        return make_norm(heads * spec.head_size, norm)
    return make_norm(spec.head_size, norm) if spec.head_norm else None


class GlobalAttention(nn.Module):
    """What chosen tokens see: everything, by matrices of their own (Beltagy et al. 2020, section 3.1)."""

    def __init__(self, spec: AttentionSpec, heads: int, hidden_size: int):
        super().__init__()
        self.head_size, size = spec.head_size, heads * spec.head_size
        self.query, self.key, self.value = (nn.Linear(hidden_size, size, spec.bias) for _ in range(3))

    def forward(
        self, x: Tensor, local: tuple[Tensor, Tensor | None], reach: Tensor, scale: float, dropout: float
    ) -> tuple[Tensor, Tensor | None]:
        """What attention gave, and its weights, where the tokens whose `reach` (r, t) is 2 have what they see.

        1 is a token that sees its window, 0 is padding.
        """
        query, key, value = (m(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2) for m in self._matrices())
        seen, chosen = Mask((reach > 0)[:, None, None]), (reach > 1)[:, None, :, None]
        out, weights = attend(query, key, value, seen, scale, dropout, local[1] is not None)
        if weights is not None and local[1] is not None:
            weights = torch.where(chosen, weights, local[1])
        return torch.where(chosen, out, local[0]), weights

    def _matrices(self) -> tuple[nn.Linear, ...]:
        return self.query, self.key, self.value


class Attention(nn.Module):
    """Attention with heads, over the stack's own tokens or over a source of width `source_size`."""

    def __init__(self, spec: AttentionSpec, layer: int, hidden_size: int, source_size: int | None, norm: NormSpec):
        super().__init__()
        # Pruning takes heads out of self-attention only, as in the files.
        heads, key_value_heads = spec.heads_of(layer) if source_size is None else (spec.heads, spec.key_value_heads)
        width = source_size or hidden_size
        self.head_size, self.scale, self.dropout = spec.head_size, spec.scale(layer), spec.dropout
        self.soft_cap, self.whole_norm = spec.soft_cap, spec.whole_norm
        kinds = spec.rotary_kinds()
        self.rotate = rotate_neighbours if kinds and kinds[0].interleaved else rotate
        self.is_cross = source_size is not None
        self.query = nn.Linear(hidden_size, heads * spec.head_size, spec.bias)
        self.key = nn.Linear(width, key_value_heads * spec.head_size, spec.bias)
        self.value = nn.Linear(width, key_value_heads * spec.head_size, spec.bias)
        self.output = nn.Linear(heads * spec.head_size, hidden_size, spec.output_bias)
        self.query_norm, self.key_norm = (_norm_of(spec, count, norm) for count in (heads, key_value_heads))
        is_disentangled = spec.disentangled is not None and source_size is None
        self.disentangled = Disentangled(spec, heads, hidden_size) if is_disentangled else None
        is_global = spec.global_tokens and source_size is None
        self.global_attention = GlobalAttention(spec, heads, hidden_size) if is_global else None

    def forward(
        self,
        x: Tensor,
        source: Tensor | None = None,
        mask: Mask = OPEN,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        want_weights: bool = False,
        distances: Rows | None = None,
        reach: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        first, *own = branches(x, 1 if self.is_cross else 3)
        query = self._heads(self.query(first), self.query_norm)
        if rotation is not None:
            query = self.rotate(query, rotation)
        key, value = self._source_pair(source, cache) if self.is_cross else self._own_pair(own, rotation, cache)
        if self.disentangled is not None and distances is not None:
            mask = biased(self.disentangled(query, key, distances, self.query, self.key) * self.scale, mask.allowed)
        dropout = self.dropout if self.training else 0.0
        out, weights = attend(query, key, value, mask, self.scale, dropout, want_weights, self.soft_cap)
        if self.global_attention is not None and reach is not None:
            out, weights = self.global_attention(x, (out, weights), reach, self.scale, dropout)
        return self.output(out.transpose(1, 2).flatten(2)), weights

    def _own_pair(
        self, own: Sequence[Tensor], rotation: tuple[Tensor, Tensor] | None, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor]:
        key, value = self._heads(self.key(own[0]), self.key_norm), self._heads(self.value(own[1]), None)
        if rotation is not None:
            key = self.rotate(key, rotation)
        return (key, value) if cache is None else cache.append(key, value)

    def _source_pair(self, source: Tensor | None, cache: LayerCache | None) -> tuple[Tensor, Tensor]:
        """The source's keys and values: made once, then kept."""
        if cache is not None and cache.source is not None:
            return cache.source
        assert source is not None
        first, second = branches(source, 2)
        pair = self._heads(self.key(first), self.key_norm), self._heads(self.value(second), None)
        if cache is not None:
            cache.source = pair
        return pair

    def _heads(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        if self.whole_norm and norm is not None:
            x, norm = norm(x), None
        x = x.unflatten(-1, (-1, self.head_size))
        return (x if norm is None else norm(x)).transpose(1, 2)
