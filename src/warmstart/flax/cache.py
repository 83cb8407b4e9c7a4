"""The KV cache of a decoder: buffers of a fixed length that JAX can carry through a loop, a pytree of arrays alone.

Shapes: r rows, b sources, k rows that share their buffers (beams), n key-value heads, l capacity in tokens, t new
tokens, s source length, d head size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from warmstart.spec import StackSpec

Pair = tuple[Array, Array]


class LayerCache(NamedTuple):
    """One layer's keys and values: its own (r / k, n, k, l, d), and the source's (b, n, s, d) where there is one."""

    keys: Array
    values: Array
    source: Pair | None = None

    def appended(self, keys: Array, values: Array, length: Array) -> LayerCache:
        """With the keys and values (r, n, t, d) of new tokens at position `length`."""
        return self._replace(keys=_put(self.keys, keys, length), values=_put(self.values, values, length))

    def held(self) -> Pair:
        """All keys and values (r / k, n, k * l, d)."""
        groups, heads, _, _, size = self.keys.shape
        return tuple(x.reshape(groups, heads, -1, size) for x in (self.keys, self.values))  # type: ignore[return-value]


class KeyValueCache(NamedTuple):
    """What a decoder remembers between steps; pass it back as `past_key_values`.

    `origins` (r, l), with beams: which of the k buffers holds each position of a row. A beam that goes on from another
    takes over that one's origins, a few numbers, and no key or value is moved.
    """

    layers: tuple[LayerCache, ...]
    length: Array  # () how many tokens are held
    origins: Array | None = None

    @property
    def capacity(self) -> int:
        """How many tokens there is room for."""
        return self.layers[0].keys.shape[3] if self.layers else 0

    def reordered(self, rows: Array) -> KeyValueCache:
        """Row i becomes what row `rows[i]` was; what it appends next goes to its own buffer."""
        assert self.origins is not None
        own = jnp.arange(len(rows)) % self.layers[0].keys.shape[2]
        is_new = jnp.arange(self.capacity) >= self.length
        return self._replace(origins=jnp.where(is_new, own[:, None], self.origins[rows]))


def new_cache(spec: StackSpec, rows: int, capacity: int, dtype: jnp.dtype, beams: int = 1) -> KeyValueCache:
    """An empty cache for a stack; of `rows` rows, each `beams` neighbours may go on from one another."""
    size = spec.attention.head_size

    def layer(index: int) -> LayerCache:
        shape = (rows // beams, spec.attention.heads_of(index)[1], beams, capacity, size)
        return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    origins = None
    if beams > 1:
        origins = jnp.broadcast_to(jnp.arange(rows)[:, None] % beams, (rows, capacity))
    return KeyValueCache(tuple(layer(index) for index in range(spec.layers)), jnp.zeros((), jnp.int32), origins)


def _put(buffer: Array, new: Array, length: Array) -> Array:
    groups, heads, _, _, size = buffer.shape
    new = new.reshape(groups, -1, heads, new.shape[2], size).swapaxes(1, 2).astype(buffer.dtype)
    return lax.dynamic_update_slice(buffer, new, (0, 0, 0, length, 0))
