"""Which tokens see which, and at which position each token stands: written once, for every stack.

Shapes: r rows, t new tokens, p tokens in the cache, c places that keys have (p + t, or the cache's capacity), s source
length.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from warmstart.spec import EmbeddingSpec


def source_mask(attention_mask: Any) -> Any:
    """What may be seen of a padded source: (b, s) with 1 for tokens, to booleans (b, 1, 1, s); None stays."""
    if attention_mask is None or attention_mask.shape.rank > 3:
        return attention_mask
    allowed = tf.cast(attention_mask, tf.bool)
    return allowed[:, None] if allowed.shape.rank == 3 else allowed[:, None, None]


def self_mask(attention_mask: Any, length: Any, past: Any, places: Any, causal: bool, window: int | None) -> Any:
    """What a stack may see of its own tokens; `attention_mask` is (r, c), or (r, t, c) for one of your own."""
    padding = source_mask(attention_mask)
    static = isinstance(past, int) and isinstance(length, int) and isinstance(places, int)
    is_whole = static and places == past + length
    near = window is not None and not (is_whole and places <= window)
    if not near and is_whole and (not causal or length == 1):
        return padding
    if not near and not causal:
        return padding
    order = _order(length, past, places, causal, window if near else None)
    return order if padding is None else order & padding


def _order(length: Any, past: Any, places: Any, causal: bool, window: int | None) -> Any:
    """(1, 1, t, c): what order and distance allow."""
    back = (past + tf.range(length))[:, None] - tf.range(places)  # how far behind the query a key stands
    allowed = back >= 0 if causal else tf.ones_like(back, tf.bool)
    if window is not None:
        allowed = allowed & (back < window) & (back > -window)
    return allowed[None, None]


def leaning(slopes: Any, length: Any, past: Any, places: Any) -> Any:
    """What lowers scores by the distance times the head's slope (n,), either way: (1, n, t, c)."""
    distance = tf.abs((past + tf.range(length))[:, None] - tf.range(places))
    return (-slopes[:, None, None] * tf.cast(distance, slopes.dtype))[None]


def leaning_by(table: Any, buckets: Any, length: Any, past: Any, places: Any) -> Any:
    """What a table says of the bucket of each distance (see `relative_buckets`): (1, n, t, c)."""
    most = len(buckets) // 2
    distance = tf.range(places) - past - tf.range(length)[:, None]
    rows = tf.gather(tf.constant(buckets, tf.int32), tf.clip_by_value(distance, -most, most) + most)
    return tf.transpose(table(rows), [2, 0, 1])[None]


def position_rows(ids: Any, attention_mask: Any, length: Any, past: Any, causal: bool, spec: EmbeddingSpec) -> Any:
    """The row of the position table for each new token: (r, t), or (1, t) where all rows agree.

    Positions count from the first token that is not masked, so that padding on the left changes nothing. Where a
    family gives padding no position (`positions_skip_padding`), an encoder knows padding by its id, as it was trained;
    a decoder by its mask alone, because there the padding id may also be the start or the end.
    """
    offset = spec.position_offset
    if spec.positions_skip_padding and not causal and ids is not None and spec.padding_id is not None:
        kept = tf.cast(ids != spec.padding_id, tf.int32)
        return tf.cumsum(kept, 1) * kept + spec.padding_id
    rows = counted(attention_mask, length, past) + offset
    if spec.positions_skip_padding and attention_mask is not None and attention_mask.shape.rank == 2:
        new = tf.slice(tf.cast(attention_mask, tf.bool), [0, past], [-1, length])
        rows = tf.where(new, rows, offset - 1)
    return rows


def counted(attention_mask: Any, length: Any, past: Any) -> Any:
    """Positions of the new tokens, counted from the first that is not masked: (r, t) or (1, t)."""
    positions = (past + tf.range(length))[None]
    if attention_mask is None or attention_mask.shape.rank != 2:
        return positions
    is_real = tf.cast(tf.cast(attention_mask, tf.bool), tf.int32)
    first = tf.argmax(is_real, 1, output_type=tf.int32)[:, None]
    return tf.maximum(positions - first, 0)
