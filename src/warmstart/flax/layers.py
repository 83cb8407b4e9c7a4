"""The layers of a transformer block, each built by its spec.

Shapes: r rows, b sources (r = b * beams), t target length, s source length, h hidden size, n heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from warmstart.flax.cache import LayerCache, Pair
from warmstart.spec import NormSpec, StackSpec, sinusoids

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
        return make_rms_norm(spec, dtype)
    return nn.LayerNorm(spec.epsilon, dtype=dtype, use_bias=spec.bias, use_fast_variance=False)


def make_rms_norm(spec: NormSpec, dtype: Any) -> Any:
    """A root mean square norm, of the form that the stack's norms have."""
    return (RMSNormFromOne if spec.from_one else RMSNorm)(spec.epsilon, dtype)


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


def rotate(x: Array, rotation: Pair) -> Array:
    """Turn the first numbers of each head (r, n, t, d) by cosine and sine (r or 1, 1, t, rotated size)."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    turned = x[..., :size]
    left, right = jnp.split(turned, 2, -1)
    turned = turned * cosine + jnp.concatenate((-right, left), -1) * sine
    return jnp.concatenate((turned, x[..., size:]), -1) if size < x.shape[-1] else turned


def rotate_neighbours(x: Array, rotation: Pair) -> Array:
    """As `rotate`, where neighbours turn together: numbers 0 and 1, 2 and 3, and so on."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    turned = x[..., :size]
    crossed = jnp.stack((-turned[..., 1::2], turned[..., ::2]), -1).reshape(turned.shape)
    turned = turned * cosine + crossed * sine
    return jnp.concatenate((turned, x[..., size:]), -1) if size < x.shape[-1] else turned


def attend(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | None,
    scale: float,
    dropout: float = 0.0,
    rng: Array | None = None,
    soft_cap: float | None = None,
    bias: Array | None = None,
) -> tuple[Array, Array]:
    """Attention of queries (r, n, t, d) over keys and values (b, m, s, d); heads n may share m, and rows r share b.

    `allowed` (r, b or 1, 1, t or 1, s) is True where a query may see; `bias` (1, n, t, s) is added to scores. Gives
    (r, t, n * d) and the weights (r, n, t, s).
    """
    rows, heads, length, size = query.shape
    sources, shared_heads, keys, _ = key.shape
    beams, group = rows // sources, heads // shared_heads
    # The rows of a source and the heads that share a key stand side by side on the query axis: no key is copied.
    split = (sources, beams, shared_heads, group, length)
    query = query.reshape(*split, size).transpose(0, 2, 3, 1, 4, 5).reshape(sources, shared_heads, -1, size)
    scores = jnp.einsum("bmqd,bmsd->bmqs", query, key) * scale
    scores = scores if soft_cap is None else capped(scores, soft_cap)
    scores = scores.reshape(sources, shared_heads, group, beams, length, keys)
    if bias is not None:
        scores = scores + bias.reshape(-1, shared_heads, group, 1, *bias.shape[2:])
    if allowed is not None:
        allowed = allowed.reshape(
            -1 if allowed.shape[0] != rows else sources, 1, 1, max(allowed.shape[0] // sources, 1), *allowed.shape[2:]
        )
        scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores.astype(jnp.float32), -1).astype(query.dtype)
    if rng is not None and dropout > 0:
        kept = jax.random.bernoulli(rng, 1 - dropout, weights.shape)
        weights = jnp.where(kept, weights / (1 - dropout), 0.0)
    out = jnp.einsum("bmqs,bmsd->bmqd", weights.reshape(sources, shared_heads, -1, keys), value)
    out = out.reshape(sources, shared_heads, group, beams, length, size).transpose(0, 3, 4, 1, 2, 5)
    weights = weights.transpose(0, 3, 1, 2, 4, 5).reshape(rows, heads, length, keys)
    return out.reshape(rows, length, heads * size), weights


def capped(x: Array, cap: float) -> Array:
    """Numbers between -cap and cap: a soft cap (Gemma 2, section 2)."""
    return jnp.tanh(x / cap) * cap


