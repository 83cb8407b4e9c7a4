"""A stack of layers with its embeddings: what every model here is made of.

Shapes: r rows, b sources, t new tokens, p tokens in the cache, s source length, h hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from warmstart.inputs import check_range, check_shape, one_of, refuse_beside, refuse_id, refuse_mask, refuse_type
from warmstart.positions import alibi_slopes, beyond, inverse_frequencies, relative_buckets
from warmstart.spec import BESIDE, StackSpec
from warmstart.torch.attention import Mask
from warmstart.torch.cache import KeyValueCache
from warmstart.torch.disentangled import Convolution, Distances
from warmstart.torch.elements import make_norm
from warmstart.torch.ends import Embeddings
from warmstart.torch.layers import Layer
from warmstart.torch.masks import (
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
from warmstart.torch.packed import packing_of
from warmstart.torch.pretrained import PreTrainedModel
from warmstart.torch.spared import spared


@dataclass
class States:
    """What a stack computes: `last` (r, t, h), the cache, and the states and attentions of each layer if wanted."""

    last: Tensor
    cache: KeyValueCache | None = None
    hidden: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


class Stack(PreTrainedModel):
    """Embeddings, layers, and a final norm where the spec has one."""

    spec: StackSpec
    frequencies: Tensor

    def build_stack(self, spec: StackSpec) -> None:
        """Make the modules that a spec asks for."""
        self.spec = spec
        self.embeddings = Embeddings(spec.embedding, spec.norm, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec, layer) for layer in range(spec.distinct_layers))
        relative = spec.attention.relative
        self.relative_bias = nn.Embedding(relative.buckets, spec.attention.heads) if relative else None
        apart, conv = spec.attention.disentangled, spec.convolution
        self.distances = Distances(apart, spec.hidden_size, spec.norm) if apart else None
        self.convolution = Convolution(conv, spec.hidden_size, spec.norm, spec.dropout) if conv else None
        self.final_norm = make_norm(spec.hidden_size, spec.norm) if spec.norm.final else None
        self.checkpoint_layers = False
        self.rotary_kinds, self.rotation_factors = spec.attention.rotary_kinds(), []
        for kind, rotary in enumerate(self.rotary_kinds):
            frequencies, factor = inverse_frequencies(rotary)
            self.rotation_factors.append(factor)
            # Computed, not loaded: it must be real even where the parameters are made without memory.
            self.register_buffer(_frequencies(kind), torch.tensor(frequencies, device="cpu"), persistent=False)
        rotaries = spec.attention.rotaries or (spec.attention.rotary,) * spec.layers
        self.kind_of_layer = [None if x is None else self.rotary_kinds.index(x) for x in rotaries]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stack:
        """Move or cast as any module; but rotary frequencies stay exact in fp32, and real where memory is only made."""
        super()._apply(fn, recurse)
        for kind, rotary in enumerate(self.rotary_kinds):
            held = getattr(self, _frequencies(kind))
            place = "cpu" if held.is_meta else held.device
            setattr(self, _frequencies(kind), torch.tensor(inverse_frequencies(rotary)[0], device=place))
        return self

    def states(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        source: Tensor | None = None,
        source_attention_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        want_attentions: bool = False,
        want_hidden: bool = False,
        packed: bool = False,
        beside: Mapping[str, Tensor] | None = None,
    ) -> States:
        """Run the stack over ids (r, t) or vectors (r, t, h); `attention_mask` covers the cache too, (r, p + t).

        With `packed`, padding takes no part in what is computed where that can be, and its states are 0. `beside` are
        ids (r, t) of the tables that stand beside the tokens', by table.
        """
        spec = self.spec
        shape = self._check(input_ids, inputs_embeds, attention_mask, cache)
        check_rows(token_type_ids, self.embeddings.token_type, "token_type_ids")
        check_rows(position_ids, self.embeddings.position, "position_ids")
        for name, ids in (beside or {}).items():
            check_beside(ids, self.embeddings.beside[name], BESIDE[name], shape)  # type: ignore[index]
        past = cache.length if cache is not None else 0
        if position_ids is None and self.embeddings.position is not None:
            position_ids = position_rows(input_ids, attention_mask, shape, past, spec.causal, spec.embedding)
            position_ids = position_ids.to(self.embeddings.position.weight.device)
        packing, beside = None, beside or {}
        if packed and cache is None and not (want_attentions or want_hidden) and self.is_plain():
            packing = packing_of(spec, shape, attention_mask, source, source_attention_mask)
        if packing is not None:
            position_ids = counted(attention_mask, shape, 0) if position_ids is None else position_ids
            given = input_ids, token_type_ids, position_ids, inputs_embeds
            input_ids, token_type_ids, position_ids, inputs_embeds = map(packing.own.pack, given)
            beside = {name: packing.own.pack(ids) for name, ids in beside.items()}
            source = None if packing.source is None else packing.source.pack(source)
        x = self.embeddings(input_ids, inputs_embeds, position_ids, token_type_ids, beside)
        rotations = self._rotations(x, position_ids, attention_mask, shape, past)
        reach = reach_of(attention_mask) if spec.attention.global_tokens else None
        masks = self._masks(None if packing else attention_mask, shape[1], past, x)
        source_seen = source_mask(source_attention_mask)
        if packing is not None:
            masks = {window: replace(mask, counts=packing.counts[0]) for window, mask in masks.items()}
            source_seen = Mask(counts=packing.counts[1])
        distances = None if self.distances is None else self.distances(shape[1])
        embedded = x
        hidden, attentions, cross_attentions = [], [], []
        with spared(self._may_spare(x)):
            for index, layer in enumerate(self.layers_in_order()):
                hidden += [x] if want_hidden else []
                mask = masks[spec.attention.window(index)]
                layer_cache = cache.layers[index] if cache is not None else None
                before = x
                arguments: tuple[Any, ...] = (x, mask, rotations[index], source, source_seen, layer_cache)
                arguments = (*arguments, want_attentions, distances, reach)
                if self.checkpoint_layers and self.training:
                    x, weights, cross_weights = checkpoint(layer, *arguments, use_reentrant=False)
                else:
                    x, weights, cross_weights = layer(*arguments)
                if self.training and spec.layer_drop:  # skipped afterwards: one graph, a gradient for every parameter
                    x = torch.where(torch.rand((), device=x.device) < spec.layer_drop, before, x)
                if index == 0 and self.convolution is not None:
                    x = self.convolution(embedded, x, attention_mask)
                attentions.append(weights)
                cross_attentions.append(cross_weights)
        if self.final_norm is not None:
            x = self.final_norm(x)
        x = x if packing is None else packing.own.spread(x)
        return States(
            last=x,
            cache=cache,
            hidden=(*hidden, x) if want_hidden else None,
            attentions=tuple(attentions) if want_attentions else None,
            cross_attentions=tuple(cross_attentions) if want_attentions and cross_attentions[:1] != [None] else None,
        )

    def _masks(self, attention_mask: Tensor | None, length: int, past: int, x: Tensor) -> dict[int | None, Mask]:
        """For each window what the new tokens see of each other and of the cache."""
        attention = self.spec.attention
        masks = {
            window: self_mask(attention_mask, length, past, self.spec.causal, window, x.device)
            for window in set(attention.windows or (None,))
        }
        if attention.global_tokens and (reach := reach_of(attention_mask)) is not None:
            masks = {window: reaching(mask, reach) for window, mask in masks.items()}
        if attention.alibi:
            slopes = torch.tensor(alibi_slopes(attention.heads) * attention.alibi, device=x.device)
            masks = {window: leaning(mask, slopes, length, past, x.dtype) for window, mask in masks.items()}
        if self.relative_bias is not None and attention.relative is not None:
            buckets = torch.tensor(relative_buckets(attention.relative), device=x.device)
            masks = {
                window: leaning_by(mask, self.relative_bias, buckets, length, past) for window, mask in masks.items()
            }
        return masks

    def _may_spare(self, x: Tensor) -> bool:
        """Whether a backward pass may make things again: on a processor, and where all weights are there for it.

        Shards of one layer are gone when the next one's gradient is computed (FSDP); a compiler decides for itself.
        """
        return self.training and self.is_plain() and not self.checkpoint_layers and eager(x)

    def is_plain(self) -> bool:
        """Whether the layers are as they were made: in no shards, and not compiled."""
        return all(type(layer) is Layer and layer._compiled_call_impl is None for layer in self.layers)

    def layers_in_order(self) -> list[Any]:
        """The layer that computes each step; one that shares its weights with its neighbours comes several times."""
        return [self.layers[self.spec.weights_of(layer)] for layer in range(self.spec.layers)]

    def new_cache(self) -> KeyValueCache:
        """An empty cache for this stack."""
        return KeyValueCache(self.spec.layers)

    def _rotations(
        self, x: Tensor, position_ids: Tensor | None, attention_mask: Tensor | None, shape: tuple[int, int], past: int
    ) -> list[tuple[Tensor, Tensor] | None]:
        """For each layer cosine and sine of each position (r or 1, 1, t, rotated size), computed in fp32."""
        made: list[tuple[Tensor, Tensor]] = []
        for kind, rotary in enumerate(self.rotary_kinds):
            positions = counted(attention_mask, shape, past) if position_ids is None else position_ids
            frequencies, longer, length = getattr(self, _frequencies(kind)), beyond(rotary), past + shape[1]
            if longer is not None and length > longer.trained:
                frequencies = torch.tensor(longer.at(length))
            angles = positions.to(x.device)[:, None, :, None].float() * frequencies.to(x.device)
            angles = angles.repeat_interleave(2, -1) if rotary.interleaved else torch.cat((angles, angles), -1)
            factor = self.rotation_factors[kind]
            made.append(((angles.cos() * factor).to(x.dtype), (angles.sin() * factor).to(x.dtype)))
        return [None if kind is None else made[kind] for kind in self.kind_of_layer]

    def _check(
        self, ids: Tensor | None, vectors: Tensor | None, attention_mask: Tensor | None, cache: KeyValueCache | None
    ) -> tuple[int, int]:
        """Rows and length of the input, after the checks that cost nothing."""
        spec = self.spec
        given = one_of(ids, vectors)
        check_tensor(given, f"the {spec.family} stack's input")
        past = cache.length if cache is not None else 0
        check_shape(spec, tuple(given.shape), ids is not None, past)
        rows, length = given.shape[0], given.shape[1]
        if attention_mask is not None:
            check_mask(attention_mask, rows, past, length)
        if ids is not None:
            check_ids(ids, spec.embedding.vocabulary, spec.family)
        return rows, length


def _frequencies(kind: int) -> str:
    """The name of the buffer with the frequencies of a kind of rotary positions."""
    return f"frequencies_{kind}" if kind else "frequencies"


def check_tensor(value: Any, what: str) -> None:
    """Refuse what is no tensor.

    Raises:
        TypeError: it is something else, a list of ids say.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} is a {type(value).__name__}; give a tensor (tokenizer(..., return_tensors='pt'))")


