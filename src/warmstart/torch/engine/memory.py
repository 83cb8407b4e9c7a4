"""What the engine's decoder remembers: keys and values of the tokens each row holds, and of the sources.

There are two forms with the same methods: `NativeMemory` for the compiled kernels, where a row's past is a table of the
places in which its tokens lie, so that reordering beams moves no keys; and `TorchMemory` for torch's operators.

Shapes: b sources, r rows (as many for each source), n new tokens, row by row (of each row as many, or not), m key-value
heads, g query heads for each, d head size, s source length, c capacity in tokens.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from warmstart.spec import StackSpec
from warmstart.torch.cache import KeyValueCache
from warmstart.torch.engine import native
from warmstart.torch.engine.pages import fresh, give_back


@dataclass(frozen=True)
class Heads:
    """One attention layer: key-value heads, query heads for each, head size, scale of scores, window (0 is none)."""

    count: int
    group: int
    size: int
    scale: float
    window: int = 0

    @functools.cached_property
    def native(self) -> native.Heads:
        """The same for the kernels."""
        return native.Heads(self.count, self.group, self.size, self.window, self.scale)


def own_heads(spec: StackSpec, layer: int) -> Heads:
    """The self-attention of a layer."""
    heads, shared = spec.attention.heads_of(layer)
    return Heads(
        shared,
        heads // shared,
        spec.attention.head_size,
        spec.attention.scale(layer),
        spec.attention.window(layer) or 0,
    )


def cross_heads(spec: StackSpec, layer: int) -> Heads | None:
    """The cross-attention of a layer."""
    attention = spec.cross_attention
    if attention is None:
        return None
    shared = attention.key_value_heads
    return Heads(shared, attention.heads // shared, attention.head_size, attention.scale(layer))


class Lines:
    """The new tokens of a step: `counts` (r,) of each row, `starts` (r + 1,) where each row's begin, and of each token
    its row and its place there, `rows` and `places` (n,).
    """

    def __init__(self, counts: Tensor, before: Tensor) -> None:
        self.counts = counts
        self.starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        self.rows = torch.arange(len(counts)).repeat_interleave(counts)
        self.inside = torch.arange(len(self.rows)) - self.starts[self.rows]
        self.places = before[self.rows] + self.inside
        self.longest = int(counts.max())
        self.even = len(self.rows) == len(counts) * self.longest

    def squared(self, x: Tensor) -> Tensor:
        """Lines (n, ...) as (r * the longest row's, ...), with 0 where a row has fewer."""
        if self.even:
            return x
        out = x.new_zeros(len(self.counts), self.longest, *x.shape[1:])
        out[self.rows, self.inside] = x
        return out.flatten(0, 1)

    def lined(self, x: Tensor) -> Tensor:
        """What `squared` gave, without what it put in."""
        return x if self.even else x[self.rows * self.longest + self.inside]


class Memory(Protocol):
    """Rows of a decoder, each with as many tokens as `before` says, of which those from `first` on are seen."""

    before: Tensor  # (r,) tokens held
    first: Tensor  # (r,) the first that is seen: what stands before it is padding
    lines: Lines

    def expect(self, counts: Tensor) -> Lines:
        """Begin a step: so many new tokens (r,) of each row. ValueError where there is no room for them."""
        ...

    def own(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Keep new keys and values (n, m * d); attention of queries (n, m * g * d) over each row's tokens."""
        ...

    def source(self, layer: int, query: Tensor) -> Tensor:
        """Attention of queries (n, m * g * d) over the rows' sources."""
        ...

    def advance(self) -> None:
        """Count the new tokens as held, after the last layer."""
        ...

    def spread(self, rows: int) -> None:
        """Make of each row so many, with the same past; they belong to the same source."""
        ...

    def take(self, rows: Tensor, sources: Tensor | None = None) -> None:
        """Let row i be what row ``rows[i]`` was, and source i what ``sources[i]`` was; others leave."""
        ...

    def crop(self, length: int | Tensor) -> None:
        """Hold no more than the first `length` tokens of each row; of several lengths, each row's own (r,)."""
        ...

    def join(self, pairs: Sequence[Tensor], rows: int) -> None:
        """Add sources, each given by its keys and values (layers, 2, m, s, d), with so many empty rows each."""
        ...

    def as_cache(self) -> KeyValueCache:
        """A copy of what is held, in the form that the modules use: as many tokens as all rows hold."""
        ...


def _integers(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


class NativeMemory:
    """Memory for the compiled kernels: every row writes to a slot of its own and knows where its past lies."""

    def __init__(self, library: ctypes.CDLL, spec: StackSpec, slots: int, capacity: int, dtype: torch.dtype):
        self.library, self.dtype, self.capacity = library, dtype, capacity
        self.own_heads = [own_heads(spec, layer) for layer in range(spec.layers)]
        self.cross_heads = [cross_heads(spec, layer) for layer in range(spec.layers)]
        self.keys, self.values = (
            [fresh((slots, heads.count, capacity, heads.size), dtype) for heads in self.own_heads] for _ in range(2)
        )
        self.free = list(range(slots))[::-1]
        self.table = torch.empty(0, capacity, dtype=torch.int32)  # the slot in which each token of a row lies
        self.slots, self.before, self.first = _integers([]), _integers([]), _integers([])
        self.groups: list[list[int]] = []  # the slots of each source's rows
        self.pairs: list[Tensor] = []
        self.each = 1  # rows of each source
        self.places = [places(kind) for kind in (self.keys, self.values)]
        self.source_places = [places([]), places([])]
        self.lengths = torch.empty(0, dtype=torch.int64)

    def expect(self, counts: Tensor) -> Lines:
        if (most := int((self.before + counts).max())) > self.capacity:
            raise ValueError(f"{most} tokens in a row, and there is room for {self.capacity}")
        self.lines = Lines(counts, self.before)
        return self.lines

    def held(self) -> native.Held:
        """What the kernels need to know."""
        held = native.Held(len(self.before), self.capacity, int(self.dtype is torch.bfloat16), len(self.pairs))
        for name in ("table", "slots", "before", "first", "lengths"):
            setattr(held, name, getattr(self, name).data_ptr())
        held.starts = self.lines.starts.data_ptr()
        held.keys, held.values = (ctypes.addressof(places) for places in self.places)
        held.source_keys, held.source_values = (ctypes.addressof(places) for places in self.source_places)
        return held

    def own(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads, held = self.own_heads[layer], self.held()
        out = torch.empty(len(query), heads.count * heads.group * heads.size)
        self.library.warmstart_attend_own(
            *(x.data_ptr() for x in (query, key, value)),
            *(x.stride(0) for x in (query, key, value)),
            ctypes.byref(heads.native),
            layer,
            ctypes.byref(held),
            out.data_ptr(),
        )
        return out

    def source(self, layer: int, query: Tensor) -> Tensor:
        heads, held = self.cross_heads[layer], self.held()
        assert heads is not None
        out = torch.empty(len(query), heads.count * heads.group * heads.size)
        self.library.warmstart_attend_source(
            query.data_ptr(),
            query.stride(0),
            ctypes.byref(heads.native),
            layer,
            ctypes.byref(held),
            out.data_ptr(),
        )
        return out

    def advance(self) -> None:
        self.table[self.lines.rows, self.lines.places] = self.slots[self.lines.rows]
        self.before += self.lines.counts

    def spread(self, rows: int) -> None:
        if rows == 1:
            return
        self.groups = [group + [self.free.pop() for _ in range(rows - 1)] for group in self.groups]
        self.table, self.before, self.first = (
            x.repeat_interleave(rows, 0) for x in (self.table, self.before, self.first)
        )
        self.each *= rows
        self._assign_slots()

    def take(self, rows: Tensor, sources: Tensor | None = None) -> None:
        self.table, self.before, self.first = self.table[rows], self.before[rows], self.first[rows]
        if sources is not None:
            kept = sources.tolist()
            for index, group in enumerate(self.groups):
                if index not in kept:
                    self._free(group)
            self.groups = [self.groups[index] for index in kept]
            if self.pairs:
                self.pairs = [self.pairs[index] for index in kept]
            self._assign_slots()
            self._point()
        if len(self.before) != len(self.slots):
            raise ValueError(f"{len(self.before)} rows for {len(self.slots)} slots: a source keeps as many rows")

    def crop(self, length: int | Tensor) -> None:
        self.before.clamp_(max=length)

    def join(self, pairs: Sequence[Tensor], rows: int) -> None:
        self.each = rows
        self.groups += [[self.free.pop() for _ in range(rows)] for _ in pairs]
        self.pairs += pairs if any(self.cross_heads) else []
        new = len(pairs) * rows
        self.table = torch.cat([self.table, self.table.new_zeros(new, self.capacity)])
        self.before, self.first = (torch.cat([x, x.new_zeros(new)]) for x in (self.before, self.first))
        self._assign_slots()
        self._point()

    def as_cache(self) -> KeyValueCache:
        cache, held = KeyValueCache(len(self.keys)), int(self.before.min())
        places = self.table[:, :held].long(), slice(None), torch.arange(held)
        for index, layer in enumerate(cache.layers):
            layer.append(*(x[index][places].transpose(1, 2) for x in (self.keys, self.values)))
            if self.pairs:
                layer.source = (
                    _padded([pair[index, 0] for pair in self.pairs]),
                    _padded([pair[index, 1] for pair in self.pairs]),
                )
        return cache

    def _free(self, slots: Sequence[int]) -> None:
        self.free += slots
        for layer in self.keys + self.values:
            for slot in slots:
                give_back(layer[slot])

    def _assign_slots(self) -> None:
        self.slots = _integers([slot for group in self.groups for slot in group])

    def _point(self) -> None:
        """Where each source's keys and values lie, layer by layer."""
        self.lengths = torch.tensor([pair.shape[3] for pair in self.pairs], dtype=torch.int64)
        layers = range(len(self.own_heads))
        self.source_places = [
            places([pair[layer, kind] for layer in layers for pair in self.pairs]) for kind in range(2)
        ]


def places(tensors: Sequence[Tensor]) -> Any:
    """Where tensors lie, as the kernels are told it."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


class TorchMemory:
    """Memory for torch's operators: one buffer for all rows; what leaves is copied away."""

    def __init__(self, spec: StackSpec, capacity: int, dtype: torch.dtype):
        self.dtype = dtype
        self.own_heads = [own_heads(spec, layer) for layer in range(spec.layers)]
        self.cross_heads = [cross_heads(spec, layer) for layer in range(spec.layers)]
        self.keys, self.values = (
            [torch.empty(0, heads.count, capacity, heads.size, dtype=dtype) for heads in self.own_heads]
            for _ in range(2)
        )
        self.before, self.first = _integers([]), _integers([])
        self.sources: Tensor | None = None  # (layers, 2, b, m, s, d)
        self.seen = torch.empty(0, 1, 0, dtype=torch.bool)  # (b, 1, s)

    def own(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads, lines = self.own_heads[layer], self.lines
        keys, values = self.keys[layer], self.values[layer]
        where = lines.rows, slice(None), lines.places
        keys[where] = key.reshape(-1, heads.count, heads.size).to(keys.dtype)
        values[where] = value.reshape(-1, heads.count, heads.size).to(values.dtype)
        positions = self.before.long()[:, None] + torch.arange(lines.longest)  # (r, the longest row's)
        held = torch.arange(int((self.before + lines.counts).max()))
        allowed = (held <= positions[..., None]) & (
            held >= self.first.long()[:, None, None].minimum(positions[..., None])
        )
        if heads.window:
            allowed &= held > positions[..., None] - heads.window
        out = _attend(lines.squared(query), keys[:, :, : len(held)], values[:, :, : len(held)], allowed, heads)
        return lines.lined(out)

    def source(self, layer: int, query: Tensor) -> Tensor:
        heads = self.cross_heads[layer]
        assert heads is not None and self.sources is not None
        seen = None if bool(self.seen.all()) else self.seen
        out = _attend(self.lines.squared(query), self.sources[layer, 0], self.sources[layer, 1], seen, heads)
        return self.lines.lined(out)

    def expect(self, counts: Tensor) -> Lines:
        self.lines = Lines(counts, self.before)
        return self.lines

    def advance(self) -> None:
        self.before += self.lines.counts

    def spread(self, rows: int) -> None:
        self._pick(torch.arange(len(self.before)).repeat_interleave(rows))

    def take(self, rows: Tensor, sources: Tensor | None = None) -> None:
        self._pick(rows)
        if sources is not None and self.sources is not None:
            self.sources, self.seen = self.sources[:, :, sources], self.seen[sources]

    def _pick(self, rows: Tensor) -> None:
        self.keys, self.values = ([x[rows] for x in kind] for kind in (self.keys, self.values))
        self.before, self.first = self.before[rows], self.first[rows]

    def crop(self, length: int | Tensor) -> None:
        self.before.clamp_(max=length)

    def join(self, pairs: Sequence[Tensor], rows: int) -> None:
        new = len(pairs) * rows
        self.keys, self.values = (
            [torch.cat([x, x.new_zeros(new, *x.shape[1:])]) for x in kind] for kind in (self.keys, self.values)
        )
        self.before, self.first = (torch.cat([x, x.new_zeros(new)]) for x in (self.before, self.first))
        if self.cross_heads[0] is None:
            return
        old = self.seen.shape[0]
        lengths = [int(n) for n in self.seen.sum((1, 2))] + [pair.shape[3] for pair in pairs]
        longest = max(lengths)
        shape = pairs[0].shape
        sources = torch.zeros(*shape[:2], len(lengths), shape[2], longest, shape[4], dtype=self.dtype)
        if self.sources is not None:
            width = min(longest, self.sources.shape[4])
            sources[:, :, :old, :, :width] = self.sources[:, :, :, :, :width]
        for index, pair in enumerate(pairs):
            sources[:, :, old + index, :, : pair.shape[3]] = pair
        self.sources = sources
        self.seen = (torch.arange(longest) < torch.tensor(lengths)[:, None])[:, None]

    def as_cache(self) -> KeyValueCache:
        cache, held = KeyValueCache(len(self.keys)), int(self.before.min())
        for index, layer in enumerate(cache.layers):
            layer.append(self.keys[index][:, :, :held], self.values[index][:, :, :held])
            if self.sources is not None:
                layer.source = self.sources[index, 0], self.sources[index, 1]
        return cache


def _padded(parts: list[Tensor]) -> Tensor:
    """Keys or values (m, s, d) of sources of several lengths as one (b, m, s, d), 0 behind the shorter."""
    longest = max(part.shape[1] for part in parts)
    return torch.stack([torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])


def _attend(query: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None, heads: Heads) -> Tensor:
    """Queries (b * l, m * g * d) over keys and values (b, m, s, d), seen where `allowed` (b, l or 1, s) says so."""
    sources, length = len(keys), keys.shape[2]
    folded = query.reshape(sources, -1, heads.count, heads.group, heads.size).transpose(1, 2)  # (b, m, l, g, d)
    lines = folded.shape[2]
    flat = folded.reshape(sources, heads.count, lines * heads.group, heads.size).to(keys.dtype)
    scores = (flat @ keys.transpose(-1, -2)).float() * heads.scale
    if allowed is not None:
        scores = scores.unflatten(2, (lines, heads.group)).masked_fill(~allowed[:, None, :, None], float("-inf"))
        scores = scores.reshape(sources, heads.count, lines * heads.group, length)
    out = torch.softmax(scores, -1).to(values.dtype) @ values
    out = out.float().unflatten(2, (lines, heads.group)).transpose(1, 2)  # (b, l, m, g, d)
    return out.reshape(sources * lines, heads.count * heads.group * heads.size)
