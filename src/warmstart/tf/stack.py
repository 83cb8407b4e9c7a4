"""A stack of layers with its embeddings: what every model here is made of.

Shapes: r rows, b sources, t new tokens, p tokens in the cache, c places in it, s source length, h hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from warmstart.inputs import check_shape, one_of, refuse_type
from warmstart.positions import alibi_slopes, beyond, inverse_frequencies, relative_buckets
from warmstart.spec import RotarySpec, StackSpec
from warmstart.tf.attention import Source
from warmstart.tf.cache import KeyValueCache
from warmstart.tf.disentangled import Convolution, Distances
from warmstart.tf.elements import make_norm, size_of, table
from warmstart.tf.ends import Embeddings
from warmstart.tf.inputs import as_beside, as_ids, as_tensor, check_mask, check_rows, check_vocabulary
from warmstart.tf.layers import TransformerLayer
from warmstart.tf.masks import (
    counted,
    leaning,
    leaning_by,
    position_rows,
    reach_of,
    reaching,
    self_mask,
    source_mask,
)
from warmstart.tf.pretrained import PreTrainedModel


@dataclass
class States:
    """What a stack computes: `last` (r, t, h), the cache, and the states and attentions of each layer.

    `logits` (r, v) are those of the last position, where a search has asked for them.
    """

    last: Any
    cache: Any = None
    hidden: Any = None
    attentions: tuple[Any, ...] | None = None
    cross_attentions: tuple[Any, ...] | None = None
    logits: Any = None


class Stack(PreTrainedModel):
    """Embeddings, layers, and a final norm where the spec has one."""

    spec: StackSpec

    def build_stack(self, spec: StackSpec) -> None:
        """Make the layers that a spec asks for."""
        self.spec = spec
        self.embeddings = Embeddings(spec.embedding, spec.norm, spec.hidden_size)
        self.blocks = [TransformerLayer(spec, layer) for layer in range(spec.distinct_layers)]
        relative = spec.attention.relative
        self.relative_bias: Any = table(relative.buckets, spec.attention.heads) if relative else None
        apart, conv = spec.attention.disentangled, spec.convolution
        self.distances = Distances(apart, spec.hidden_size, spec.norm) if apart else None
        self.convolution = Convolution(conv, spec.hidden_size, spec.norm, spec.dropout) if conv else None
        self.final_norm = make_norm(spec.hidden_size, spec.norm) if spec.norm.final else None

    def states(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        source: Any = None,
        source_attention_mask: Any = None,
        cache: KeyValueCache | None = None,
        want_attentions: bool = False,
        want_hidden: bool = False,
        training: bool | None = None,
        beside: Mapping[str, Any] | None = None,
    ) -> States:
        """Run the stack over ids (r, t) or vectors (r, t, h); `attention_mask` covers the cache too, (r, p + t).

        The cache that is given stays as it is; the one that is returned holds the new tokens too. `beside` are ids (r,
        t) of the tables that stand beside the tokens', by table.
        """
        spec, past = self.spec, cache.length if cache is not None else 0
        ids, vectors = as_tensor(input_ids, "input_ids"), self._vectors(inputs_embeds)
        attention_mask = as_tensor(attention_mask, "attention_mask")
        ids, length = self._check(ids, vectors, attention_mask, past, cache)
        rows, kinds = as_ids(position_ids, "position_ids"), as_ids(token_type_ids, "token_type_ids")
        check_rows(kinds, spec.embedding.token_types, "token_type_ids")
        beside = as_beside(beside, spec.embedding, ids if vectors is None else vectors)
        if self.embeddings.position is not None:
            if rows is None:
                rows = position_rows(ids, attention_mask, length, past, spec.causal, spec.embedding)
            else:
                check_rows(rows, self.embeddings.position.input_dim, "position_ids")
        x = self.embeddings(ids, vectors=vectors, position_rows=rows, token_type_ids=kinds, beside=beside)
        rotations = self._rotations(x, rows, attention_mask, length, past)
        masks = {
            window: self_mask(attention_mask, length, cache, spec.causal, window)
            for window in set(spec.attention.windows or (None,))
        }
        reach = reach_of(attention_mask) if spec.attention.global_tokens else None
        if reach is not None:
            masks = {window: reaching(mask, reach) for window, mask in masks.items()}
        bias = None
        if spec.attention.alibi:
            slopes = tf.cast(alibi_slopes(spec.attention.heads) * spec.attention.alibi, x.dtype)
            bias = leaning(slopes, length, cache)
        if self.relative_bias is not None and spec.attention.relative is not None:
            buckets = relative_buckets(spec.attention.relative)
            bias = tf.cast(leaning_by(self.relative_bias, buckets, length, cache), x.dtype)
        seen = source_mask(as_tensor(source_attention_mask, "the source's attention_mask"))
        new_cache = None if cache is None else cache.copied()
        read = None if source is None else flat_source(source)
        distances = None if self.distances is None else self.distances(length=length)
        embedded, x = x, tf.reshape(x, [-1, spec.hidden_size])
        hidden, attentions, cross_attentions = [], [], []
        for index in range(spec.layers):
            layer = self.blocks[spec.weights_of(index)]
            if want_hidden:
                hidden.append(_unflat(x, length))
            layer_cache = None if new_cache is None else new_cache.layers[index]
            before = x
            mask = masks[spec.attention.window(index)]
            x, weights, cross_weights = layer(
                x,
                length=length,
                allowed=mask,
                rotation=rotations[index],
                source=read,
                source_allowed=seen,
                cache=layer_cache,
                at=past,
                bias=bias,
                distances=distances,
                reach=reach,
            )
            if spec.layer_drop and training:  # skipped afterwards: one graph, and a gradient for every parameter
                x = tf.where(tf.random.uniform([]) < spec.layer_drop, before, x)
            if index == 0 and self.convolution is not None:
                x = self.convolution(embedded, x=x, attention_mask=attention_mask)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
        if self.final_norm is not None:
            x = self.final_norm(x)
        x = _unflat(x, length)
        if new_cache is not None:
            new_cache.length = past + length
        return States(
            last=x,
            cache=new_cache,
            hidden=(*hidden, x) if want_hidden else None,
            attentions=tuple(attentions) if want_attentions else None,
            cross_attentions=tuple(cross_attentions) if want_attentions and cross_attentions[:1] != [None] else None,
        )

    def new_cache(self, capacity: int | None = None, shared: int | None = None) -> KeyValueCache:
        """An empty cache for this stack."""
        return KeyValueCache(self.spec.layers, capacity, shared)

    def _vectors(self, vectors: Any) -> Any:
        return None if vectors is None else tf.cast(as_tensor(vectors, "inputs_embeds"), self.compute_dtype)

    def _rotations(self, x: Any, position_ids: Any, attention_mask: Any, length: Any, past: Any) -> list[Any]:
        """For each layer cosine and sine of each position (r or 1, 1, t, rotated size), computed in fp32."""
        attention = self.spec.attention
        made: dict[RotarySpec | None, Any] = {}
        for rotary in attention.rotary_kinds():
            frequencies, factor = inverse_frequencies(rotary)
            if (longer := beyond(rotary)) is not None:
                reached = tf.cast(past + length, tf.float32)
                frequencies = tf.where(
                    reached > longer.trained, longer.at(tf.maximum(reached, longer.trained)), frequencies
                )
            positions = counted(attention_mask, length, past) if position_ids is None else position_ids
            angles = tf.cast(positions, tf.float32)[:, None, :, None] * frequencies
            angles = tf.repeat(angles, 2, -1) if rotary.interleaved else tf.concat([angles, angles], -1)
            made[rotary] = tf.cast(tf.cos(angles) * factor, x.dtype), tf.cast(tf.sin(angles) * factor, x.dtype)
        if not attention.rotaries:
            return [made.get(attention.rotary)] * self.spec.layers
        return [made.get(rotary) for rotary in attention.rotaries]

    def _check(
        self, ids: Any, vectors: Any, attention_mask: Any, past: Any, cache: KeyValueCache | None
    ) -> tuple[Any, Any]:
        """The ids (r, t) as int32 and the length of the input, after the checks that cost nothing."""
        spec = self.spec
        given = one_of(ids, vectors)
        if ids is not None and not ids.dtype.is_integer:
            refuse_type(ids.dtype.name, spec.family)
        check_shape(spec, tuple(given.shape), ids is not None, past if isinstance(past, int) else None)
        length = size_of(given, 1)
        if attention_mask is not None:
            held = cache.capacity - length if cache is not None and cache.capacity is not None else past
            check_mask(attention_mask, size_of(given, 0), held, length)
        if ids is not None:
            check_vocabulary(ids, spec.embedding.vocabulary, spec.family)
        return None if ids is None else tf.cast(ids, tf.int32), length


def flat_source(source: Any) -> Source:
    """Source states (b, s, h) as the layers want them."""
    return Source(tf.reshape(source, [-1, source.shape[-1]]), size_of(source, 1))


def _unflat(x: Any, length: Any) -> Any:
    """(r * t, h) to (r, t, h)."""
    return tf.reshape(x, [-1, length, x.shape[1]])
