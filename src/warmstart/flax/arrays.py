"""The array functions of decoding, for JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


class JaxArrays:
    """`warmstart.decoding.arrays.Arrays`: ids are int32, floats float32; every function may be traced."""

    def array(self, values: Sequence[Any]) -> Array:
        return jnp.asarray(values)

    def full(self, shape: tuple[int, ...], value: bool | int | float) -> Array:
        return jnp.full(shape, value)

    def arange(self, stop: int) -> Array:
        return jnp.arange(stop)

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        return jnp.reshape(x, shape)

    def concat(self, parts: Sequence[Array], axis: int) -> Array:
        return jnp.concatenate(list(parts), axis)

    def where(self, condition: Array, yes: Any, no: Any) -> Array:
        return jnp.where(condition, yes, no)

    def to_float(self, x: Any) -> Any:
        return float(x) if isinstance(x, int) else x.astype(jnp.float32)

    def any(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        return jnp.any(x, axis, keepdims=keepdims)

    def all(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        return jnp.all(x, axis, keepdims=keepdims)

    def sum(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        return jnp.sum(x, axis, keepdims=keepdims)

    def max(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        return jnp.max(x, axis, keepdims=keepdims)

    def min(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        return jnp.min(x, axis, keepdims=keepdims)

    def argmax(self, x: Array) -> Array:
        return jnp.argmax(x, -1)

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        values, indices = jax.lax.top_k(x, k)
        return values, indices

    def sort(self, x: Array) -> Array:
        return jnp.sort(x, -1)

    def cumsum(self, x: Array) -> Array:
        return jnp.cumsum(x, -1)

    def softmax(self, x: Array) -> Array:
        return jax.nn.softmax(x, -1)

    def log_softmax(self, x: Array) -> Array:
        return jax.nn.log_softmax(x, -1)

    def take(self, x: Array, index: Array) -> Array:
        return jnp.take_along_axis(x, index.reshape(*index.shape, *(1 for _ in x.shape[2:])), 1)

    def mark(self, tokens: Array, valid: Array, size: int) -> Array:
        rows = jnp.arange(tokens.shape[0])[:, None]
        # what is not valid is written beyond the last column, where writes are dropped
        marked = jnp.zeros((tokens.shape[0], size), bool)
        return marked.at[rows, jnp.where(valid, tokens, size)].set(True, mode="drop")
