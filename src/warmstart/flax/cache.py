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
    """One layer's keys and values: its own (r / k, n, l * k, d), and the source's (b, n, s, d) where there is one.

    Those that k rows have at one position stand side by side, so that a step writes one piece of memory, and attention
    reads the buffers as they are.
    """

    keys: Array
    values: Array
    source: Pair | None = None

    def appended(self, keys: Array, values: Array, length: Array) -> LayerCache:
        """With the keys and values (r, n, t, d) of new tokens at position `length`."""
        return self._replace(keys=_put(self.keys, keys, length), values=_put(self.values, values, length))


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
        if not self.layers:
            return 0
        return self.layers[0].keys.shape[2] if self.origins is None else self.origins.shape[1]

    @property
    def beams(self) -> int:
        """How many rows share their buffers."""
        return self.layers[0].keys.shape[2] // self.capacity if self.layers else 1

    def reordered(self, rows: Array) -> KeyValueCache:
        """Row i becomes what row `rows[i]` was; what it appends next goes to its own buffer."""
        assert self.origins is not None
        is_new = jnp.arange(self.capacity) >= self.length
        return self._replace(origins=jnp.where(is_new, _own(len(rows), self.beams), self.origins[rows]))

    def shared_by(self, beams: int) -> KeyValueCache:
        """With k rows in place of each, which go on from what it holds: it stands in the buffer of the first."""
        if beams == 1:
            return self

        def spread(x: Array) -> Array:
            groups, heads, length, size = x.shape
            room = jnp.pad(x[:, :, :, None], ((0, 0), (0, 0), (0, 0), (0, beams - 1), (0, 0)))
            return room.reshape(groups, heads, length * beams, size)

        layers = tuple(x._replace(keys=spread(x.keys), values=spread(x.values)) for x in self.layers)
        rows = beams * (self.layers[0].keys.shape[0] if self.layers else 0)
        is_new = jnp.arange(self.capacity) >= self.length
        return self._replace(layers=layers, origins=jnp.where(is_new, _own(rows, beams), 0))


def _own(rows: int, beams: int) -> Array:
    """(rows, 1): the buffer that each row writes to."""
    return jnp.arange(rows)[:, None] % beams


def new_cache(spec: StackSpec, rows: int, capacity: int, dtype: jnp.dtype) -> KeyValueCache:
    """An empty cache for a stack."""
    size = spec.attention.head_size

    def layer(index: int) -> LayerCache:
        shape = (rows, spec.attention.heads_of(index)[1], capacity, size)
        return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    return KeyValueCache(tuple(layer(index) for index in range(spec.layers)), jnp.zeros((), jnp.int32))


def _put(buffer: Array, new: Array, length: Array) -> Array:
    groups, heads, _, size = buffer.shape
    rows, _, tokens, _ = new.shape
    beams = rows // groups
    if beams > 1:
        new = new.reshape(groups, beams, heads, tokens, size).transpose(0, 2, 3, 1, 4)
        new = new.reshape(groups, heads, tokens * beams, size)
    return lax.dynamic_update_slice(buffer, new.astype(buffer.dtype), (0, 0, length * beams, 0))
