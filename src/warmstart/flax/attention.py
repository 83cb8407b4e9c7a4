"""Attention: rotary positions, scores, and the layer that holds the projections.

Shapes: r rows, b sources (r = b * beams), t target length, s source length, h hidden size, n heads, d head size.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from warmstart.flax.cache import LayerCache, Pair
from warmstart.flax.disentangled import Disentangled, Rows
from warmstart.flax.elements import HeadNorms, Linear, capped, make_norm, normal
from warmstart.spec import StackSpec

_FEW = 16
"""So many queries, the beams of a source say, XLA on a processor multiplies faster with the keys on the left."""


def rotate(x: Array, rotation: Pair) -> Array:
    """Turn the first numbers of each head (r, n, t, d) by cosine and sine (r or 1, 1, t, rotated size)."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    turned = x[..., :size]
    left, right = jnp.split(turned, 2, -1)
    turned = turned * cosine + jnp.concatenate((-right, left), -1) * sine
    return jnp.concatenate((turned, x[..., size:]), -1) if size < x.shape[-1] else turned


def rotate_neighbours(x: Array, rotation: Pair) -> Array:
    """As `rotate`, where neighbours turn together: numbers 0 and 1, 2 and 3, and so on."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    turned = x[..., :size]
    crossed = jnp.stack((-turned[..., 1::2], turned[..., ::2]), -1).reshape(turned.shape)
    turned = turned * cosine + crossed * sine
    return jnp.concatenate((turned, x[..., size:]), -1) if size < x.shape[-1] else turned


def attend(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | None,
    scale: float,
    dropout: float = 0.0,
    rng: Array | None = None,
    soft_cap: float | None = None,
    bias: Array | None = None,
) -> tuple[Array, Array]:
    """Attention of queries (r, n, t, d) over keys and values (b, m, s, d); heads n may share m, and rows r share b.

    `allowed` (r, b or 1, 1, t or 1, s) is True where a query may see; `bias` (r or 1, n, t, s) is added to scores.
    Gives (r, t, n * d) and the weights (r, n, t, s).
    """
    rows, heads, length, size = query.shape
    sources, shared_heads, keys, _ = key.shape
    beams, group = rows // sources, heads // shared_heads
    # The rows of a source and the heads that share a key stand side by side on the query axis: no key is copied.
    split = (sources, beams, shared_heads, group, length)
    query = query.reshape(*split, size).transpose(0, 2, 3, 1, 4, 5).reshape(sources, shared_heads, -1, size)
    if 1 < query.shape[2] <= _FEW:
        scores = jnp.einsum("bmsd,bmqd->bmsq", key, query).swapaxes(2, 3) * scale
    else:
        scores = jnp.einsum("bmqd,bmsd->bmqs", query, key) * scale
    scores = scores if soft_cap is None else capped(scores, soft_cap)
    scores = scores.reshape(sources, shared_heads, group, beams, length, keys)
    if bias is not None:
        scores = scores + bias.reshape(-1, shared_heads, group, 1, *bias.shape[2:])
    if allowed is not None:
        allowed = allowed.reshape(
            -1 if allowed.shape[0] != rows else sources, 1, 1, max(allowed.shape[0] // sources, 1), *allowed.shape[2:]
        )
        scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores.astype(jnp.float32), -1).astype(query.dtype)
    if rng is not None and dropout > 0:
        kept = jax.random.bernoulli(rng, 1 - dropout, weights.shape)
        weights = jnp.where(kept, weights / (1 - dropout), 0.0)
    out = jnp.einsum("bmqs,bmsd->bmqd", weights.reshape(sources, shared_heads, -1, keys), value)
    out = out.reshape(sources, shared_heads, group, beams, length, size).transpose(0, 3, 4, 1, 2, 5)
    weights = weights.transpose(0, 3, 1, 2, 4, 5).reshape(rows, heads, length, keys)
    return out.reshape(rows, length, heads * size), weights


class GlobalAttention(nn.Module):
    """What chosen tokens see: everything, by matrices of their own (Beltagy et al. 2020, section 3.1)."""

    stack: StackSpec
    heads: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        spec = self.stack.attention
        size, start = self.heads * spec.head_size, normal(self.stack.initializer_range)
        dense = partial(Linear, size, dtype=self.dtype, use_bias=spec.bias, kernel_init=start)
        self.query, self.key, self.value = dense(), dense(), dense()

    def __call__(
        self, x: Array, local: Pair, reach: Array, scale: float, dropout: float, rng: Array | None
    ) -> tuple[Array, Array]:
        """What attention gave, and its weights, where the tokens whose `reach` (r, t) is 2 have what they see.

        1 is a token that sees its window, 0 is padding.
        """
        shape = (*x.shape[:2], self.heads, -1)
        query, key, value = (m(x).reshape(shape).swapaxes(1, 2) for m in (self.query, self.key, self.value))
        out, weights = attend(query, key, value, (reach > 0)[:, None, None], scale, dropout, rng)
        chosen = (reach > 1)[..., None]
        return jnp.where(chosen, out, local[0]), jnp.where(chosen[:, None], weights, local[1])


class Attention(nn.Module):
    """Attention with heads, over the stack's own tokens or over a source."""

    stack: StackSpec
    layer: int
    is_cross: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        stack = self.stack
        spec = stack.cross_attention if self.is_cross else stack.attention
        assert spec is not None
        # Pruning takes heads out of self-attention only, as in the files.
        heads, shared = (spec.heads, spec.key_value_heads) if self.is_cross else spec.heads_of(self.layer)
        self.spec, size = spec, spec.head_size
        dense = partial(Linear, dtype=self.dtype, use_bias=spec.bias, kernel_init=normal(stack.initializer_range))
        self.query, self.key, self.value = dense(heads * size), dense(shared * size), dense(shared * size)
        self.output = Linear(
            stack.hidden_size,
            dtype=self.dtype,
            use_bias=spec.output_bias,
            kernel_init=normal(stack.initial_deviation("attention.output.weight")),
        )
        self.query_norm, self.key_norm = self._norm_of(heads), self._norm_of(shared)
        if spec.disentangled is not None and not self.is_cross:
            self.disentangled = Disentangled(stack, heads, self.dtype)
        if spec.global_tokens and not self.is_cross:
            self.global_attention = GlobalAttention(stack, heads, self.dtype)
        kinds = spec.rotary_kinds()
        self.rotate = rotate_neighbours if kinds and kinds[0].interleaved else rotate

    def _norm_of(self, heads: int) -> Any:
        """The norm of queries or of keys, where they have one."""
        spec, norm = self.spec, self.stack.norm
        if spec.head_norms_apart:
            return HeadNorms(heads, norm, self.dtype)
        return make_norm(norm, self.dtype) if spec.head_norm or spec.whole_norm else None

    def __call__(
        self,
        x: Array,
        source: Array | None = None,
        allowed: Array | None = None,
        rotation: Pair | None = None,
        cache: LayerCache | None = None,
        length: Array | None = None,
        train: bool = False,
        bias: Array | None = None,
        distances: Rows | None = None,
        reach: Array | None = None,
    ) -> tuple[Array, Array, LayerCache | None]:
        """(r, t, h) to (r, t, h), the weights, and the cache, which held `length` tokens, with what is new in it."""
        query = self._heads(self.query(x), self.query_norm)
        if rotation is not None:
            query = self.rotate(query, rotation)
        if self.is_cross:
            key, value = self.source_pair(source) if cache is None or cache.source is None else cache.source
        else:
            key, value = self._heads(self.key(x), self.key_norm), self._heads(self.value(x), None)
            if rotation is not None:
                key = self.rotate(key, rotation)
            if cache is not None:
                assert length is not None
                cache = cache.appended(key, value, length)
                key, value = cache.keys, cache.values
        rng = self.make_rng("dropout") if train and self.spec.dropout > 0 else None
        spec = self.spec
        scale = spec.scale(self.layer)
        if distances is not None:
            bias = self.disentangled(query, key, distances, self.query, self.key, train) * scale
        out, weights = attend(query, key, value, allowed, scale, spec.dropout, rng, spec.soft_cap, bias)
        if reach is not None:
            out, weights = self.global_attention(x, (out, weights), reach, scale, spec.dropout, rng)
        return self.output(out), weights, cache

    def source_pair(self, source: Any) -> Pair:
        """The source's keys and values (b, n, s, d), which no step changes."""
        return self._heads(self.key(source), self.key_norm), self._heads(self.value(source), None)

    def _heads(self, x: Array, norm: Any) -> Array:
        if self.spec.whole_norm and norm is not None:
            x, norm = norm(x), None
        x = x.reshape(*x.shape[:2], -1, self.spec.head_size)
        return (x if norm is None else norm(x)).swapaxes(1, 2)
