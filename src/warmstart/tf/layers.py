"""The layers of a transformer block, each built by its spec, with all their weights, as soon as it is made.

Inside a block the tokens of all rows stand in one axis, so that a dense layer is one plain product of matrices.

Shapes: r rows, b sources (r = b * beams), t target length, s source length, h hidden size, n heads, d head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from warmstart.spec import AttentionSpec, EmbeddingSpec, MLPSpec, NormSpec, StackSpec, sinusoids
from warmstart.tf.cache import LayerCache

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
        return make_rms_norm(size, spec)
    layer = keras.layers.LayerNormalization(epsilon=spec.epsilon, center=spec.bias)
    layer.build((None, size))
    return layer


def make_rms_norm(size: int, spec: NormSpec) -> RMSNorm:
    """A root mean square norm, of the form that the stack's norms have."""
    return (RMSNormFromOne if spec.from_one else RMSNorm)(size, spec.epsilon)


def rotate(x: Any, rotation: tuple[Any, Any]) -> Any:
    """Turn the first numbers of each head (r, n, t, d) by cosine and sine (r or 1, 1, t, rotated size)."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    turned = x[..., :size]
    left, right = tf.split(turned, 2, -1)
    turned = turned * cosine + tf.concat([-right, left], -1) * sine
    return tf.concat([turned, x[..., size:]], -1) if size < x.shape[-1] else turned


def rotate_neighbours(x: Any, rotation: tuple[Any, Any]) -> Any:
    """As `rotate`, where neighbours turn together: numbers 0 and 1, 2 and 3, and so on."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    turned = x[..., :size]
    crossed = tf.reshape(tf.stack([-turned[..., 1::2], turned[..., ::2]], -1), tf.shape(turned))
    turned = turned * cosine + crossed * sine
    return tf.concat([turned, x[..., size:]], -1) if size < x.shape[-1] else turned


def attend(
    query: Any,
    key: Any,
    value: Any,
    allowed: Any,
    scale: float,
    dropout: Any = None,
    shared: int | None = None,
    soft_cap: float | None = None,
    bias: Any = None,
    is_turned: bool = False,
) -> tuple[Any, Any]:
    """Attention of queries (r, n, t, d) over keys and values (b, m, s, d); heads n may share m, and rows r share b.

    Keys may be turned, (b, m, d, s): what is read at every step is read faster so.
    `allowed` (r or b or 1, 1, t or 1, s) is True where a query may look, or None; `bias` (1, n, t, s) is added to
    scores. Gives (r, n, t, d) and the weights (r, n, t, s).
    """
    heads, length, size = query.shape[1], size_of(query, 2), query.shape[3]
    if shared is None:
        shared = size_of(query, 0) // size_of(key, 0)
    beams = not (isinstance(shared, int) and shared == 1)
    if beams:  # the beams of a source stand one after another on the query axis: no key is copied
        query = tf.reshape(query, [-1, shared, heads, length, size])
        query = tf.reshape(tf.transpose(query, [0, 2, 1, 3, 4]), [-1, heads, shared * length, size])
    if key.shape[1] != heads:
        key, value = (tf.repeat(x, heads // x.shape[1], 1) for x in (key, value))
    scores = tf.matmul(query, key, transpose_b=not is_turned) * tf.cast(scale, query.dtype)
    scores = scores if soft_cap is None else capped(scores, soft_cap)
    scores = scores if bias is None else scores + bias
    if allowed is not None:
        scores = tf.where(allowed, scores, scores.dtype.min)
    weights = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32), -1), scores.dtype)
    if dropout is not None:
        weights = dropout(weights)
    out = tf.matmul(weights, value)
    if beams:
        out, weights = (
            tf.reshape(
                tf.transpose(tf.reshape(x, [-1, heads, shared, length, size_of(x, 3)]), [0, 2, 1, 3, 4]),
                [-1, heads, length, size_of(x, 3)],
            )
            for x in (out, weights)
        )
    return out, weights


def capped(x: Any, cap: float) -> Any:
    """Numbers between -cap and cap: a soft cap (Gemma 2, section 2)."""
    return tf.tanh(x / cap) * cap


@dataclass(frozen=True)
class Source:
    """What cross-attention reads: states (b * s, h), and s."""

    states: Any
    length: Any


