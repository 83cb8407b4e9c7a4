"""The decoder as a search reads it: the source and the prompt once, then the newest token of each row.

Shapes: b sources, r rows (b times those of a source), n key-value heads, p prompt length, s source length, l places,
h hidden size, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from warmstart.tf.cache import KeyValueCache
from warmstart.tf.stack import States, flat_source


class Runner:
    """A decoder with its source, or none, and the prompt's mask; a cache with room for `room` tokens is handed in and
    out.

    Each source has `rows` rows, and `shared` of these go on from one another: they share their buffers of keys and
    values. `wants` names what is to be seen of each pass: "attentions", "hidden_states". `begins` is how many tokens
    its own prompt has more than the search's.
    """

    def __init__(
        self, decoder: Any, rows: int, shared: int, room: int, wants: tuple[str, ...] = (), begins: int = 0
    ) -> None:
        self.decoder, self.rows, self.shared, self.room, self.begins = decoder, rows, shared, room, begins
        self.wants = {"want_attentions": "attentions" in wants, "want_hidden": "hidden_states" in wants}
        self.mask: Any = None
        self.source_mask: Any = None

    def started(self, prompt: Any, mask: Any, source: Any, source_mask: Any) -> tuple[KeyValueCache, States | None]:
        """The cache with the source's keys and values and all of the prompt (b, p) but its last token, and what was
        seen of these.
        """
        cache = self.decoder.new_cache(self.room, shared=self.rows)
        self.source_mask = source_mask
        if source is not None:
            read = flat_source(source)
            for block, layer in zip(self.decoder.blocks, cache.layers, strict=True):
                block.cross_attention.source_pair(read, layer)
        length = prompt.shape[1] - 1
        if mask is not None:  # what comes after the prompt is real
            mask = tf.pad(tf.cast(mask, tf.int32), [[0, 0], [0, self.room - length - 1]], constant_values=1)
            self.mask = tf.repeat(mask, self.rows, 0)
        # The rows that share their buffers hold one prompt: it is read once.
        spread, states = self.rows // self.shared, None
        if length == 0:
            own = self._nothing(tf.shape(prompt)[0] * spread)
        else:
            alone = cache.copied()
            for layer in alone.layers:
                layer.shared = 1
            # while the prompt is read, the places behind it stay hidden: causal attention sees to that
            states = self.decoder.states(
                prompt[:, :length], mask, source_attention_mask=source_mask, cache=alone, **self.wants
            )
            own = [tuple(tf.repeat(x, spread, 0) for x in pair) for pair in states.cache.own()[0]]
        return cache.with_own((own, ()), length).shared_by(self.shared), states

    def read(self, newest: Any, cache: KeyValueCache, held: Any) -> tuple[States, Any]:
        """Read the token (r, 1) that follows the first `held` of the search: the states, and float32 logits (r, v)."""
        cache = cache.with_own(cache.own(), held + self.begins)
        states = self.decoder.states(
            newest, self.mask, source_attention_mask=self.source_mask, cache=cache, **self.wants
        )
        if states.attentions is not None and self.shared > 1:
            states.attentions = tuple(self._of_places(x) for x in states.attentions)
        return states, tf.cast(self.decoder.head(states.last), tf.float32)[:, 0]

    def _of_places(self, weights: Any) -> Any:
        """Attention over the places of a sequence (r, n, t, l) from that over those of all shared buffers."""
        return tf.reduce_sum(tf.reshape(weights, [-1, weights.shape[1], 1, self.room, self.shared]), -1)

    def _nothing(self, rows: Any) -> list[Any]:
        """Room for so many rows in every layer, and nothing in it."""
        attention = self.decoder.spec.attention
        own = []
        for layer in range(self.decoder.spec.layers):
            _, heads = attention.heads_of(layer)
            room = tf.zeros([rows, heads, self.room, attention.head_size], self.decoder.compute_dtype)
            room = tf.ensure_shape(room, [None, heads, self.room, attention.head_size])
            own.append((room, room))
        return own
