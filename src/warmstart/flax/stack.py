"""A stack of layers with its embeddings and head: what every model here is made of.

Shapes: r rows, b sources, t new tokens, p tokens in the cache, l its capacity, s source length, h hidden size,
v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from warmstart.flax.cache import KeyValueCache, Pair
from warmstart.flax.disentangled import Convolution, Distances
from warmstart.flax.elements import make_norm, normal
from warmstart.flax.ends import Embeddings, Head
from warmstart.flax.layers import Layer
from warmstart.flax.masks import (
    counted,
    eager,
    leaning,
    leaning_by,
    position_rows,
    reach_of,
    reaching,
    self_mask,
    source_mask,
)
from warmstart.inputs import check_range, check_shape, one_of, refuse_beside, refuse_id, refuse_mask, refuse_type
from warmstart.positions import alibi_slopes, beyond, inverse_frequencies, relative_buckets
from warmstart.spec import BESIDE, RotarySpec, StackSpec


class States(NamedTuple):
    """What a stack computes: `last` (r, t, h), the cache, the states and attentions of each layer if wanted, and with
    a head the logits (r, t, v).
    """

    last: Array
    cache: KeyValueCache | None = None
    hidden: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
    cross_attentions: tuple[Array, ...] | None = None
    logits: Array | None = None


class Layers(nn.Module):
    """The layers, named by their numbers."""

    spec: StackSpec
    dtype: Any = jnp.float32
    remat: bool = False
    shared: Any = None

    def setup(self) -> None:
        kind = nn.remat(Layer, static_argnums=(8,)) if self.remat else Layer
        self.blocks = [
            kind(self.spec, index, self.dtype, None if self.shared is None else self.shared[index], name=str(index))
            for index in range(self.spec.distinct_layers)
        ]

    def __getitem__(self, index: int) -> Any:
        return self.blocks[self.spec.weights_of(index)]


class Stack(nn.Module):
    """Embeddings, layers, a final norm and a head where the spec has them.

    `remat` keeps only each layer's input for the backward pass (Chen et al. 2016). `shared` is a stack whose
    parameters are this one's too, where it has them; `tokens` one whose table of token embeddings is.
    """

    spec: StackSpec
    dtype: Any = jnp.float32
    remat: bool = False
    shared: Any = None
    tokens: Any = None

    def setup(self) -> None:
        spec, shared = self.spec, self.shared
        if shared is None:
            self.embeddings = Embeddings(spec, self.dtype, self.tokens)
        if (relative := spec.attention.relative) is not None and shared is None:
            start = normal(spec.initializer_range)
            self.relative_bias = nn.Embed(
                relative.buckets, spec.attention.heads, embedding_init=start, dtype=self.dtype
            )
        if spec.attention.disentangled is not None and shared is None:
            self.distances = Distances(spec, self.dtype)
        if spec.convolution is not None and shared is None:
            self.convolution = Convolution(spec, self.dtype)
        self.layers = Layers(spec, self.dtype, self.remat, None if shared is None else shared.layers)
        if spec.norm.final and shared is None:
            self.final_norm = make_norm(spec.norm, self.dtype)
        if spec.head is not None:
            self.head = Head(spec, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        inputs_embeds: Array | None = None,
        source: Array | None = None,
        source_attention_mask: Array | None = None,
        cache: KeyValueCache | None = None,
        want_attentions: bool = False,
        want_hidden: bool = False,
        want_logits: bool = True,
        train: bool = False,
        beside: Mapping[str, Array] | None = None,
    ) -> States:
        """Run the stack over ids (r, t) or vectors (r, t, h); `attention_mask` covers all of a cache (r, l).

        `position_ids` (r, t) count from 0, or in RoBERTa, where padding has no position, from the padding id on.
        `beside` are ids (r, t) of the tables that stand beside the tokens', by table.
        """
        spec, own = self.spec, self if self.shared is None else self.shared
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None
        tokens = given.shape[1]
        past = 0 if cache is None else cache.length
        rows = None
        if spec.embedding.positions and position_ids is None:
            rows = position_rows(input_ids, attention_mask, tokens, past, spec.causal, spec.embedding)
        elif spec.embedding.positions:
            rows = jnp.asarray(position_ids) + spec.embedding.first_row
        x = own.embeddings(input_ids, inputs_embeds, rows, token_type_ids, train, beside)
        rotations = self._rotations(position_ids, attention_mask, tokens, past)
        masks = {
            window: self_mask(attention_mask, tokens, cache, spec.causal, window)
            for window in set(spec.attention.windows or (None,))
        }
        reach = reach_of(attention_mask) if spec.attention.global_tokens else None
        if spec.attention.global_tokens and self.is_initializing():  # parameters are made by what is called
            reach = jnp.ones((1, tokens), jnp.int32)
        if reach is not None:
            masks = {window: reaching(mask, reach) for window, mask in masks.items()}
        bias = None
        if spec.attention.alibi:
            slopes = jnp.asarray(alibi_slopes(spec.attention.heads) * spec.attention.alibi, self.dtype)
            bias = leaning(slopes, tokens, cache)
        if spec.attention.relative is not None:
            bias = leaning_by(own.relative_bias, relative_buckets(spec.attention.relative), tokens, cache)
        distances = own.distances(tokens) if spec.attention.disentangled is not None else None
        source_seen, embedded = source_mask(source_attention_mask), x
        hidden, attentions, cross_attentions, caches = [], [], [], []
        for index in range(spec.layers):
            hidden += [x] if want_hidden else []
            held = None if cache is None else cache.layers[index]
            before, mask = x, masks[spec.attention.window(index)]
            x, weights, cross_weights, new = self.layers[index](
                x, mask, rotations[index], source, source_seen, held, past, train, bias, distances, reach
            )
            if train and spec.layer_drop:  # skipped afterwards: a gradient for every parameter
                x = jnp.where(jax.random.uniform(self.make_rng("dropout")) < spec.layer_drop, before, x)
            if index == 0 and spec.convolution is not None:
                x = own.convolution(embedded, x, attention_mask, train)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
            caches.append(new)
        if spec.norm.final:
            x = own.final_norm(x)
        logits = None
        if spec.head is not None and want_logits:
            logits = self.head(x, own.embeddings.table().embedding)
        if cache is not None:
            cache = cache._replace(layers=tuple(caches), length=cache.length + tokens)
        has_cross = want_attentions and cross_attentions[:1] != [None]
        return States(
            last=x,
            cache=cache,
            hidden=(*hidden, x) if want_hidden else None,
            attentions=tuple(attentions) if want_attentions else None,
            cross_attentions=tuple(cross_attentions) if has_cross else None,
            logits=logits,
        )

    def with_source(self, cache: KeyValueCache, source: Array) -> KeyValueCache:
        """The cache with the keys and values of a source (b, s, h) in every layer: made once, for all its rows."""
        layers = [
            held._replace(source=self.layers[index].cross_attention.source_pair(source))
            for index, held in enumerate(cache.layers)
        ]
        return cache._replace(layers=tuple(layers))

    def _rotations(
        self, position_ids: Array | None, attention_mask: Array | None, tokens: int, past: Array | int
    ) -> list[Pair | None]:
        """For each layer cosine and sine of each position (r or 1, 1, t, rotated size), computed in fp32."""
        attention = self.spec.attention
        made: dict[RotarySpec | None, Pair] = {}
        for rotary in attention.rotary_kinds():
            frequencies: Any
            frequencies, factor = inverse_frequencies(rotary)
            if (longer := beyond(rotary)) is not None:
                length = past + tokens
                frequencies = jnp.where(
                    length > longer.trained, longer.at(jnp.maximum(length, longer.trained)), frequencies
                )
            positions = counted(attention_mask, tokens, past) if position_ids is None else position_ids
            angles = positions[:, None, :, None].astype(jnp.float32) * frequencies
            angles = jnp.repeat(angles, 2, -1) if rotary.interleaved else jnp.concatenate((angles, angles), -1)
            made[rotary] = (jnp.cos(angles) * factor).astype(self.dtype), (jnp.sin(angles) * factor).astype(self.dtype)
        if not attention.rotaries:
            return [made.get(attention.rotary)] * self.spec.layers
        return [made.get(rotary) for rotary in attention.rotaries]


def check_input(
    spec: StackSpec,
    ids: Any,
    vectors: Any,
    attention_mask: Any,
    cache: KeyValueCache | None = None,
    position_ids: Any = None,
    token_type_ids: Any = None,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Check what a stack is given, before anything is traced; values only where looking costs nothing.

    Raises:
        TypeError: it is no array; ValueError: shapes, ids or masks do not fit the stack.
    """
    given = one_of(ids, vectors)
    check_array(given, f"the {spec.family} stack's input")
    past = int(cache.length) if cache is not None and eager(cache.length) else 0
    check_shape(spec, tuple(given.shape), ids is not None, past)
    rows, length = given.shape[0], given.shape[1]
    if cache is not None and past + length > cache.capacity:
        raise ValueError(
            f"{past} cached and {length} new tokens are more than the cache has room for, {cache.capacity}; give "
            "init_cache a larger max_length"
        )
    if attention_mask is not None:
        check_mask(attention_mask, rows, 0 if cache is None else cache.capacity - length, length)
    embedding, beside = spec.embedding, beside or {}
    for name, size, _ in embedding.beside:
        if name in beside:
            check_beside(beside[name], size, BESIDE[name], (rows, length))
    if embedding.positions:
        rows = embedding.positions + embedding.position_offset - embedding.first_row
        check_rows(position_ids, rows, "position_ids")
    if embedding.token_types:
        check_rows(token_type_ids, embedding.token_types, "token_type_ids")
    if ids is not None:
        check_ids(ids, embedding.vocabulary, spec.family)


