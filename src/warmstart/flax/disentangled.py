"""What DeBERTa has beside the common block: scores by distance and content, and a convolution.

Shapes: r rows, t length, h hidden size, n heads, d head size, p rows of the table of distances.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from warmstart.flax.elements import ACTIVATIONS, Linear, make_norm, normal
from warmstart.positions import disentangled_rows
from warmstart.spec import StackSpec

Rows = tuple[Array, Array]  # the table of distances (p, h), and the row of each query and key (t, t)


class Distances(nn.Module):
    """The table of distances, which all layers read."""

    stack: StackSpec
    dtype: Any = jnp.float32

    def setup(self) -> None:
        spec, start = self.stack.attention.disentangled, normal(self.stack.initializer_range)
        assert spec is not None
        self.spec = spec
        self.table = nn.Embed(2 * spec.span, self.stack.hidden_size, embedding_init=start, dtype=self.dtype)
        self.norm = make_norm(self.stack.norm, self.dtype) if spec.norm else None

    def __call__(self, length: int) -> Rows:
        table, most = self.table(jnp.arange(2 * self.spec.span)), self.spec.distance
        place = jnp.arange(length)
        rows = jnp.asarray(disentangled_rows(self.spec))[jnp.clip(place - place[:, None], -most, most) + most]
        return (table if self.norm is None else self.norm(table)), rows


class Disentangled(nn.Module):
    """What distances add to the scores of a layer (He et al. 2021, equation 4)."""

    stack: StackSpec
    heads: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        spec = self.stack.attention.disentangled
        assert spec is not None
        self.spec, size = spec, self.heads * self.stack.attention.head_size
        dense = partial(Linear, size, dtype=self.dtype, kernel_init=normal(self.stack.initializer_range))
        self.query = dense() if spec.position_to_content and not spec.shared else None
        self.key = dense() if spec.content_to_position and not spec.shared else None
        self.dropout = nn.Dropout(spec.dropout)

    def __call__(
        self, query: Array, key: Array, distances: Rows, query_matrix: Any, key_matrix: Any, train: bool = False
    ) -> Array:
        """(r, n, t, t) for queries and keys (r, n, t, d); the matrices are the layer's own, for where they are shared.

        The matrices meet the table, which is short, not each pair of tokens; what pairs need is then looked up.
        """
        table, rows = self.dropout(distances[0], deterministic=not train), distances[1][None, None]
        bias = jnp.zeros((), query.dtype)
        if self.spec.content_to_position:
            scores = query @ self._heads((self.key or key_matrix)(table)).mT
            bias = bias + jnp.take_along_axis(scores, rows, -1)
        if self.spec.position_to_content:
            scores = key @ self._heads((self.query or query_matrix)(table)).mT
            bias = bias + jnp.take_along_axis(scores, rows.mT, -1).mT
        return bias

    def _heads(self, x: Array) -> Array:
        return x.reshape(len(x), -1, self.stack.attention.head_size).swapaxes(0, 1)


class Convolution(nn.Module):
    """A convolution over the embeddings, whose activation is added to what the first layer gives."""

    stack: StackSpec
    dtype: Any = jnp.float32

    def setup(self) -> None:
        stack, spec = self.stack, self.stack.convolution
        assert spec is not None
        start = normal(stack.initializer_range)
        self.conv = nn.Conv(stack.hidden_size, (spec.width,), dtype=self.dtype, kernel_init=start)
        self.norm = make_norm(stack.norm, self.dtype)
        self.dropout = nn.Dropout(stack.dropout)
        self.activation = spec.activation

    def __call__(self, embedded: Array, x: Array, attention_mask: Array | None, train: bool = False) -> Array:
        """The embeddings and what the first layer makes of them, (r, t, h) each, to (r, t, h); padding is no token."""
        if attention_mask is not None:
            seen = attention_mask.astype(bool)
            seen = seen.any(1) if seen.ndim == 3 else seen
            embedded = embedded * seen[..., None].astype(embedded.dtype)
        y = self.dropout(self.conv(embedded), deterministic=not train)
        return self.norm(x + ACTIVATIONS[self.activation](y))
