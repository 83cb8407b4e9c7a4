"""One block of a transformer, built by its spec.

Shapes: r rows, t length, h hidden size.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from warmstart.flax.attention import Attention
from warmstart.flax.cache import LayerCache, Pair
from warmstart.flax.disentangled import Rows
from warmstart.flax.elements import ACTIVATIONS, Linear, make_norm, normal
from warmstart.spec import StackSpec


class MLP(nn.Module):
    """One hidden layer; where it is gated, the activation of one projection multiplies the other (Shazeer 2020)."""

    stack: StackSpec
    dtype: Any = jnp.float32

    def setup(self) -> None:
        stack, spec = self.stack, self.stack.mlp
        dense = partial(Linear, dtype=self.dtype, use_bias=spec.bias)
        start = normal(stack.initializer_range)
        self.gate = dense(spec.size, kernel_init=start) if spec.gated else None
        self.up = dense(spec.size, kernel_init=start)
        self.down = dense(stack.hidden_size, kernel_init=normal(stack.initial_deviation("mlp.down.weight")))
        self.dropout = nn.Dropout(spec.dropout)

    def __call__(self, x: Array, train: bool = False) -> Array:
        activation = ACTIVATIONS[self.stack.mlp.activation]
        inner = activation(self.up(x)) if self.gate is None else activation(self.gate(x)) * self.up(x)
        return self.down(self.dropout(inner, deterministic=not train))


class Layer(nn.Module):
    """One block: self-attention, cross-attention where the stack has it, MLP, each with its residual and norms.

    In a parallel block the MLP reads the block's input; cross-attention reads what self-attention gave, as elsewhere.
    `shared` is a layer of another stack whose self-attention, MLP and norms are this one's too.
    """

    stack: StackSpec
    layer: int
    dtype: Any = jnp.float32
    shared: Any = None

    def setup(self) -> None:
        spec, shared, norm = self.stack, self.shared, self.stack.norm

        def made(wanted: bool) -> Any:
            return make_norm(norm, self.dtype) if wanted else None

        if shared is None:
            self.attention = Attention(spec, self.layer, False, self.dtype)
            self.attention_norm = made(norm.main and (norm.first or self.layer > 0))
            self.attention_output_norm = made(norm.output)
        else:
            self.own_attention, self.own_attention_norm = shared.attention, shared.attention_norm
        if spec.cross_attention is not None:
            self.cross_attention = Attention(spec, self.layer, True, self.dtype)
            self.cross_attention_norm, self.cross_attention_output_norm = made(norm.main), made(norm.output)
        if shared is None:
            self.mlp = MLP(spec, self.dtype)
            self.mlp_norm, self.mlp_output_norm = made(norm.main and not norm.shared), made(norm.output)
        self.dropout = nn.Dropout(spec.dropout)

    def __call__(
        self,
        x: Array,
        allowed: Array | None = None,
        rotation: Pair | None = None,
        source: Array | None = None,
        source_allowed: Array | None = None,
        cache: LayerCache | None = None,
        length: Array | None = None,
        train: bool = False,
        bias: Array | None = None,
        distances: Rows | None = None,
        reach: Array | None = None,
    ) -> tuple[Array, Array, Array | None, LayerCache | None]:
        """(r, t, h) to (r, t, h), the weights of self-attention and of cross-attention, and the cache."""
        own = self if self.shared is None else self.shared
        before, h = x, self._before(x, own.attention_norm)
        more = (cache, length, train, bias, distances, reach)
        y, weights, cache = own.attention(h, None, allowed, rotation, *more)
        x = self._after(x, y, own.attention_norm, own.attention_output_norm, train)
        cross_weights = None
        if self.stack.cross_attention is not None and (
            source is not None or (cache is not None and cache.source is not None)
        ):
            y = self._before(x, self.cross_attention_norm)
            y, cross_weights, _ = self.cross_attention(y, source, source_allowed, None, cache, None, train)
            x = self._after(x, y, self.cross_attention_norm, self.cross_attention_output_norm, train)
        if not self.stack.parallel:
            h = self._before(x, own.mlp_norm)
        elif own.mlp_norm is not None:  # else it reads what self-attention read
            h = self._before(before, own.mlp_norm)
        y = own.mlp(h, train)
        return self._after(x, y, own.mlp_norm, own.mlp_output_norm, train), weights, cross_weights, cache

    def _before(self, x: Array, norm: Any) -> Array:
        return norm(x) if self.stack.norm.before and norm is not None else x

    def _after(self, x: Array, y: Array, norm: Any, output_norm: Any, train: bool) -> Array:
        y = self.dropout(y if output_norm is None else output_norm(y), deterministic=not train)
        scale = self.stack.residual_scale
        x = x + (y if scale == 1.0 else y * jnp.asarray(scale, self.dtype))
        return x if self.stack.norm.before or norm is None else norm(x)
