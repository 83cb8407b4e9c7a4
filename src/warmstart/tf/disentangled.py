"""What DeBERTa has beside the common block: scores by distance and content, and a convolution.

The tokens of all rows stand in one axis, so that a dense layer is one plain product of matrices.

Shapes: r rows, t length, h hidden size, n heads, d head size, p rows of the table of distances.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from warmstart.positions import disentangled_rows
from warmstart.spec import AttentionSpec, ConvolutionSpec, DisentangledSpec, NormSpec
from warmstart.tf.elements import ACTIVATIONS, Block, check_activation, linear, make_norm, table

Rows = tuple[Any, Any]  # the table of distances (p, h), and the row of each query and key (t, t)


class Distances(Block):
    """The table of distances, which all layers read."""

    def __init__(self, spec: DisentangledSpec, hidden_size: int, norm: NormSpec) -> None:
        super().__init__()
        self._spec = spec
        self.table = table(2 * spec.span, hidden_size)
        self.norm = make_norm(hidden_size, norm) if spec.norm else None

    def call(self, length: Any) -> Rows:
        vectors, most = self.table(tf.range(2 * self._spec.span)), self._spec.distance
        place = tf.range(length)
        rows = tf.constant(disentangled_rows(self._spec), tf.int32)
        rows = tf.gather(rows, tf.clip_by_value(place - place[:, None], -most, most) + most)
        return (vectors if self.norm is None else self.norm(vectors)), rows


class Disentangled(Block):
    """What distances add to the scores of a layer (He et al. 2021, equation 4)."""

    def __init__(self, spec: AttentionSpec, heads: int, hidden_size: int) -> None:
        super().__init__()
        assert spec.disentangled is not None
        self._spec, self.head_size, size = spec.disentangled, spec.head_size, heads * spec.head_size
        own = not self._spec.shared
        self.query = linear(hidden_size, size) if own and self._spec.position_to_content else None
        self.key = linear(hidden_size, size) if own and self._spec.content_to_position else None
        self.dropout = keras.layers.Dropout(self._spec.dropout)

    def call(self, query: Any, key: Any, distances: Rows, query_matrix: Any, key_matrix: Any) -> Any:
        """(r, n, t, t) for queries and keys (r, n, t, d); the matrices are the layer's own, for where they are shared.

        The matrices meet the table, which is short, not each pair of tokens; what pairs need is then looked up.
        """
        vectors, rows = self.dropout(distances[0]), distances[1]
        bias = tf.zeros([], query.dtype)
        if self._spec.content_to_position:
            scores = tf.matmul(query, self._heads((self.key or key_matrix)(vectors)), transpose_b=True)
            bias = bias + _looked_up(scores, rows)
        if self._spec.position_to_content:
            scores = tf.matmul(key, self._heads((self.query or query_matrix)(vectors)), transpose_b=True)
            bias = bias + tf.transpose(_looked_up(scores, tf.transpose(rows)), [0, 1, 3, 2])
        return bias

    def _heads(self, x: Any) -> Any:
        return tf.transpose(tf.reshape(x, [x.shape[0], x.shape[1] // self.head_size, self.head_size]), [1, 0, 2])[None]


def _looked_up(scores: Any, rows: Any) -> Any:
    """Of scores (r, n, t, p) those of the rows (t, t): (r, n, t, t)."""
    turned = tf.gather(tf.transpose(scores, [2, 3, 0, 1]), rows, batch_dims=1)
    return tf.transpose(turned, [2, 3, 0, 1])


class Convolution(Block):
    """A convolution over the embeddings, whose activation is added to what the first layer gives."""

    def __init__(self, spec: ConvolutionSpec, hidden_size: int, norm: NormSpec, dropout: float) -> None:
        super().__init__()
        self.conv = keras.layers.Conv1D(hidden_size, spec.width, padding="same", kernel_initializer="zeros")
        self.conv.build((None, None, hidden_size))
        self.norm = make_norm(hidden_size, norm)
        self.dropout = keras.layers.Dropout(dropout)
        self.activation = check_activation(spec.activation)

    def call(self, embedded: Any, x: Any, attention_mask: Any = None) -> Any:
        """The embeddings (r, t, h) and what the first layer makes of them (r * t, h) to (r * t, h); padding is none."""
        if attention_mask is not None:
            seen = tf.cast(attention_mask, tf.bool)
            seen = tf.reduce_any(seen, 1) if seen.shape.rank == 3 else seen
            embedded = embedded * tf.cast(seen[..., None], embedded.dtype)
        y = tf.reshape(self.dropout(self.conv(embedded)), tf.shape(x))
        return self.norm(x + ACTIVATIONS[self.activation](y))