class Attention(nn.Module):
    """Attention with heads, over the stack's own tokens or over a source."""

    stack: StackSpec
    layer: int
    is_cross: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        stack = self.stack
        spec = stack.cross_attention if self.is_cross else stack.attention
        assert spec is not None
        # Pruning takes heads out of self-attention only, as in the files.
        heads, shared = (spec.heads, spec.key_value_heads) if self.is_cross else spec.heads_of(self.layer)
        self.spec, size = spec, spec.head_size
        dense = partial(Linear, dtype=self.dtype, use_bias=spec.bias, kernel_init=normal(stack.initializer_range))
        self.query, self.key, self.value = dense(heads * size), dense(shared * size), dense(shared * size)
        self.output = Linear(
            stack.hidden_size,
            dtype=self.dtype,
            use_bias=spec.output_bias,
            kernel_init=normal(stack.initial_deviation("attention.output.weight")),
        )
        has_norm = spec.head_norm or spec.whole_norm
        self.query_norm = make_rms_norm(stack.norm, self.dtype) if has_norm else None
        self.key_norm = make_rms_norm(stack.norm, self.dtype) if has_norm else None
        kinds = spec.rotary_kinds()
        self.rotate = rotate_neighbours if kinds and kinds[0].interleaved else rotate

    def __call__(
        self,
        x: Array,
        source: Array | None = None,
        allowed: Array | None = None,
        rotation: Pair | None = None,
        cache: LayerCache | None = None,
        length: Array | None = None,
        train: bool = False,
        bias: Array | None = None,
    ) -> tuple[Array, Array, LayerCache | None]:
        """(r, t, h) to (r, t, h), the weights, and the cache, which held `length` tokens, with what is new in it."""
        query = self._heads(self.query(x), self.query_norm)
        if rotation is not None:
            query = self.rotate(query, rotation)
        if self.is_cross:
            key, value = self.source_pair(source) if cache is None or cache.source is None else cache.source
        else:
            key, value = self._heads(self.key(x), self.key_norm), self._heads(self.value(x), None)
            if rotation is not None:
                key = self.rotate(key, rotation)
            if cache is not None:
                assert length is not None
                cache = cache.appended(key, value, length)
                key, value = cache.keys, cache.values
        rng = self.make_rng("dropout") if train and self.spec.dropout > 0 else None
        spec = self.spec
        scale = spec.scale(self.layer)
        out, weights = attend(query, key, value, allowed, scale, spec.dropout, rng, spec.soft_cap, bias)
        return self.output(out), weights, cache

    def source_pair(self, source: Any) -> Pair:
        """The source's keys and values (b, n, s, d), which no step changes."""
        return self._heads(self.key(source), self.key_norm), self._heads(self.value(source), None)

    def _heads(self, x: Array, norm: Any) -> Array:
        if self.spec.whole_norm and norm is not None:
            x, norm = norm(x), None
        x = x.reshape(*x.shape[:2], -1, self.spec.head_size)
        return (x if norm is None else norm(x)).swapaxes(1, 2)


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
    ) -> tuple[Array, Array, Array | None, LayerCache | None]:
        """(r, t, h) to (r, t, h), the weights of self-attention and of cross-attention, and the cache."""
        own = self if self.shared is None else self.shared
        before, h = x, self._before(x, own.attention_norm)
        y, weights, cache = own.attention(h, None, allowed, rotation, cache, length, train, bias)
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
        x = x + self.dropout(y if output_norm is None else output_norm(y), deterministic=not train)
        return x if self.stack.norm.before or norm is None else norm(x)


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
        rows, start = spec.positions + spec.position_offset, starts["position"]
        self.position = table(rows, embedding_init=start) if spec.positions and not spec.sinusoids else None
        self.sinusoids = sinusoids(spec) if spec.positions and spec.sinusoids else None  # computed, no parameter
        self.token_type = table(spec.token_types, embedding_init=normal(deviation)) if spec.token_types else None
        self.task_type = table(spec.task_types, embedding_init=normal(deviation)) if spec.task_types else None
        self.beside = Beside(self.stack, self.dtype) if spec.beside else None
        dense = partial(Linear, dtype=self.dtype, kernel_init=normal(deviation))
        self.joined_projection = dense(spec.size) if spec.beside else None
        self.norm = make_norm(self.stack.norm, self.dtype) if spec.norm else None
        self.dropout = nn.Dropout(spec.dropout)
        self.projection = dense(self.stack.hidden_size) if spec.projected else None

    def __call__(
        self,
        ids: Array | None,
        vectors: Array | None,
        position_rows: Array | None,
        token_type_ids: Array | None,
        train: bool = False,
    ) -> Array:
        """(r, t) ids, or (r, t, h) vectors in their place, to (r, t, h)."""
        spec, fixed = self.stack.embedding, self.stack.embedding.zero_rows()
        if vectors is None:
            vectors = _looked_up(self.table(), ids, fixed.get("embeddings.token.weight"))
            vectors = vectors * jnp.asarray(spec.scale, self.dtype)
        x = vectors
        if self.beside is not None and self.joined_projection is not None:
            x = self.joined_projection(self.beside(vectors))
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
        x = x if self.norm is None or spec.norm_before_positions else self.norm(x)
        x = self.dropout(x, deterministic=not train)
        return x if self.projection is None else self.projection(x)

    def table(self) -> Any:
        """The table of token embeddings."""
        return self.token if self.tokens is None else self.tokens.embeddings.token


class Beside(nn.Module):
    """Tables whose row 0 stands beside every token's vector (r, t, h): (r, t, h and their sizes)."""

    stack: StackSpec
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        spec, deviation = self.stack.embedding, self.stack.initializer_range
        first, parts = jnp.zeros((1, 1), jnp.int32), [x]
        for name, rows, size in spec.beside:
            start = normal(deviation, spec.padding_id)
            table = nn.Embed(rows, size, dtype=self.dtype, embedding_init=start, name=name)
            row = _looked_up(table, first, spec.padding_id)
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
            self.norm = make_norm(stack.norm, self.dtype)
        self.output = Output(
            stack.embedding.vocabulary, spec.bias, spec.tied, stack.initializer_range, self.dtype, spec.fixed_bias
        )

    def __call__(self, x: Array, table: Array) -> Array:
        spec = self.stack.head
        assert spec is not None
        if spec.transform:
            x = self.norm(ACTIVATIONS[spec.transform](self.dense(x)))
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


def normal(deviation: float, zero_row: int | None = None) -> Any:
    """Normal values; one row, that of padding, may start at zero."""

    def values(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        drawn = jax.random.normal(key, shape, dtype) * deviation
        return drawn if zero_row is None else drawn.at[zero_row].set(0.0)

    return values
