"""One block of a transformer, built by its spec.

The tokens of all rows stand in one axis, so that a dense layer is one plain product of matrices.

Shapes: r rows, t length, h hidden size.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from warmstart.spec import MLPSpec, StackSpec
from warmstart.tf.attention import Attention, Source
from warmstart.tf.cache import LayerCache
from warmstart.tf.disentangled import Rows
from warmstart.tf.elements import ACTIVATIONS, Block, check_activation, linear, make_norm


class MLP(Block):
    """One hidden layer; where it is gated, the activation of one projection multiplies the other (Shazeer 2020)."""

    def __init__(self, spec: MLPSpec, hidden_size: int) -> None:
        super().__init__()
        self.gate = linear(hidden_size, spec.size, spec.bias) if spec.gated else None
        self.up = linear(hidden_size, spec.size, spec.bias)
        self.down = linear(spec.size, hidden_size, spec.bias)
        self.activation = check_activation(spec.activation)
        self.dropout = keras.layers.Dropout(spec.dropout)

    def call(self, x: Any) -> Any:
        activation = ACTIVATIONS[self.activation]
        inner = activation(self.up(x)) if self.gate is None else activation(self.gate(x)) * self.up(x)
        return self.down(self.dropout(inner))


class TransformerLayer(Block):
    """One block: self-attention, cross-attention where the stack has it, MLP, each with its residual and norms.

    In a parallel block the MLP reads the block's input; cross-attention reads what self-attention gave, as elsewhere.
    """

    def __init__(self, spec: StackSpec, layer: int) -> None:
        super().__init__()
        size, norm = spec.hidden_size, spec.norm
        self.norm_before, self.parallel, self.residual_scale = norm.before, spec.parallel, spec.residual_scale

        def made(wanted: bool) -> Any:
            return make_norm(size, norm) if wanted else None

        self.attention = Attention(spec.attention, layer, size, None, norm)
        self.attention_norm = made(norm.main and (norm.first or layer > 0))
        self.attention_output_norm = made(norm.output)
        self.cross_attention: Attention | None = None
        self.cross_attention_norm: Any = None
        self.cross_attention_output_norm: Any = None
        if spec.cross_attention is not None:
            self.cross_attention = Attention(spec.cross_attention, layer, size, spec.cross_attention_size, norm)
            self.cross_attention_norm, self.cross_attention_output_norm = made(norm.main), made(norm.output)
        self.mlp = MLP(spec.mlp, size)
        self.mlp_norm, self.mlp_output_norm = made(norm.main and not norm.shared), made(norm.output)
        self.dropout = keras.layers.Dropout(spec.dropout)

    def call(
        self,
        x: Any,
        length: Any,
        allowed: Any = None,
        rotation: Any = None,
        source: Source | None = None,
        source_allowed: Any = None,
        cache: LayerCache | None = None,
        at: Any = 0,
        bias: Any = None,
        distances: Rows | None = None,
        reach: Any = None,
    ) -> tuple[Any, Any, Any]:
        """(r * t, h) to (r * t, h), with the weights of self-attention and of cross-attention."""
        before, h = x, self._before(x, self.attention_norm)
        own = {"rotation": rotation, "cache": cache, "at": at, "bias": bias, "distances": distances}
        own |= {"reach": reach}
        y, weights = self.attention(h, length=length, allowed=allowed, **own)
        x = self._after(x, y, self.attention_norm, self.attention_output_norm)
        cross_weights = None
        if self.cross_attention is not None and (
            source is not None or (cache is not None and cache.source is not None)
        ):
            y = self._before(x, self.cross_attention_norm)
            y, cross_weights = self.cross_attention(
                y, length=length, source=source, allowed=source_allowed, cache=cache
            )
            x = self._after(x, y, self.cross_attention_norm, self.cross_attention_output_norm)
        if not self.parallel:
            h = self._before(x, self.mlp_norm)
        elif self.mlp_norm is not None:  # else it reads what self-attention read
            h = self._before(before, self.mlp_norm)
        return self._after(x, self.mlp(h), self.mlp_norm, self.mlp_output_norm), weights, cross_weights

    def _before(self, x: Any, norm: Any) -> Any:
        return norm(x) if self.norm_before and norm is not None else x

    def _after(self, x: Any, y: Any, norm: Any, output_norm: Any) -> Any:
        y = self.dropout(y if output_norm is None else output_norm(y))
        x = x + (y if self.residual_scale == 1.0 else y * tf.cast(self.residual_scale, y.dtype))
        return x if self.norm_before or norm is None else norm(x)
