"""The small parts of a layer: activations, norms, dense layers, tables, with their weights as soon as they are made.

Shapes: r rows, i and o the widths that a matrix takes and gives, h hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf

from warmstart.spec import NormSpec

ACTIVATIONS = {
    "gelu": lambda x: tf.nn.gelu(x, approximate=False),
    "gelu_python": lambda x: tf.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: tf.nn.gelu(x, approximate=True),
    "gelu_fast": lambda x: tf.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: tf.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * tf.sigmoid(1.702 * x),
    "relu": tf.nn.relu,
    "relu2": lambda x: tf.square(tf.nn.relu(x)),
    "silu": tf.nn.silu,
    "swish": tf.nn.silu,
    "mish": lambda x: x * tf.tanh(tf.nn.softplus(x)),
    "tanh": tf.tanh,
    "sigmoid": tf.sigmoid,
    "linear": lambda x: x,
}


def check_activation(name: str) -> str:
    """The name of an activation, if it is known."""
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not supported; use one of {', '.join(sorted(ACTIVATIONS))}")
    return name


def size_of(x: Any, axis: int) -> Any:
    """A size as a number where the shape is known, else as a scalar tensor."""
    known = x.shape[axis]
    return tf.shape(x)[axis] if known is None else known


class Block(keras.layers.Layer):
    """A layer that has its weights once it is made: nothing is left to `build`."""

    def __init__(self) -> None:
        super().__init__()
        self.built = True


_turned: ContextVar[dict[int, list[Any]] | None] = ContextVar("turned", default=None)


class Linear(keras.layers.Dense):
    """A dense layer, with one thing more: inside `turned` its matrix is read as it was laid out anew, (out, in).

    A token at a time the product is bound by reading the matrix; XLA on a processor reads it faster where it stands on
    the left and lies so, and in two pieces, which two cores read at once.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        pieces = (_turned.get() or {}).get(id(self))
        if pieces is None:
            return super().call(inputs, training)
        y = _from_left(pieces, inputs)
        return y if self.bias is None else y + tf.convert_to_tensor(self.bias)


def _from_left(pieces: list[Any], x: Any) -> Any:
    """The product of a matrix in pieces (o, i) with x (r, i), the matrix on the left: (r, o of all)."""
    return tf.transpose(tf.concat([tf.matmul(piece, x, transpose_b=True) for piece in pieces], 0))


@contextmanager
def turned(layers: Iterable[keras.layers.Layer]) -> Iterator[None]:
    """Inside it, the dense layers in these multiply with their matrices on the left, which are turned now, once."""
    found = {}
    for layer in (x for holder in layers for x in holder._flatten_layers()):
        if isinstance(layer, Output):  # it lies so already
            found[id(layer)] = [tf.cast(tf.convert_to_tensor(layer.weight), layer.compute_dtype)]
        elif isinstance(layer, Linear):
            matrix = tf.cast(tf.convert_to_tensor(layer.kernel), layer.compute_dtype)
            halves = tf.split(matrix, 2, 1) if matrix.shape[1] % 2 == 0 else [matrix]
            found[id(layer)] = [tf.transpose(half) for half in halves]
    token = _turned.set(found)
    try:
        yield
    finally:
        _turned.reset(token)


def linear(inputs: int, outputs: int, bias: bool = True) -> Linear:
    """A dense layer of zeros, (inputs, outputs); values are given by name later."""
    layer = Linear(outputs, use_bias=bias, kernel_initializer="zeros")
    layer.build((None, inputs))
    return layer


def table(rows: int, size: int) -> keras.layers.Embedding:
    """An embedding table of zeros; values are given by name later."""
    layer = keras.layers.Embedding(rows, size, embeddings_initializer="zeros")
    layer.build()
    return layer


class Output(Block):
    """The vocabulary's matrix (v, h), an embedding table's own where it is tied, and a bias."""

    def __init__(
        self, tied: keras.layers.Embedding | None, size: int, vocabulary: int, bias: bool, fixed_bias: bool = False
    ) -> None:
        super().__init__()
        self.tied = tied
        self.own = self.add_weight(shape=(vocabulary, size), initializer="zeros", name="weight") if not tied else None
        self.bias: Any = None
        if bias:
            self.bias = self.add_weight((vocabulary,), initializer="zeros", trainable=not fixed_bias, name="bias")

    @property
    def weight(self) -> keras.Variable:
        """The matrix."""
        return self.own if self.tied is None else self.tied._embeddings

    def call(self, x: Any) -> Any:
        """(any, h) to (any, v)."""
        pieces = (_turned.get() or {}).get(id(self))
        if pieces is None:
            logits = tf.matmul(x, tf.cast(tf.convert_to_tensor(self.weight), x.dtype), transpose_b=True)
        else:
            logits = _from_left(pieces, x)
        return logits if self.bias is None else logits + tf.convert_to_tensor(self.bias)


class RMSNorm(Block):
    """Root mean square norm (Zhang & Sennrich 2019), computed in fp32 whatever the weights' type."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = self.add_weight(shape=(size,), initializer="ones", name="weight")
        self.epsilon = epsilon

    def call(self, x: Any) -> Any:
        y = tf.cast(x, tf.float32)
        y = y * tf.math.rsqrt(tf.reduce_mean(tf.square(y), -1, keepdims=True) + self.epsilon)
        return tf.convert_to_tensor(self.weight) * tf.cast(y, x.dtype)


class RMSNormFromOne(RMSNorm):
    """A root mean square norm whose weight is what is added to 1 (Gemma)."""

    def call(self, x: Any) -> Any:
        y = tf.cast(x, tf.float32)
        y = y * tf.math.rsqrt(tf.reduce_mean(tf.square(y), -1, keepdims=True) + self.epsilon)
        return tf.cast(y * (1 + tf.cast(tf.convert_to_tensor(self.weight), tf.float32)), x.dtype)


def make_norm(size: int, spec: NormSpec) -> keras.layers.Layer:
    """The norm that a spec asks for, over the last `size` numbers."""
    if spec.kind == "rms":
        return (RMSNormFromOne if spec.from_one else RMSNorm)(size, spec.epsilon)
    layer = keras.layers.LayerNormalization(epsilon=spec.epsilon, center=spec.bias)
    layer.build((None, size))
    return layer


class HeadNorms(Block):
    """A norm for each head of x (..., heads, size): the first is called `head_0_norm`, and so on."""

    def __init__(self, heads: int, size: int, spec: NormSpec) -> None:
        super().__init__()
        self._heads = heads
        for head in range(heads):
            setattr(self, f"head_{head}_norm", make_norm(size, replace(spec, bias=False)))

    def call(self, x: Any) -> Any:
        norms = [getattr(self, f"head_{head}_norm") for head in range(self._heads)]
        return tf.stack([norm(x[..., head, :]) for head, norm in enumerate(norms)], -2)


def capped(x: Any, cap: float) -> Any:
    """Numbers between -cap and cap: a soft cap (Gemma 2, section 2)."""
    return tf.tanh(x / cap) * cap
