"""Attention: rotary positions, scores, and the layer that holds the projections.

The tokens of all rows stand in one axis, so that a dense layer is one plain product of matrices.

Shapes: r rows, b sources (r = b * beams), t target length, s source length, h hidden size, n heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from warmstart.spec import AttentionSpec, NormSpec
from warmstart.tf.cache import LayerCache
from warmstart.tf.disentangled import Disentangled, Rows
from warmstart.tf.elements import Block, HeadNorms, capped, linear, make_norm, size_of

_FEW = 16
"""So many queries, the beams of a source say, XLA on a processor multiplies faster with the keys on the left."""


def rotate(x: Any, rotation: tuple[Any, Any]) -> Any:
    """Turn the first numbers of each head (r, n, t, d) by cosine and sine (r or 1, 1, t, rotated size)."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    turned = x[..., :size]
    left, right = tf.split(turned, 2, -1)
    turned = turned * cosine + tf.concat([-right, left], -1) * sine
    return tf.concat([turned, x[..., size:]], -1) if size < x.shape[-1] else turned


def rotate_neighbours(x: Any, rotation: tuple[Any, Any]) -> Any:
    """As `rotate`, where neighbours turn together: numbers 0 and 1, 2 and 3, and so on."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    turned = x[..., :size]
    crossed = tf.reshape(tf.stack([-turned[..., 1::2], turned[..., ::2]], -1), tf.shape(turned))
    turned = turned * cosine + crossed * sine
    return tf.concat([turned, x[..., size:]], -1) if size < x.shape[-1] else turned


def attend(
    query: Any,
    key: Any,
    value: Any,
    allowed: Any,
    scale: float,
    dropout: Any = None,
    shared: int | None = None,
    soft_cap: float | None = None,
    bias: Any = None,
    is_turned: bool = False,
) -> tuple[Any, Any]:
    """Attention of queries (r, n, t, d) over keys and values (b, m, s, d); heads n may share m, and k rows r share b.

    Keys may be turned, (b, m, d, s): what is read at every step is read faster so.
    `allowed` (b or 1, 1, k * t or 1, s) is True where a query may look, or None; `bias` (r or 1, n, t, s) is added to
    scores. Gives (r, n, t, d) and the weights (r, n, t, s).
    """
    heads, length, size = query.shape[1], size_of(query, 2), query.shape[3]
    key_heads, group = key.shape[1], heads // key.shape[1]
    if shared is None:
        shared = size_of(query, 0) // size_of(key, 0)
    folds = group > 1 or not (isinstance(shared, int) and shared == 1)
    if folds:
        # The rows of a source and the heads that share a key stand side by side on the query axis: no key is copied.
        query = tf.reshape(query, [-1, shared, key_heads, group, length, size])
        query = tf.reshape(tf.transpose(query, [0, 2, 3, 1, 4, 5]), [-1, key_heads, group * shared * length, size])
    if not is_turned and query.shape[2] is not None and 1 < query.shape[2] <= _FEW:
        scores = tf.transpose(tf.matmul(key, query, transpose_b=True), [0, 1, 3, 2]) * tf.cast(scale, query.dtype)
    else:
        scores = tf.matmul(query, key, transpose_b=not is_turned) * tf.cast(scale, query.dtype)
    scores = scores if soft_cap is None else capped(scores, soft_cap)
    scores = tf.reshape(scores, [-1, key_heads, group, shared * length, size_of(scores, 3)])
    if bias is not None:
        bias = tf.reshape(bias, [-1, key_heads, group, length, size_of(scores, 4)])
        scores = scores + tf.tile(bias, [1, 1, 1, shared, 1])
    if allowed is not None:
        scores = tf.where(allowed[:, :, None], scores, scores.dtype.min)
    weights = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32), -1), scores.dtype)
    if dropout is not None:
        weights = dropout(weights)
    weights = tf.reshape(weights, [-1, key_heads, group * shared * length, size_of(scores, 4)])
    out = tf.matmul(weights, value)
    if folds:
        out, weights = (
            tf.reshape(
                tf.transpose(tf.reshape(x, [-1, key_heads, group, shared, length, size_of(x, 3)]), [0, 3, 1, 2, 4, 5]),
                [-1, heads, length, size_of(x, 3)],
            )
            for x in (out, weights)
        )
    return out, weights


@dataclass(frozen=True)
class Source:
    """What cross-attention reads: states (b * s, h), and s."""

    states: Any
    length: Any


def _norm_of(spec: AttentionSpec, heads: int, norm: NormSpec) -> Any:
    """The norm of queries or of keys, where they have one."""
    if spec.head_norms_apart:
        return HeadNorms(heads, spec.head_size, norm)
    if spec.whole_norm:
        return make_norm(heads * spec.head_size, norm)
    return make_norm(spec.head_size, norm) if spec.head_norm else None


class GlobalAttention(Block):
    """What chosen tokens see: everything, by matrices of their own (Beltagy et al. 2020, section 3.1)."""

    def __init__(self, spec: AttentionSpec, heads: int, hidden_size: int) -> None:
        super().__init__()
        self.heads, self.head_size, size = heads, spec.head_size, heads * spec.head_size
        self.query, self.key, self.value = (linear(hidden_size, size, spec.bias) for _ in range(3))

    def call(self, x: Any, local: tuple[Any, Any], reach: Any, scale: float, dropout: Any = None) -> tuple[Any, Any]:
        """What attention gave, and its weights, where the tokens whose `reach` (r, t) is 2 have what they see.

        1 is a token that sees its window, 0 is padding.
        """
        shape = [-1, size_of(reach, 1), self.heads, self.head_size]
        query, key, value = (
            tf.transpose(tf.reshape(m(x), shape), [0, 2, 1, 3]) for m in (self.query, self.key, self.value)
        )
        out, weights = attend(query, key, value, (reach > 0)[:, None, None], scale, dropout, 1)
        chosen = (reach > 1)[:, None, :, None]
        return tf.where(chosen, out, local[0]), tf.where(chosen, weights, local[1])


class Attention(Block):
    """Attention with heads, over the stack's own tokens or over a source of width `source_size`."""

    def __init__(
        self, spec: AttentionSpec, layer: int, hidden_size: int, source_size: int | None, norm: NormSpec
    ) -> None:
        super().__init__()
        # Pruning takes heads out of self-attention only, as in the files.
        heads, key_value_heads = spec.heads_of(layer) if source_size is None else (spec.heads, spec.key_value_heads)
        width = source_size or hidden_size
        self.head_size, self.scale = spec.head_size, spec.scale(layer)
        self.soft_cap, self.whole_norm = spec.soft_cap, spec.whole_norm
        kinds = spec.rotary_kinds()
        self.rotate = rotate_neighbours if kinds and kinds[0].interleaved else rotate
        self.is_cross = source_size is not None
        self.query = linear(hidden_size, heads * spec.head_size, spec.bias)
        self.key = linear(width, key_value_heads * spec.head_size, spec.bias)
        self.value = linear(width, key_value_heads * spec.head_size, spec.bias)
        self.output_layer = linear(heads * spec.head_size, hidden_size, spec.output_bias)
        self.query_norm, self.key_norm = (_norm_of(spec, count, norm) for count in (heads, key_value_heads))
        is_disentangled = spec.disentangled is not None and source_size is None
        self.disentangled = Disentangled(spec, heads, hidden_size) if is_disentangled else None
        is_global = spec.global_tokens and source_size is None
        self.global_attention = GlobalAttention(spec, heads, hidden_size) if is_global else None
        self.dropout = keras.layers.Dropout(spec.dropout) if spec.dropout else None

    def call(
        self,
        x: Any,
        length: Any = 1,
        source: Source | None = None,
        allowed: Any = None,
        rotation: Any = None,
        cache: LayerCache | None = None,
        at: Any = 0,
        bias: Any = None,
        distances: Rows | None = None,
        reach: Any = None,
    ) -> tuple[Any, Any]:
        """(r * t, h) to (r * t, h), with the weights (r, n, t, s)."""
        query = self._heads(self.query(x), length, self.query_norm)
        if rotation is not None:
            query = self.rotate(query, rotation)
        if self.is_cross:
            key, value = self.source_pair(source, cache)
        else:
            key, value = self._own_pair(x, length, rotation, cache, at)
        if self.disentangled is not None and distances is not None:
            matrices = {"query_matrix": self.query, "key_matrix": self.key}
            bias = self.disentangled(query, key=key, distances=distances, **matrices) * tf.cast(self.scale, query.dtype)
        shared = None if self.is_cross else 1
        if cache is not None:
            shared = cache.shared if self.is_cross else cache.beams
        out, weights = attend(
            query, key, value, allowed, self.scale, self.dropout, shared, self.soft_cap, bias, is_turned=self.is_cross
        )
        if self.global_attention is not None and reach is not None:
            given = {"reach": reach, "scale": self.scale, "dropout": self.dropout}
            out, weights = self.global_attention(x, local=(out, weights), **given)
        out = tf.transpose(out, [0, 2, 1, 3])
        return self.output_layer(tf.reshape(out, [-1, out.shape[2] * out.shape[3]])), weights

    def _own_pair(self, x: Any, length: Any, rotation: Any, cache: LayerCache | None, at: Any) -> tuple[Any, Any]:
        key, value = self._heads(self.key(x), length, self.key_norm), self._heads(self.value(x), length, None)
        if rotation is not None:
            key = self.rotate(key, rotation)
        return (key, value) if cache is None else cache.append(key, value, at)

    def source_pair(self, source: Source | None, cache: LayerCache | None) -> tuple[Any, Any]:
        """The source's keys, turned (b, n, d, s), and values (b, n, s, d): made once, then kept."""
        if cache is not None and cache.source is not None:
            return cache.source
        assert source is not None
        states, length = source.states, source.length
        key = self._heads(self.key(states), length, self.key_norm)
        pair = tf.transpose(key, [0, 1, 3, 2]), self._heads(self.value(states), length, None)
        if cache is not None:
            cache.source = pair
        return pair

    def _heads(self, x: Any, length: Any, norm: Any) -> Any:
        if self.whole_norm and norm is not None:
            x, norm = norm(x), None
        x = tf.reshape(x, [-1, length, x.shape[1] // self.head_size, self.head_size])
        return tf.transpose(x if norm is None else norm(x), [0, 2, 1, 3])