def check_mask(mask: Tensor, rows: int, past: int, length: int) -> None:
    """Refuse a mask that does not fit its tokens.

    Raises:
        ValueError: it has another number of rows or columns.
    """
    fits = mask.dim() in (3, 4) or (mask.dim() == 2 and mask.shape[1] == past + length)
    if not fits or (eager(mask) and mask.shape[0] not in (1, rows)):
        refuse_mask(tuple(mask.shape), rows, past, length)


def check_rows(ids: Tensor | None, table: Any, name: str) -> None:
    """Refuse ids of token types or positions that have no row in their table, where looking costs nothing.

    Raises:
        ValueError: names the id, and how many rows there are.
    """
    if ids is None or table is None or not eager(ids) or ids.numel() == 0:
        return
    low, high = (int(x) for x in ids.aminmax())
    check_range(low, high, table.num_embeddings, name)


def check_beside(ids: Any, table: Any, name: str, shape: tuple[int, int]) -> None:
    """Refuse ids of a table beside the tokens' that are not one for each token, or that have no row.

    Raises:
        TypeError: they are no tensor.
        ValueError: names the shape, or the id.
    """
    check_tensor(ids, name)
    if ids.shape != shape:
        refuse_beside(tuple(ids.shape), shape, name)
    check_rows(ids, table, name)


def check_ids(ids: Tensor, vocabulary: int, family: str) -> None:
    """Refuse ids outside the vocabulary, where looking costs nothing."""
    if ids.dtype not in (torch.int64, torch.int32):
        refuse_type(ids.dtype, family)
    if not eager(ids):
        return
    low, high = (int(x) for x in ids.aminmax())
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        row, column = (int(x) for x in (ids == wrong).nonzero()[0])
        refuse_id(wrong, row, column, family, vocabulary)