class Attention(Block):
    """Attention with heads, over the stack's own tokens or over a source of width `source_size`."""

    def __init__(
        self, spec: AttentionSpec, layer: int, hidden_size: int, source_size: int | None, norm: NormSpec
    ) -> None:
        super().__init__()
        # Pruning takes heads out of self-attention only, as in the files.
        heads, key_value_heads = spec.heads_of(layer) if source_size is None else (spec.heads, spec.key_value_heads)
        width = source_size or hidden_size
        self.head_size, self.scale = spec.head_size, spec.scale(layer)
        self.soft_cap, self.whole_norm = spec.soft_cap, spec.whole_norm
        kinds = spec.rotary_kinds()
        self.rotate = rotate_neighbours if kinds and kinds[0].interleaved else rotate
        self.is_cross = source_size is not None
        self.query = linear(hidden_size, heads * spec.head_size, spec.bias)
        self.key = linear(width, key_value_heads * spec.head_size, spec.bias)
        self.value = linear(width, key_value_heads * spec.head_size, spec.bias)
        self.output_layer = linear(heads * spec.head_size, hidden_size, spec.output_bias)
        sizes = (heads * spec.head_size, key_value_heads * spec.head_size) if spec.whole_norm else (spec.head_size,) * 2
        has_norm = spec.head_norm or spec.whole_norm
        self.query_norm, self.key_norm = (make_rms_norm(size, norm) if has_norm else None for size in sizes)
        self.dropout = keras.layers.Dropout(spec.dropout) if spec.dropout else None

    def call(
        self,
        x: Any,
        length: Any = 1,
        source: Source | None = None,
        allowed: Any = None,
        rotation: Any = None,
        cache: LayerCache | None = None,
        at: Any = 0,
        bias: Any = None,
    ) -> tuple[Any, Any]:
        """(r * t, h) to (r * t, h), with the weights (r, n, t, s)."""
        query = self._heads(self.query(x), length, self.query_norm)
        if rotation is not None:
            query = self.rotate(query, rotation)
        if self.is_cross:
            key, value = self.source_pair(source, cache)
        else:
            key, value = self._own_pair(x, length, rotation, cache, at)
        shared = cache.shared if self.is_cross and cache is not None else None if self.is_cross else 1
        out, weights = attend(
            query, key, value, allowed, self.scale, self.dropout, shared, self.soft_cap, bias, is_turned=self.is_cross
        )
        out = tf.transpose(out, [0, 2, 1, 3])
        return self.output_layer(tf.reshape(out, [-1, out.shape[2] * out.shape[3]])), weights

    def _own_pair(self, x: Any, length: Any, rotation: Any, cache: LayerCache | None, at: Any) -> tuple[Any, Any]:
        key, value = self._heads(self.key(x), length, self.key_norm), self._heads(self.value(x), length, None)
        if rotation is not None:
            key = self.rotate(key, rotation)
        return (key, value) if cache is None else cache.append(key, value, at)

    def source_pair(self, source: Source | None, cache: LayerCache | None) -> tuple[Any, Any]:
        """The source's keys, turned (b, n, d, s), and values (b, n, s, d): made once, then kept."""
        if cache is not None and cache.source is not None:
            return cache.source
        assert source is not None
        states, length = source.states, source.length
        key = self._heads(self.key(states), length, self.key_norm)
        pair = tf.transpose(key, [0, 1, 3, 2]), self._heads(self.value(states), length, None)
        if cache is not None:
            cache.source = pair
        return pair

    def _heads(self, x: Any, length: Any, norm: Any) -> Any:
        if self.whole_norm and norm is not None:
            x, norm = norm(x), None
        x = tf.reshape(x, [-1, length, x.shape[1] // self.head_size, self.head_size])
        return tf.transpose(x if norm is None else norm(x), [0, 2, 1, 3])


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
        self.norm_before, self.parallel = norm.before, spec.parallel

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
    ) -> tuple[Any, Any, Any]:
        """(r * t, h) to (r * t, h), with the weights of self-attention and of cross-attention."""
        before, h = x, self._before(x, self.attention_norm)
        y, weights = self.attention(h, length=length, allowed=allowed, rotation=rotation, cache=cache, at=at, bias=bias)
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
        x = x + self.dropout(y if output_norm is None else output_norm(y))
        return x if self.norm_before or norm is None else norm(x)


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
            self.position = Sinusoids(spec) if spec.sinusoids else table(rows, spec.size)
        self.token_type = table(spec.token_types, spec.size) if spec.token_types else None
        self.task_type = table(spec.task_types, spec.size) if spec.task_types else None
        self.beside = Beside(spec) if spec.beside else None
        self.joined_projection = linear(spec.size + spec.beside_size, spec.size) if spec.beside else None
        self.norm = make_norm(spec.size, norm) if spec.norm else None
        self.dropout = keras.layers.Dropout(spec.dropout)
        self.projection = linear(spec.size, hidden_size) if spec.projected else None
        self.scale, self.padding_id = spec.scale, spec.padding_id
        self.padding_row = spec.position_offset - 1 if spec.positions_skip_padding else None
        self.norm_before_positions = spec.norm_before_positions

    def call(self, ids: Any, vectors: Any = None, position_rows: Any = None, token_type_ids: Any = None) -> Any:
        """(r, t) ids, or (r, t, h) vectors in their place, to (r, t, h)."""
        if vectors is None:
            vectors = _untrained(self.token(ids), ids, self.padding_id)
            vectors = vectors if self.scale == 1.0 else vectors * tf.cast(self.scale, vectors.dtype)
        x = vectors
        if self.beside is not None and self.joined_projection is not None:
            x = self.joined_projection(self.beside(vectors))
        if self.task_type is not None:
            x = x + self.task_type(tf.zeros([1, 1], tf.int32))
        if self.token_type is not None:
            x = x + self.token_type(tf.zeros([1, 1], tf.int32) if token_type_ids is None else token_type_ids)
        if self.norm is not None and self.norm_before_positions:
            x = self.norm(x)
        if self.position is not None:
            x = x + _untrained(self.position(position_rows), position_rows, self.padding_row)
        x = self.dropout(x if self.norm is None or self.norm_before_positions else self.norm(x))
        return x if self.projection is None else self.projection(x)


class Beside(Block):
    """Tables whose row 0 stands beside every token's vector (r, t, h): (r, t, h and their sizes)."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__()
        self._tables = [name for name, _, _ in spec.beside]
        for name, rows, size in spec.beside:
            setattr(self, name, table(rows, size))
        self._padding_id = spec.padding_id

    def call(self, x: Any) -> Any:
        first, parts = tf.zeros([1, 1], tf.int32), [x]
        for name in self._tables:
            row = _untrained(getattr(self, name)(first), first, self._padding_id)
            parts.append(tf.tile(row, [size_of(x, 0), size_of(x, 1), 1]))
        return tf.concat(parts, -1)


def _untrained(vectors: Any, rows: Any, padding: int | None) -> Any:
    """The same vectors; the one that stands for padding gets no gradient."""
    return vectors if padding is None else tf.where((rows == padding)[..., None], tf.stop_gradient(vectors), vectors)


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


class Head(Block):
    """From hidden states (r, t, h) to logits (r, t, vocabulary)."""

    def __init__(self, stack: StackSpec, tokens: Any) -> None:
        super().__init__()
        spec, size = stack.head, stack.head_width
        assert spec is not None
        self.activation = check_activation(spec.transform) if spec.transform else None
        self.dense = linear(stack.hidden_size, size, spec.transform_bias) if spec.transform else None
        self.norm = make_norm(size, stack.norm) if spec.transform else None
        self.output_layer = Output(
            tokens if spec.tied else None, size, stack.embedding.vocabulary, spec.bias, spec.fixed_bias
        )
        self.soft_cap, self.scale = spec.soft_cap, spec.scale

    def call(self, x: Any) -> Any:
        flat = tf.reshape(x, [-1, x.shape[-1]])
        if self.activation is not None and self.dense is not None and self.norm is not None:
            flat = self.norm(ACTIVATIONS[self.activation](self.dense(flat)))
        logits = self.output_layer(flat if self.scale == 1.0 else flat * tf.cast(self.scale, flat.dtype))
        logits = logits if self.soft_cap is None else capped(logits, self.soft_cap)
        return tf.reshape(logits, [-1, size_of(x, 1), logits.shape[1]])
