"""The KV cache of a decoder: keys and values of what was decoded, and of the source, made once.

Shapes: r rows, b sources, k rows that share their buffers (beams), n key-value heads, c capacity in tokens, t tokens,
s source length, d head size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from warmstart.tf.elements import size_of

Pair = tuple[Any, Any]
Own = tuple[list[Pair], tuple[Any, ...]]


class LayerCache:
    """One layer's keys and values: its own (r, n, t, d), and the source's (b, n, s, d), whose keys lie turned.

    With a `capacity` its own stand in buffers (r / k, n, c * k, d) whose shape never changes, as a loop of TensorFlow
    wants; those that k `beams` have at one position stand side by side, so that a step writes one piece of memory, and
    attention reads the buffers as they are. Without a capacity they grow. `shared` is how many rows each source has,
    where that is known beforehand.
    """

    def __init__(self, capacity: int | None = None, shared: int | None = None) -> None:
        self.capacity, self.shared, self.beams = capacity, shared, 1
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
            self.own = _put(held[0], keys, at, self.beams), _put(held[1], values, at, self.beams)
        return self.own

    def _room(self, like: Any) -> Any:
        rows, heads, _, size = tf.unstack(tf.shape(like))
        room = tf.zeros([rows, heads, self.capacity, size], like.dtype)
        return tf.ensure_shape(room, [like.shape[0], like.shape[1], self.capacity, like.shape[3]])


class KeyValueCache:
    """What a decoder remembers between steps; pass it back as `past_key_values`.

    `cache[layer]` is a tuple of keys and values, and the source's keys and values where there is one. A model adds to a
    copy: what was given to it stays as it was.

    `origins` (r, c), with beams: which of the k buffers holds each position of a row. A beam that goes on from another
    takes over that one's origins, a few numbers, and no key or value is moved.
    """

    def __init__(self, layers: int, capacity: int | None = None, shared: int | None = None) -> None:
        self.layers = [LayerCache(capacity, shared) for _ in range(layers)]
        self.capacity = capacity
        self.length: Any = 0
        self.origins: Any = None

    @property
    def beams(self) -> int:
        """How many rows share their buffers."""
        return self.layers[0].beams

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """How many tokens are held (the name that users of `transformers` know)."""
        return self.length

    def copied(self) -> KeyValueCache:
        """The same tensors, in a cache of its own."""
        other = copy.copy(self)
        other.layers = [copy.copy(layer) for layer in self.layers]
        return other

    def own(self) -> Own:
        """Each layer's own keys and values, and the origins if there are any: what changes from step to step."""
        pairs = [layer.own for layer in self.layers if layer.own is not None]
        return pairs, () if self.origins is None else (self.origins,)

    def with_own(self, own: Own, length: Any) -> KeyValueCache:
        """This cache with other keys and values of its own, the source's kept: what one turn of a loop begins with."""
        other, (pairs, origins) = self.copied(), own
        other.length, other.origins = length, origins[0] if origins else None
        for layer, (keys, values) in zip(other.layers, pairs, strict=True):
            layer.own = keys, values
        return other

    def reordered(self, rows: Any) -> KeyValueCache:
        """Row i becomes what row `rows[i]` was; what it appends next goes to its own buffer."""
        is_new = tf.range(self.capacity) >= self.length
        origins = tf.where(is_new, _own(tf.shape(rows)[0], self.beams), tf.gather(self.origins, rows))
        return self.with_own((self.own()[0], (origins,)), self.length)

    def shared_by(self, beams: int) -> KeyValueCache:
        """With k rows in place of each, which go on from what it holds: it stands in the buffer of the first."""
        if beams == 1:
            return self

        def spread(x: Any) -> Any:
            room = tf.pad(x[:, :, :, None], [[0, 0], [0, 0], [0, 0], [0, beams - 1], [0, 0]])
            return tf.reshape(room, [-1, x.shape[1], x.shape[2] * beams, x.shape[3]])

        pairs = [(spread(keys), spread(values)) for keys, values in self.own()[0]]
        is_new = tf.range(self.capacity) >= self.length
        rows = beams * (size_of(pairs[0][0], 0) if pairs else 0)
        other = self.with_own((pairs, (tf.where(is_new, _own(rows, beams), 0),)), self.length)
        for layer in other.layers:
            layer.beams = beams
        return other

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


def apart(own: Own) -> list[Pair]:
    """The keys and values of each row (r, n, c, d), out of the buffers that k rows share."""
    pairs, origins = own
    if not origins:
        return pairs
    length = origins[0].shape[1]
    beams = pairs[0][0].shape[2] // length
    where = tf.transpose(tf.reshape(origins[0], [-1, beams, length]), [0, 2, 1])  # (b, c, k)

    def of_rows(x: Any) -> Any:
        heads, size = x.shape[1], x.shape[3]
        places = tf.transpose(tf.reshape(x, [-1, heads, length, beams, size]), [0, 2, 3, 1, 4])
        picked = tf.gather(places, where, axis=2, batch_dims=2)
        return tf.reshape(tf.transpose(picked, [0, 2, 3, 1, 4]), [-1, heads, length, size])

    return [(of_rows(keys), of_rows(values)) for keys, values in pairs]


def _own(rows: Any, beams: int) -> Any:
    """(rows, 1): the buffer that each row writes to."""
    return tf.range(rows)[:, None] % beams


def _put(buffer: Any, new: Any, at: Any, beams: int) -> Any:
    if beams > 1:
        _, heads, _, size = new.shape
        new = tf.transpose(tf.reshape(new, [-1, beams, heads, size_of(new, 2), size]), [0, 2, 3, 1, 4])
        new = tf.reshape(new, [-1, heads, size_of(new, 2) * beams, size])
    return keras.ops.slice_update(buffer, (0, 0, at * beams, 0), tf.cast(new, buffer.dtype))
