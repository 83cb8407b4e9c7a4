"""The two ends of a stack, each built by its spec: token ids to vectors, hidden states to logits.

Shapes: r rows, t length, h hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from warmstart.flax.elements import ACTIVATIONS, Linear, capped, from_left, make_norm, normal
from warmstart.positions import sinusoids
from warmstart.spec import StackSpec


class Embeddings(nn.Module):
    """The way in: token ids to vectors, with positions and token types where the spec has them.

    `tokens` is a stack whose table of token embeddings is this one's too.
    """

    stack: StackSpec
    dtype: Any = jnp.float32
    tokens: Any = None

    def setup(self) -> None:
        spec, deviation = self.stack.embedding, self.stack.initializer_range
        table = partial(nn.Embed, features=spec.size, dtype=self.dtype)
        starts = {
            name: normal(deviation, spec.zero_rows().get(f"embeddings.{name}.weight")) for name in ("token", "position")
        }
        if self.tokens is None:
            self.token = table(spec.vocabulary, embedding_init=starts["token"])
        self.position: Any = None
        if spec.positions and not spec.sinusoids:
            rows, width = spec.positions + spec.position_offset, self.stack.hidden_size
            width = width if spec.tokens_projected else spec.size
            self.position = table(rows, features=width, embedding_init=starts["position"])
        self.sinusoids = sinusoids(spec) if spec.positions and spec.sinusoids else None  # computed, no parameter
        self.token_type = table(spec.token_types, embedding_init=normal(deviation)) if spec.token_types else None
        self.task_type = table(spec.task_types, embedding_init=normal(deviation)) if spec.task_types else None
        self.beside = Beside(self.stack, self.dtype) if spec.beside else None
        dense = partial(Linear, dtype=self.dtype, kernel_init=normal(deviation))
        self.joined_projection = dense(spec.size) if spec.beside else None
        self.token_projection = dense(self.stack.hidden_size, use_bias=False) if spec.tokens_projected else None
        self.norm = make_norm(self.stack.norm, self.dtype) if spec.norm else None
        self.dropout = nn.Dropout(spec.dropout)
        bias = not spec.projected_first
        self.projection = dense(self.stack.hidden_size, use_bias=bias) if spec.projected else None

    def __call__(
        self,
        ids: Array | None,
        vectors: Array | None,
        position_rows: Array | None,
        token_type_ids: Array | None,
        train: bool = False,
        beside: Mapping[str, Array] | None = None,
    ) -> Array:
        """(r, t) ids, or (r, t, h) vectors in their place, to (r, t, h)."""
        spec, fixed = self.stack.embedding, self.stack.embedding.zero_rows()
        scales = vectors is None or spec.scales_given
        if vectors is None:
            vectors = _looked_up(self.table(), ids, fixed.get("embeddings.token.weight"))
        vectors = vectors * jnp.asarray(spec.scale, self.dtype) if scales else vectors
        x = vectors if self.token_projection is None else self.token_projection(vectors)
        if self.beside is not None and self.joined_projection is not None:
            x = self.joined_projection(self.beside(vectors, beside or {}))
        if self.task_type is not None:
            x = x + self.task_type(jnp.zeros((1, 1), jnp.int32))
        if self.token_type is not None:
            x = x + self.token_type(jnp.zeros((1, 1), jnp.int32) if token_type_ids is None else token_type_ids)
        if self.norm is not None and spec.norm_before_positions:
            x = self.norm(x)
        if self.position is not None:
            x = x + _looked_up(self.position, position_rows, fixed.get("embeddings.position.weight"))
        if self.sinusoids is not None:
            x = x + jnp.asarray(self.sinusoids, x.dtype)[position_rows]
        if self.projection is not None and spec.projected_first:
            x = self.projection(x)
        x = x if self.norm is None or spec.norm_before_positions else self.norm(x)
        x = self.dropout(x, deterministic=not train)
        return x if self.projection is None or spec.projected_first else self.projection(x)

    def table(self) -> Any:
        """The table of token embeddings."""
        return self.token if self.tokens is None else self.tokens.embeddings.token


class Beside(nn.Module):
    """Vectors (r, t, h) and, beside each, its row of every table, the first without ids: (r, t, h and their sizes)."""

    stack: StackSpec
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, ids: Mapping[str, Array]) -> Array:
        spec, deviation = self.stack.embedding, self.stack.initializer_range
        first, parts = jnp.zeros((1, 1), jnp.int32), [x]
        for name, rows, size in spec.beside:
            start = normal(deviation, spec.padding_id)
            table = nn.Embed(rows, size, dtype=self.dtype, embedding_init=start, name=name)
            row = _looked_up(table, ids.get(name, first), spec.padding_id)
            parts.append(jnp.broadcast_to(row, (*x.shape[:2], size)))
        return jnp.concatenate(parts, -1)


def _looked_up(table: Any, ids: Any, fixed: int | None) -> Array:
    """Rows of a table; padding's row, `fixed`, learns nothing from being looked up."""
    rows = table(ids)
    return rows if fixed is None else jnp.where((ids == fixed)[..., None], jax.lax.stop_gradient(rows), rows)


class Head(nn.Module):
    """From hidden states (r, t, h) to logits (r, t, vocabulary); a tied head is given the table of embeddings."""

    stack: StackSpec
    dtype: Any = jnp.float32

    def setup(self) -> None:
        stack, spec = self.stack, self.stack.head
        assert spec is not None
        start = normal(stack.initializer_range)
        if spec.transform:
            self.dense = Linear(stack.head_width, spec.transform_bias, self.dtype, start)
        if spec.transform and spec.transform_norm:
            self.norm = make_norm(stack.norm, self.dtype)
        self.output = Output(
            stack.embedding.vocabulary, spec.bias, spec.tied, stack.initializer_range, self.dtype, spec.fixed_bias
        )

    def __call__(self, x: Array, table: Array) -> Array:
        spec = self.stack.head
        assert spec is not None
        if spec.transform:
            x = ACTIVATIONS[spec.transform](self.dense(x))
            x = self.norm(x) if spec.transform_norm else x
        logits = self.output(x if spec.scale == 1.0 else x * jnp.asarray(spec.scale, self.dtype), table)
        return logits if spec.soft_cap is None else capped(logits, spec.soft_cap)


class Output(nn.Module):
    """The last matrix of a head: its own (h, v), or the table of embeddings (v, h); and a bias (v,) if it has one."""

    vocabulary: int
    bias: bool
    tied: bool
    deviation: float
    dtype: Any = jnp.float32
    fixed: bool = False  # the bias is not trained

    @nn.compact
    def __call__(self, x: Array, table: Array) -> Array:
        x = x.astype(self.dtype)
        if self.tied:
            logits = (
                from_left([table], x) if x.shape[1] == 1 else jnp.einsum("rth,vh->rtv", x, table.astype(self.dtype))
            )
        else:
            kernel = self.param("kernel", normal(self.deviation), (x.shape[-1], self.vocabulary))
            turned: Any = self.get_variable("turned", "kernel")
            logits = x @ kernel.astype(self.dtype) if turned is None else from_left(turned, x)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,)).astype(self.dtype)
            logits = logits + (jax.lax.stop_gradient(bias) if self.fixed else bias)
        return logits
