"""Which tokens see which, and at which position each token stands: written once, for every stack.

Shapes: r rows, t new tokens, l a cache's capacity, s keys in all (t, or l), k beams that share a cache.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from warmstart.flax.cache import KeyValueCache
from warmstart.spec import EmbeddingSpec, StackSpec


def eager(array: object) -> bool:
    """Whether an array's values can be looked at for free: on the CPU, and nothing traces it."""
    if isinstance(array, jax.core.Tracer):
        return False
    return isinstance(array, np.ndarray) or (
        isinstance(array, Array) and array.is_fully_addressable and next(iter(array.devices())).platform == "cpu"
    )


def source_mask(attention_mask: Array | None) -> Array | None:
    """The mask of whoever reads a padded source: (b, s) with 1 for tokens, to (b, 1, 1, s)."""
    if attention_mask is None:
        return None
    allowed = attention_mask.astype(bool)
    return allowed[:, None] if allowed.ndim == 3 else allowed[:, None, None]


def self_mask(
    attention_mask: Array | None, tokens: int, cache: KeyValueCache | None, causal: bool, window: int | None
) -> Array | None:
    """The mask of a stack over its own tokens (r or 1, 1, t or 1, s); `attention_mask` is (r, s) or (r, t, s).

    With beams the keys are those of all k buffers, side by side at each position: (r, 1, t, l * k).
    """
    allowed = source_mask(attention_mask)
    order = _order(tokens, cache, causal, window)
    if order is not None:
        allowed = order if allowed is None else allowed & order
    if cache is None or cache.origins is None:
        return allowed
    own = cache.origins[:, :, None] == jnp.arange(cache.beams)  # (r, l, k)
    assert allowed is not None
    allowed = allowed[..., None] & own[:, None, None]
    return allowed.reshape(*allowed.shape[:3], -1)


def _order(tokens: int, cache: KeyValueCache | None, causal: bool, window: int | None) -> Array | None:
    """(1, 1, t, s): what order and distance allow; None is everything."""
    if cache is None and window is None and not causal:
        return None
    past, total = (0, tokens) if cache is None else (cache.length, cache.capacity)
    back = past + jnp.arange(tokens)[:, None] - jnp.arange(total)  # how far behind the query a key stands
    allowed = back >= 0 if causal or cache is not None else jnp.ones_like(back, bool)
    if window is not None:
        allowed = allowed & (back < window) & (back > -window)
    return allowed[None, None]


def with_global(attention_mask: Any, global_attention_mask: Any, spec: StackSpec) -> Any:
    """A mask (r, t) that is 2 for tokens which see everything and which everything sees, else 1, and 0 for padding.

    Raises:
        ValueError: the family has no such tokens, or the masks do not fit each other.
    """
    if global_attention_mask is None:
        return attention_mask
    if not spec.attention.global_tokens:
        raise ValueError(f"a {spec.family} stack has no global attention; leave global_attention_mask out")
    shape = tuple(global_attention_mask.shape)
    if len(shape) != 2 or (attention_mask is not None and tuple(attention_mask.shape) != shape):
        raise ValueError(f"global_attention_mask of shape {shape} must be (batch, length), as attention_mask is")
    reach = jnp.asarray(global_attention_mask).astype(bool).astype(jnp.int32) + 1
    return reach if attention_mask is None else jnp.asarray(attention_mask).astype(jnp.int32) * reach


def reach_of(attention_mask: Array | None) -> Array | None:
    """A mask (r, t) that may say of some tokens that they see everything, see `with_global`; else None."""
    return attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None


def reaching(allowed: Array | None, reach: Array) -> Array | None:
    """The mask of a window, where everything sees the tokens whose reach (r, t) is 2."""
    return None if allowed is None else allowed | (reach > 1)[:, None, None]


def leaning(slopes: Array, tokens: int, cache: KeyValueCache | None) -> Array:
    """What lowers scores by the distance times the head's slope (n,), either way: (1, n, t, s), or (1, n, t, l * k)."""
    past, total = (0, tokens) if cache is None else (cache.length, cache.capacity)
    distance = jnp.abs(past + jnp.arange(tokens)[:, None] - jnp.arange(total))
    return _for_beams(-slopes[:, None, None] * distance, cache)


def leaning_by(table: Any, buckets: np.ndarray, tokens: int, cache: KeyValueCache | None) -> Array:
    """What a table says of the bucket of each distance (see `relative_buckets`): (1, n, t, s), or (1, n, t, l * k)."""
    past, total = (0, tokens) if cache is None else (cache.length, cache.capacity)
    most = len(buckets) // 2
    distance = jnp.arange(total) - past - jnp.arange(tokens)[:, None]
    rows = jnp.asarray(buckets)[jnp.clip(distance, -most, most) + most]
    return _for_beams(table(rows).transpose(2, 0, 1), cache)


def _for_beams(bias: Array, cache: KeyValueCache | None) -> Array:
    """A bias (n, t, l) for the keys of all k buffers, side by side."""
    return jnp.repeat(bias, 1 if cache is None else cache.beams, -1)[None]


def position_rows(
    ids: Array | None,
    attention_mask: Array | None,
    tokens: int,
    past: Array | int,
    causal: bool,
    spec: EmbeddingSpec,
) -> Array:
    """The row of the position table for each new token: (r, t), or (1, t) where all rows agree.

    Positions count from the first token that is not masked, so that padding on the left changes nothing. Where a
    family gives padding no position (`positions_skip_padding`), an encoder knows padding by its id, as it was trained;
    a decoder by its mask alone, because there the padding id may also be the start or the end.
    """
    offset = spec.position_offset
    if spec.positions_skip_padding and not causal and ids is not None and spec.padding_id is not None:
        kept = (ids != spec.padding_id).astype(jnp.int32)
        return kept.cumsum(1) * kept + spec.padding_id
    rows = counted(attention_mask, tokens, past) + offset
    if spec.positions_skip_padding and attention_mask is not None and attention_mask.ndim == 2:
        new = lax.dynamic_slice_in_dim(attention_mask, past, tokens, 1).astype(bool)
        rows = jnp.where(new, rows, offset - 1)
    return rows


def counted(attention_mask: Array | None, tokens: int, past: Array | int) -> Array:
    """Positions of the new tokens, counted from the first that is not masked: (r, t) or (1, t)."""
    positions = past + jnp.arange(tokens)[None]
    if attention_mask is None or attention_mask.ndim != 2:
        return positions
    first = attention_mask.astype(bool).argmax(1)[:, None]
    return jnp.maximum(positions - first, 0)
