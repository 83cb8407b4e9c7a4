"""Which tokens see which, and at which position each token stands: written once, for every stack.

Shapes: r rows, b sources, t new tokens, p tokens in the cache, c places that keys have (p + t, or the cache's
capacity), k beams that share a cache, s source length.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from warmstart.spec import EmbeddingSpec, StackSpec
from warmstart.tf.cache import KeyValueCache
from warmstart.tf.elements import size_of
from warmstart.tf.inputs import as_tensor


def source_mask(attention_mask: Any) -> Any:
    """What may be seen of a padded source: (b, s) with 1 for tokens, to booleans (b, 1, 1, s); None stays."""
    if attention_mask is None or attention_mask.shape.rank > 3:
        return attention_mask
    allowed = tf.cast(attention_mask, tf.bool)
    return allowed[:, None] if allowed.shape.rank == 3 else allowed[:, None, None]


def self_mask(attention_mask: Any, length: Any, cache: KeyValueCache | None, causal: bool, window: int | None) -> Any:
    """What a stack may see of its own tokens; `attention_mask` is (r, c), or (r, t, c) for one of your own.

    With beams it is for the keys of all k buffers, side by side at each position, and for the k rows that read them:
    (b, 1, k * t, c * k).
    """
    allowed = source_mask(attention_mask)
    order = _order(length, cache, causal, window)
    if order is not None:
        allowed = order if allowed is None else order & allowed
    if cache is None or cache.origins is None:
        return allowed
    own = cache.origins[:, :, None] == tf.range(cache.beams)  # (r, c, k)
    allowed = allowed[..., None] & own[:, None, None]
    return tf.reshape(allowed, [-1, 1, cache.beams * size_of(allowed, 2), cache.beams * size_of(allowed, 3)])


def _order(length: Any, cache: KeyValueCache | None, causal: bool, window: int | None) -> Any:
    """(1, 1, t, c): what order and distance allow; None is everything."""
    past, places = _span(length, cache)
    static = isinstance(past, int) and isinstance(length, int) and isinstance(places, int)
    is_whole = static and places == past + length
    near = None if window is None or (is_whole and places <= window) else window
    if near is None and (not causal or (is_whole and length == 1)):
        return None
    back = (past + tf.range(length))[:, None] - tf.range(places)  # how far behind the query a key stands
    allowed = back >= 0 if causal else tf.ones_like(back, tf.bool)
    if near is not None:
        allowed = allowed & (back < near) & (back > -near)
    return allowed[None, None]


def _span(length: Any, cache: KeyValueCache | None) -> tuple[Any, Any]:
    """How many tokens came before, and how many places keys have."""
    past = 0 if cache is None else cache.length
    return past, past + length if cache is None or cache.capacity is None else cache.capacity


def with_global(attention_mask: Any, global_attention_mask: Any, spec: StackSpec) -> Any:
    """A mask (r, t) that is 2 for tokens which see everything and which everything sees, else 1, and 0 for padding.

    Raises:
        ValueError: the family has no such tokens, or the masks do not fit each other.
    """
    if global_attention_mask is None:
        return attention_mask
    if not spec.attention.global_tokens:
        raise ValueError(f"a {spec.family} stack has no global attention; leave global_attention_mask out")
    reach = tf.cast(tf.cast(as_tensor(global_attention_mask, "global_attention_mask"), tf.bool), tf.int32) + 1
    mask = as_tensor(attention_mask, "attention_mask")
    if reach.shape.rank != 2 or (mask is not None and not reach.shape.is_compatible_with(mask.shape)):
        shape = tuple(reach.shape)
        raise ValueError(f"global_attention_mask of shape {shape} must be (batch, length), as attention_mask is")
    return reach if mask is None else tf.cast(mask, tf.int32) * reach


def reach_of(attention_mask: Any) -> Any:
    """A mask (r, t) that may say of some tokens that they see everything, see `with_global`; else None."""
    is_flat = attention_mask is not None and attention_mask.shape.rank == 2
    return tf.cast(attention_mask, tf.int32) if is_flat else None


def reaching(allowed: Any, reach: Any) -> Any:
    """The mask of a window, where everything sees the tokens whose reach (r, t) is 2."""
    return None if allowed is None else allowed | (reach > 1)[:, None, None]


def leaning(slopes: Any, length: Any, cache: KeyValueCache | None) -> Any:
    """What lowers scores by the distance times the head's slope (n,), either way: (1, n, t, c), or (1, n, t, c * k)."""
    past, places = _span(length, cache)
    distance = tf.abs((past + tf.range(length))[:, None] - tf.range(places))
    return _for_beams(-slopes[:, None, None] * tf.cast(distance, slopes.dtype), cache)


def leaning_by(table: Any, buckets: Any, length: Any, cache: KeyValueCache | None) -> Any:
    """What a table says of the bucket of each distance (see `relative_buckets`): (1, n, t, c), or (1, n, t, c * k)."""
    past, places = _span(length, cache)
    most = len(buckets) // 2
    distance = tf.range(places) - past - tf.range(length)[:, None]
    rows = tf.gather(tf.constant(buckets, tf.int32), tf.clip_by_value(distance, -most, most) + most)
    return _for_beams(tf.transpose(table(rows), [2, 0, 1]), cache)


def _for_beams(bias: Any, cache: KeyValueCache | None) -> Any:
    """A bias (n, t, c) for the keys of all k buffers, side by side."""
    return tf.repeat(bias, 1 if cache is None else cache.beams, -1)[None]


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
