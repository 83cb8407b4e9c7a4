"""The small parts of a layer: activations, norms, dense layers, first values.

Shapes: r rows, t length, i and o the widths that a matrix takes and gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from warmstart.spec import NormSpec

ACTIVATIONS: dict[str, Any] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_python": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_fast": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "linear": lambda x: x,
}


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019), computed in fp32 whatever the type."""

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return jnp.asarray(scale, self.dtype) * y.astype(self.dtype)


class RMSNormFromOne(nn.Module):
    """A root mean square norm whose weight is what is added to 1 (Gemma)."""

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * (1 + scale.astype(jnp.float32))).astype(self.dtype)


def make_norm(spec: NormSpec, dtype: Any) -> Any:
    """The norm that a spec asks for, over the last axis."""
    if spec.kind == "rms":
        return (RMSNormFromOne if spec.from_one else RMSNorm)(spec.epsilon, dtype)
    return nn.LayerNorm(spec.epsilon, dtype=dtype, use_bias=spec.bias, use_fast_variance=False)


class HeadNorms(nn.Module):
    """A norm for each head of x (..., heads, size): the first is called `head_0_norm`, and so on."""

    heads: int
    spec: NormSpec
    dtype: Any = jnp.float32

    def setup(self) -> None:
        for head in range(self.heads):
            setattr(self, f"head_{head}_norm", make_norm(replace(self.spec, bias=False), self.dtype))

    def __call__(self, x: Array) -> Array:
        norms = [getattr(self, f"head_{head}_norm") for head in range(self.heads)]
        return jnp.stack([norm(x[..., head, :]) for head, norm in enumerate(norms)], -2)


class Linear(nn.Module):
    """A dense layer, `nn.Dense` with one thing more: a search may bring its matrix turned, (out, in), as `turned`.

    A token at a time the product is bound by reading the matrix; on processors it is read twice as fast where it stands
    on the left and lies so, and in two pieces, which two cores read at once.
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        turned: Any = self.get_variable("turned", "kernel")
        x = x.astype(self.dtype)
        y = x @ kernel.astype(self.dtype) if turned is None else from_left(turned, x)
        return (
            y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype) if self.use_bias else y
        )


def from_left(pieces: Sequence[Array], x: Array) -> Array:
    """The product of a matrix in pieces (o, i) with x (r, t, i), the matrix on the left: (r, t, o of all)."""
    flat = x.reshape(-1, x.shape[-1])
    parts = [jax.lax.dot_general(piece.astype(x.dtype), flat, (((1,), (1,)), ((), ()))) for piece in pieces]
    return jnp.concatenate(parts).T.reshape(*x.shape[:-1], -1)


def capped(x: Array, cap: float) -> Array:
    """Numbers between -cap and cap: a soft cap (Gemma 2, section 2)."""
    return jnp.tanh(x / cap) * cap


def normal(deviation: float, zero_row: int | None = None) -> Any:
    """Normal values; one row, that of padding, may start at zero."""

    def values(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        drawn = jax.random.normal(key, shape, dtype) * deviation
        return drawn if zero_row is None else drawn.at[zero_row].set(0.0)

    return values
