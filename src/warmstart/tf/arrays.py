"""The array functions of decoding, for TensorFlow: eager, traced, and compiled by XLA alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


class Array:
    """A tensor whose `shape` holds a scalar tensor where a size is not known before it runs."""

    def __init__(self, value: Any) -> None:
        self.value = tf.convert_to_tensor(value)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Its sizes."""
        known = self.value.shape.as_list()
        if None not in known:
            return tuple(known)
        sizes = tf.shape(self.value)
        return tuple(Array(sizes[axis]) if size is None else size for axis, size in enumerate(known))

    def __int__(self) -> int:
        return int(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)  # inside a graph an error, not what Python says of any object

    def __getitem__(self, key: Any) -> Array:
        keys = key if isinstance(key, tuple) else (key,)
        return Array(self.value[tuple(_plain(k) for k in keys)])

    def __add__(self, other: Any) -> Array:
        return Array(self.value + _like(other, self.value))

    def __radd__(self, other: Any) -> Array:
        return Array(_like(other, self.value) + self.value)

    def __sub__(self, other: Any) -> Array:
        return Array(self.value - _like(other, self.value))

    def __rsub__(self, other: Any) -> Array:
        return Array(_like(other, self.value) - self.value)

    def __mul__(self, other: Any) -> Array:
        return Array(self.value * _like(other, self.value))

    def __rmul__(self, other: Any) -> Array:
        return Array(_like(other, self.value) * self.value)

    def __truediv__(self, other: Any) -> Array:
        return Array(self.value / _like(other, self.value))

    def __floordiv__(self, other: Any) -> Array:
        return Array(self.value // _like(other, self.value))

    def __mod__(self, other: Any) -> Array:
        return Array(self.value % _like(other, self.value))

    def __pow__(self, other: Any) -> Array:
        return Array(tf.pow(self.value, _like(other, self.value)))

    def __rpow__(self, other: Any) -> Array:
        return Array(tf.pow(_like(other, self.value), self.value))

    def __neg__(self) -> Array:
        return Array(-self.value)

    def __lt__(self, other: Any) -> Array:
        return Array(self.value < _like(other, self.value))

    def __le__(self, other: Any) -> Array:
        return Array(self.value <= _like(other, self.value))

    def __gt__(self, other: Any) -> Array:
        return Array(self.value > _like(other, self.value))

    def __ge__(self, other: Any) -> Array:
        return Array(self.value >= _like(other, self.value))

    def __eq__(self, other: object) -> Array:  # type: ignore[override]
        return Array(tf.equal(self.value, _like(other, self.value)))

    def __ne__(self, other: object) -> Array:  # type: ignore[override]
        return Array(tf.not_equal(self.value, _like(other, self.value)))

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: Any) -> Array:
        return Array(self.value & _plain(other))

    def __or__(self, other: Any) -> Array:
        return Array(self.value | _plain(other))

    def __invert__(self) -> Array:
        return Array(~self.value)


class TensorFlowArrays:
    """`warmstart.decoding.arrays.Arrays`: ids are int32, floats float32, arrays are `Array`."""

    def array(self, values: Sequence[Any]) -> Array:
        return Array(tf.constant(values))

    def full(self, shape: tuple[Any, ...], value: bool | int | float) -> Array:
        return Array(tf.fill(_sizes(shape), value))

    def arange(self, stop: Any) -> Array:
        return Array(tf.range(_plain(stop)))

    def reshape(self, x: Array, shape: tuple[Any, ...]) -> Array:
        return Array(tf.reshape(x.value, _sizes(shape)))

    def concat(self, parts: Sequence[Array], axis: int) -> Array:
        return Array(tf.concat([part.value for part in parts], axis))

    def where(self, condition: Array, yes: Any, no: Any) -> Array:
        like = yes if isinstance(yes, Array) else no
        return Array(tf.where(condition.value, _like(yes, like.value), _like(no, like.value)))

    def to_float(self, x: Any) -> Any:
        return Array(tf.cast(x.value, tf.float32)) if isinstance(x, Array) else float(x)

    def any(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        return Array(tf.reduce_any(x.value, axis, keepdims))

    def all(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        return Array(tf.reduce_all(x.value, axis, keepdims))

    def sum(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        value = tf.cast(x.value, tf.int32) if x.value.dtype == tf.bool else x.value
        return Array(tf.reduce_sum(value, axis, keepdims))

    def max(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        return Array(tf.reduce_max(x.value, axis, keepdims))

    def min(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        return Array(tf.reduce_min(x.value, axis, keepdims))

    def argmax(self, x: Array) -> Array:
        return Array(tf.argmax(x.value, -1, output_type=tf.int32))

    def top_k(self, x: Array, k: int) -> tuple[Array, Array]:
        values, indices = tf.math.top_k(x.value, k)
        return Array(values), Array(indices)

    def sort(self, x: Array) -> Array:
        return Array(tf.sort(x.value))

    def cumsum(self, x: Array) -> Array:
        return Array(tf.cumsum(x.value, -1))

    def softmax(self, x: Array) -> Array:
        return Array(tf.nn.softmax(x.value, -1))

    def log_softmax(self, x: Array) -> Array:
        return Array(tf.nn.log_softmax(x.value, -1))

    def take(self, x: Array, index: Array) -> Array:
        return Array(tf.gather(x.value, index.value, axis=1, batch_dims=1))

    def mark(self, tokens: Array, valid: Array, size: int) -> Array:
        # what is not valid goes to a column beyond the vocabulary
        columns = tf.where(valid.value, tokens.value, size)
        rows = tf.broadcast_to(tf.range(tf.shape(columns)[0])[:, None], tf.shape(columns))
        counts = tf.scatter_nd(
            tf.stack([rows, columns], -1), tf.ones_like(columns), tf.stack([tf.shape(columns)[0], size + 1])
        )
        return Array(tf.ensure_shape(counts, [columns.shape[0], size + 1])[:, :size] > 0)


def _plain(x: Any) -> Any:
    return x.value if isinstance(x, Array) else x


def _like(x: Any, tensor: Any) -> Any:
    """The other operand; a number takes the tensor's type, and a large one stays finite."""
    return x.value if isinstance(x, Array) else tf.cast(x, tensor.dtype) if isinstance(x, (int, float)) else x


def _sizes(shape: tuple[Any, ...]) -> Any:
    sizes = [_plain(size) for size in shape]
    return tf.stack(sizes) if any(isinstance(size, tf.Tensor) for size in sizes) else sizes
