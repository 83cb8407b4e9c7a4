"""The two ends of a stack, each built by its spec: token ids to vectors, hidden states to logits.

Shapes: r rows, t length, h hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from warmstart.positions import sinusoids
from warmstart.spec import EmbeddingSpec, NormSpec, StackSpec
from warmstart.tf.elements import (
    ACTIVATIONS,
    Block,
    Output,
    capped,
    check_activation,
    linear,
    make_norm,
    size_of,
    table,
)


class Sinusoids(Block):
    """A table of positions that is computed, not loaded."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__()
        self.values = sinusoids(spec)
        self.input_dim = len(self.values)

    def call(self, rows: Any) -> Any:
        return tf.gather(tf.constant(self.values, self.compute_dtype), rows)


class Embeddings(Block):
    """The way in: token ids to vectors, with positions and token types where the spec has them."""

    def __init__(self, spec: EmbeddingSpec, norm: NormSpec, hidden_size: int) -> None:
        super().__init__()
        self.token = table(spec.vocabulary, spec.size)
        self.position: Any = None
        if spec.positions:
            rows = spec.positions + spec.position_offset
            width = hidden_size if spec.tokens_projected else spec.size
            self.position = Sinusoids(spec) if spec.sinusoids else table(rows, width)
        self.token_projection = linear(spec.size, hidden_size, bias=False) if spec.tokens_projected else None
        self.token_type = table(spec.token_types, spec.size) if spec.token_types else None
        self.task_type = table(spec.task_types, spec.size) if spec.task_types else None
        self.beside = Beside(spec) if spec.beside else None
        self.joined_projection = linear(spec.size + spec.beside_size, spec.size) if spec.beside else None
        self.norm = make_norm(hidden_size if spec.projected_first else spec.size, norm) if spec.norm else None
        self.dropout = keras.layers.Dropout(spec.dropout)
        self.projection = linear(spec.size, hidden_size, not spec.projected_first) if spec.projected else None
        self.projected_first = spec.projected_first
        self.scale, self.scales_given, self.padding_id = spec.scale, spec.scales_given, spec.padding_id
        self.padding_row = spec.position_offset - 1 if spec.positions_skip_padding else None
        self.norm_before_positions = spec.norm_before_positions

    def call(
        self, ids: Any, vectors: Any = None, position_rows: Any = None, token_type_ids: Any = None, beside: Any = None
    ) -> Any:
        """(r, t) ids, or (r, t, h) vectors in their place, to (r, t, h)."""
        scales = self.scale != 1.0 and (vectors is None or self.scales_given)
        vectors = _untrained(self.token(ids), ids, self.padding_id) if vectors is None else vectors
        vectors = vectors * tf.cast(self.scale, vectors.dtype) if scales else vectors
        x = vectors if self.token_projection is None else self.token_projection(vectors)
        if self.beside is not None and self.joined_projection is not None:
            x = self.joined_projection(self.beside(vectors, ids=beside or {}))
        if self.task_type is not None:
            x = x + self.task_type(tf.zeros([1, 1], tf.int32))
        if self.token_type is not None:
            x = x + self.token_type(tf.zeros([1, 1], tf.int32) if token_type_ids is None else token_type_ids)
        if self.norm is not None and self.norm_before_positions:
            x = self.norm(x)
        if self.position is not None:
            x = x + _untrained(self.position(position_rows), position_rows, self.padding_row)
        if self.projection is not None and self.projected_first:
            x = self.projection(x)
        x = self.dropout(x if self.norm is None or self.norm_before_positions else self.norm(x))
        return x if self.projection is None or self.projected_first else self.projection(x)


class Beside(Block):
    """Vectors (r, t, h) and, beside each, its row of every table, the first without ids: (r, t, h and their sizes)."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__()
        self._tables = [name for name, _, _ in spec.beside]
        for name, rows, size in spec.beside:
            setattr(self, name, table(rows, size))
        self._padding_id = spec.padding_id

    def call(self, x: Any, ids: Mapping[str, Any]) -> Any:
        first, parts = tf.zeros([1, 1], tf.int32), [x]
        for name in self._tables:
            rows = ids.get(name, first)
            row = _untrained(getattr(self, name)(rows), rows, self._padding_id)
            parts.append(row if name in ids else tf.tile(row, [size_of(x, 0), size_of(x, 1), 1]))
        return tf.concat(parts, -1)


def _untrained(vectors: Any, rows: Any, padding: int | None) -> Any:
    """The same vectors; the one that stands for padding gets no gradient."""
    return vectors if padding is None else tf.where((rows == padding)[..., None], tf.stop_gradient(vectors), vectors)


class Head(Block):
    """From hidden states (r, t, h) to logits (r, t, vocabulary)."""

    def __init__(self, stack: StackSpec, tokens: Any) -> None:
        super().__init__()
        spec, size = stack.head, stack.head_width
        assert spec is not None
        self.activation = check_activation(spec.transform) if spec.transform else None
        self.dense = linear(stack.hidden_size, size, spec.transform_bias) if spec.transform else None
        self.norm = make_norm(size, stack.norm) if spec.transform and spec.transform_norm else None
        self.output_layer = Output(
            tokens if spec.tied else None, size, stack.embedding.vocabulary, spec.bias, spec.fixed_bias
        )
        self.soft_cap, self.scale = spec.soft_cap, spec.scale

    def call(self, x: Any) -> Any:
        flat = tf.reshape(x, [-1, x.shape[-1]])
        if self.activation is not None and self.dense is not None:
            flat = ACTIVATIONS[self.activation](self.dense(flat))
        flat = flat if self.norm is None else self.norm(flat)
        logits = self.output_layer(flat if self.scale == 1.0 else flat * tf.cast(self.scale, flat.dtype))
        logits = logits if self.soft_cap is None else capped(logits, self.soft_cap)
        return tf.reshape(logits, [-1, size_of(x, 1), logits.shape[1]])
