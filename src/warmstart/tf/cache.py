"""The KV cache of a decoder: keys and values of what was decoded, and of the source, made once.

Shapes: r rows (sources times beams), b sources, n key-value heads, c capacity, t tokens held, s source length,
d head size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

Pair = tuple[Any, Any]


class LayerCache:
    """One layer's keys and values: its own (r, n, t, d), and the source's (b, n, s, d), whose keys lie turned.

    With a `capacity` its own stand in buffers (r, n, c, d) whose shape never changes, as a loop of TensorFlow wants;
    without one they grow. `shared` is how many rows each source has, where that is known beforehand.
    """

    def __init__(self, capacity: int | None = None, shared: int | None = None) -> None:
        self.capacity, self.shared = capacity, shared
        self.own: Pair | None = None
        self.source: Pair | None = None

    def append(self, keys: Any, values: Any, at: Any) -> Pair:
        """Add the keys and values of new tokens, which begin at position `at`; give all, unused room included."""
        if self.capacity is None:
            if self.own is not None:
                keys, values = tf.concat([self.own[0], keys], 2), tf.concat([self.own[1], values], 2)
            self.own = keys, values
        else:
            held = self.own or (self._room(keys), self._room(values))
            self.own = tuple(
                keras.ops.slice_update(buffer, (0, 0, at, 0), tf.cast(new, buffer.dtype))
                for buffer, new in zip(held, (keys, values), strict=True)
            )
        return self.own

    def _room(self, like: Any) -> Any:
        rows, heads, _, size = tf.unstack(tf.shape(like))
        room = tf.zeros([rows, heads, self.capacity, size], like.dtype)
        return tf.ensure_shape(room, [like.shape[0], like.shape[1], self.capacity, like.shape[3]])


class KeyValueCache:
    """What a decoder remembers between steps; pass it back as `past_key_values`.

    `cache[layer]` is a tuple of keys and values, and the source's keys and values where there is one. A model adds to a
    copy: what was given to it stays as it was.
    """

    def __init__(self, layers: int, capacity: int | None = None, shared: int | None = None) -> None:
        self.layers = [LayerCache(capacity, shared) for _ in range(layers)]
        self.capacity = capacity
        self.length: Any = 0

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """How many tokens are held (the name that users of `transformers` know)."""
        return self.length

    def copied(self) -> KeyValueCache:
        """The same tensors, in a cache of its own."""
        other = copy.copy(self)
        other.layers = [copy.copy(layer) for layer in self.layers]
        return other

    def own(self) -> list[Pair]:
        """Each layer's own keys and values."""
        return [layer.own for layer in self.layers if layer.own is not None]

    def with_own(self, pairs: Sequence[Pair], length: Any) -> KeyValueCache:
        """This cache with other keys and values of its own, the source's kept: what one turn of a loop begins with."""
        other = self.copied()
        other.length = length
        for layer, (keys, values) in zip(other.layers, pairs, strict=True):
            layer.own = keys, values
        return other

    def reordered(self, rows: Any) -> KeyValueCache:
        """A cache whose row i is what row `rows[i]` was; the source's part stays as it is."""
        pairs = [(tf.gather(keys, rows), tf.gather(values, rows)) for keys, values in self.own()]
        return self.with_own(pairs, self.length)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> tuple[Any, ...]:
        held = self.layers[layer]
        own = () if held.own is None else tuple(x[:, :, : self.length] for x in held.own)
        if held.source is None:
            return own
        keys, values = held.source
        return *own, tf.transpose(keys, [0, 1, 3, 2]), values

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (self[layer] for layer in range(len(self)))