def check_array(value: Any, what: str) -> None:
    """Refuse what is no array.

    Raises:
        TypeError: it is something else, a list of ids say.
    """
    if not isinstance(value, (np.ndarray, Array)):
        raise TypeError(
            f"{what} is a {type(value).__name__}; give an array of numpy or JAX (tokenizer(..., return_tensors='np'))"
        )


def check_mask(mask: Any, rows: int, past: int, length: int) -> None:
    """Refuse a mask that does not fit its tokens.

    Raises:
        ValueError: it has another number of rows or columns.
    """
    check_array(mask, "attention_mask")
    fits = mask.ndim == 3 or (mask.ndim == 2 and mask.shape[1] == past + length)
    if not fits or mask.shape[0] not in (1, rows):
        refuse_mask(tuple(mask.shape), rows, past, length)


def check_rows(ids: Any, rows: int, name: str) -> None:
    """Refuse ids of token types or positions that have no row in their table, where looking costs nothing.

    Raises:
        ValueError: names the id, and how many rows there are.
    """
    if ids is None or not eager(ids) or ids.size == 0:
        return
    check_range(int(np.min(ids)), int(np.max(ids)), rows, name)


def beside_of(given: Mapping[str, Any], specs: Mapping[str, StackSpec]) -> list[dict[str, Any]]:
    """For each stack the ids of its tables beside the tokens', from arguments with the key of the stack before them.

    Raises:
        TypeError: an argument is none of these; ValueError: a stack has no such tables.
    """
    known = [prefix + name for prefix in specs for name in BESIDE.values()]
    if unknown := given.keys() - set(known):
        raise TypeError(f"unknown arguments {sorted(unknown)}; beside those that all families take there are {known}")
    names = BESIDE.values()
    return [spec.beside({name: given.get(prefix + name) for name in names}) for prefix, spec in specs.items()]


def check_beside(ids: Any, rows: int, name: str, shape: tuple[int, int]) -> None:
    """Refuse ids of a table beside the tokens' that are not one for each token, or that have no row.

    Raises:
        TypeError: they are no array.
        ValueError: names the shape, or the id.
    """
    check_array(ids, name)
    if tuple(ids.shape) != shape:
        refuse_beside(tuple(ids.shape), shape, name)
    check_rows(ids, rows, name)


def check_ids(ids: Any, vocabulary: int, family: str) -> None:
    """Refuse ids outside the vocabulary, where looking costs nothing."""
    if ids.dtype.kind not in "iu":
        refuse_type(ids.dtype, family)
    if not eager(ids):
        return
    values = np.asarray(ids)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        row, column = (int(x[0]) for x in np.nonzero(values == wrong))
        refuse_id(wrong, row, column, family, vocabulary)
