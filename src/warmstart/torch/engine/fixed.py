"""The decoding step in fixed shapes, for devices that record it and replay it: nothing is read back, no size changes.

A step reads and writes buffers that stay where they are. What differs from step to step lies in them; what its shapes
depend on is rounded up, so that few shapes serve all steps. The layers are the modules' own, so that every family has
here what it has there.

Shapes: b places for sources, k slots for the rows of each, r = b * k rows, n rows at work, t new tokens, c room for
tokens, l of it read, s source tokens read, m key-value heads, d head size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from warmstart.positions import beyond
from warmstart.spec import StackSpec
from warmstart.torch.attention import Mask, biased
from warmstart.torch.cache import KeyValueCache, LayerCache, Pair
from warmstart.torch.engine.memory import cross_heads, own_heads

Part = tuple[slice, Iterable[Pair]]
"""Some of the sources, and their keys and values (sources, m, s, d), layer by layer."""


def can_fix(spec: StackSpec) -> bool:
    """Whether a stack's step has fixed shapes here: where distances or the length change scores, it has not."""
    attention = spec.attention
    return not (
        attention.alibi
        or attention.relative
        or attention.disentangled
        or attention.global_tokens
        or spec.convolution
        or any(beyond(rotary) is not None for rotary in attention.rotary_kinds())
    )


def bucket(count: int) -> int:
    """A count rounded up to 64, 96, 128, 192, 256 and so on.

    >>> [bucket(count) for count in (1, 64, 65, 97, 700)]
    [64, 64, 96, 128, 768]
    """
    size = 64
    while size < count:
        size = size // 2 * 3 if size & (size - 1) == 0 else size // 3 * 4
    return size


def room(count: int) -> int:
    """A count rounded up by a sixteenth or little more, so that calls of about a length share buffers.

    >>> [room(count) for count in (1, 65, 130, 700)]
    [4, 68, 136, 704]
    """
    step = max(4, (1 << (count - 1).bit_length()) // 32)
    return -(-count // step) * step


class Shape(NamedTuple):
    """What a step's shapes depend on."""

    sources: int  # places computed, from the first on
    new: int  # tokens of each row
    length: int  # places for tokens that are read
    source: int  # tokens of each source that are read; 0 is no source


class Space:
    """The buffers of a decoder's step, and which rows are at work in them.

    Rows move no keys: each has a table of the slots, among those of its source, in which its tokens lie, and reads all
    of them through a mask. `run` computes a step of a shape: by itself, or recorded.
    """

    def __init__(
        self, decoder: Any, sources: int, each: int, capacity: int, source: int, run: Any = None, fused: Any = None
    ):
        spec, weight = decoder.spec, decoder.embeddings.token.weight
        self.sources, self.each = sources, each
        self.capacity, self.source_capacity = bucket(capacity) if fused is None else room(capacity), bucket(source)
        self.run: Any = run or (lambda shape, step: step())
        self.fused = fused  # a `GpuStep`, which computes in place of the modules
        self.device, self.dtype = weight.device, weight.dtype
        # the last place takes what lies behind a row's end, and no row reads it
        self.top = min(self.capacity, spec.positions or self.capacity) - 1
        own = [own_heads(spec, layer) for layer in range(spec.layers)]
        cross = [heads for layer in range(spec.layers) if (heads := cross_heads(spec, layer)) is not None]
        self.own = [self._pair(heads, self.capacity, each) for heads in own]  # (b, m, c, k, d)
        self.pairs = [self._pair(heads, self.source_capacity) for heads in cross]  # (b, m, s, d)
        self.bias = torch.zeros(sources, 1, 1, self.source_capacity, dtype=self.dtype, device=self.device)
        self.ends = torch.ones(sources, dtype=torch.int32, device=self.device)  # behind each source's last token
        number = torch.arange(sources * each, device=self.device)
        self.place, self.slot = number[:, None] // each, number[:, None] % each  # (r, 1)
        self.before, self.first = torch.zeros_like(number), torch.zeros_like(number)  # (r,) as in `Memory`
        self.table = self.slot.repeat(1, self.capacity)  # (r, c)
        self.ids: dict[int, Tensor] = {}  # the new tokens, by how many of each row
        self.clear()

    def _pair(self, heads: Any, *room: int) -> Pair:
        # zeros: what is masked counts nothing as long as it is a number
        shape = self.sources, heads.count, *room, heads.size
        return tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))  # type: ignore[return-value]

    def clear(self) -> None:
        """No sources at work."""
        self.places: list[int] = []
        self.lengths: list[int] = []  # of the sources
        self._number()

    def _number(self) -> None:
        places = torch.tensor(self.places, dtype=torch.long, device=self.device)
        self.rows = (places[:, None] * self.each + torch.arange(self.each, device=self.device)).flatten()  # (n,)

    def join(self, parts: Iterable[Part], seen: Tensor, counts: Sequence[int]) -> None:
        """Add sources of which so much is `seen` (sources, s), and which have so many tokens, with the keys and values
        of each part of them; their rows are empty.
        """
        free = [place for place in range(self.sources) if place not in self.places][: len(counts)]
        length, at = seen.shape[1], _places(free, self.device)
        self.places, self.lengths = self.places + free, [*self.lengths, *counts]
        self._number()
        rows = self.rows[-len(free) * self.each :]
        self.before[rows], self.first[rows], self.table[rows] = 0, 0, self.slot[rows]
        for buffer in (x for pair in self.own for x in pair):
            buffer[at] = 0  # what others left there may be no number
        numbers = torch.arange(1, length + 1, device=self.device)
        self.ends[at] = (seen * numbers).amax(1).clamp_min(1).int() if length else 1
        self.bias[at] = torch.finfo(self.dtype).min
        self.bias[at, 0, 0, :length] = self.bias.new_zeros(seen.shape).masked_fill(~seen, torch.finfo(self.dtype).min)
        for some, pairs in parts:
            at = _places(free[some], self.device)
            for held, given in zip(self.pairs, pairs, strict=True):
                for buffer, x in zip(held, given, strict=True):
                    buffer[at, :, :length] = x.to(self.dtype)
                    if length < buffer.shape[2]:
                        buffer[at, :, length:] = 0

    def widen(self, source: int) -> None:
        """Make room for longer sources: what was recorded reads the old places."""
        more = bucket(source) - self.source_capacity
        self.source_capacity += more
        self.bias = F.pad(self.bias, (0, more), value=torch.finfo(self.dtype).min)
        self.pairs = [(F.pad(keys, (0, 0, 0, more)), F.pad(values, (0, 0, 0, more))) for keys, values in self.pairs]

    def hold(self, cache: KeyValueCache, first: Tensor | None) -> None:
        """Let all rows hold what a cache does of their sources, seen from `first` (n,) on."""
        sources = self.rows[:: self.each] // self.each
        for (keys, values), layer in zip(self.own, cache.layers, strict=True):
            held = layer.held()
            keys[sources, :, : cache.length, 0], values[sources, :, : cache.length, 0] = held
        self.before[self.rows] = cache.length
        self.table[self.rows, : cache.length] = 0
        if first is not None:
            self.first[self.rows] = first

    def logits(self, decoder: Any, ids: Tensor, longest: int) -> Tensor:
        """The float32 logits (n, t, v) after new tokens (n, t), which the rows then hold, `longest` at most."""
        length, source = self.capacity, self.source_capacity
        if self.fused is None:  # else kernels read from the buffers how far they must go
            length, source = min(bucket(longest), length), min(bucket(max(self.lengths, default=0)), source)
        has_source = bool(self.pairs) and any(self.lengths)
        shape = Shape(self._width(), ids.shape[1], length, source if has_source else 0)
        if shape.new not in self.ids:
            self.ids[shape.new] = torch.zeros(len(self.place), shape.new, dtype=torch.long, device=self.device)
        rows = slice(len(ids)) if self.places == list(range(len(self.places))) else self.rows  # copied faster than read
        self.ids[shape.new][rows] = ids
        out = self.run(shape, lambda: self.step(decoder, shape))
        # a copy, for the next step writes where this one did
        return out[rows].clone() if isinstance(rows, slice) else out[rows]

    def step(self, decoder: Any, shape: Shape) -> Tensor:
        """The logits (r, t, v) of the rows of the first places, whose new tokens stand in `ids`."""
        spec, rows = decoder.spec, shape.sources * self.each
        logits = None if self.fused is None else self.fused.logits(self, shape)
        if logits is not None:
            self.before[:rows].add_(shape.new)
            return logits.view(rows, shape.new, -1)
        ids, first, positions = self.ids[shape.new][:rows], self.first[:rows, None], self.positions(shape)
        at = self._at(shape)
        if decoder.embeddings.position is not None:
            positions = positions + spec.embedding.position_offset
        x = decoder.embeddings(ids, None, positions, None)
        rotations = decoder._rotations(x, positions, None, (rows, shape.new), 0)
        masks = {window: self._mask(at, first, window, shape) for window in set(spec.attention.windows or (None,))}
        source_mask = Mask(bias=self.bias[: shape.sources, ..., : shape.source])
        where = self.place[:rows], slice(None), at, self.slot[:rows]
        for index, layer in enumerate(decoder.layers_in_order()):
            cache = _Layer(self.own[index], where, shape)
            if shape.source:
                keys, values = self.pairs[index]
                cache.source = keys[: shape.sources, :, : shape.source], values[: shape.sources, :, : shape.source]
            x = layer(x, masks[spec.attention.window(index)], rotations[index], None, source_mask, cache)[0]
        self.before[:rows].add_(shape.new)
        return decoder.head(x if decoder.final_norm is None else decoder.final_norm(x)).float()

    def _at(self, shape: Shape) -> Tensor:
        """Where the new tokens (r, t) go."""
        before = self.before[: shape.sources * self.each, None]
        return (before + torch.arange(shape.new, device=self.device)).clamp_max(self.top)

    def positions(self, shape: Shape) -> Tensor:
        """The positions of the new tokens (r, t)."""
        return (self._at(shape) - self.first[: shape.sources * self.each, None]).clamp_min(0)

    def _mask(self, at: Tensor, first: Tensor, window: int | None, shape: Shape) -> Mask:
        """Which tokens each row's new ones see: (b, 1, k * t, l * k), as `attend` folds the rows of a source."""
        held = torch.arange(shape.length, device=self.device)
        seen = (held <= at[..., None]) & (held >= first[..., None])  # (r, t, l)
        if window is not None:
            seen = seen & (held > at[..., None] - window)
        if self.each > 1:
            table = self.table[: len(at), None, : shape.length, None]
            seen = seen[..., None] & (table == torch.arange(self.each, device=self.device))  # (r, t, l, k)
        seen = seen.reshape(shape.sources, 1, -1, shape.length * self.each)
        return biased(torch.zeros(seen.shape, dtype=self.dtype, device=self.device), seen)

    def _width(self) -> int:
        """How many places are computed: all, half of them, a quarter and so on."""
        width, needed = self.sources, max(self.places, default=0) + 1
        while (width + 1) // 2 >= needed and width > 1:
            width = (width + 1) // 2
        return width

    def take(self, rows: Tensor, sources: Tensor | None = None) -> None:
        """Let row i be what row ``rows[i]`` was, of the same source; and source i what ``sources[i]`` was."""
        old = self.rows[rows]
        if sources is not None:
            kept = sources.tolist()
            self.places, self.lengths = ([x[index] for index in kept] for x in (self.places, self.lengths))
            self._number()
        if self.each > 1:
            self.before[self.rows], self.first[self.rows] = self.before[old], self.first[old]
            self.table[self.rows] = self.table[old]
            self._settle()
        if 0 < 2 * len(self.places) <= self._width():
            self._close_up()

    def crop(self, length: int) -> None:
        """Hold no more than the first `length` tokens of each row."""
        self.before.clamp_(max=length)
        self._settle()

    def _settle(self) -> None:
        """What a row writes next goes to its own slot."""
        places = torch.arange(self.capacity, device=self.device)
        self.table.copy_(torch.where(places < self.before[:, None], self.table, self.slot))

    def _close_up(self) -> None:
        """Move the sources at work to the first places."""
        count, at = len(self.places), self.rows[:: self.each] // self.each
        for x in (self.bias, self.ends, *(x for pair in (*self.own, *self.pairs) for x in pair)):
            x[:count] = x[at]
        for x in (self.before, self.first, self.table):
            x[: len(self.rows)] = x[self.rows]
        self.places = list(range(count))
        self._number()

    def as_cache(self, length: int) -> KeyValueCache:
        """A copy of the first `length` tokens of each row, in the form that the modules use."""
        cache, rows = KeyValueCache(len(self.own)), self.rows
        where = self.place[rows], slice(None), torch.arange(length, device=self.device), self.table[rows, :length]
        for index, layer in enumerate(cache.layers):
            layer.append(*(buffer[where].transpose(1, 2) for buffer in self.own[index]))
            if self.pairs:
                at, read = rows[:: self.each] // self.each, max(self.lengths)
                layer.source = tuple(buffer[at, :, :read] for buffer in self.pairs[index])  # type: ignore[assignment]
        return cache


def _places(numbers: list[int], device: torch.device) -> Any:
    """Numbers as an index: a slice where they can be one, which is written at the rate of memory."""
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return torch.tensor(numbers, device=device)


class _Layer(LayerCache):
    """A layer's part of the buffers, as one step writes and reads it."""

    def __init__(self, buffers: Pair, where: Any, shape: Shape):
        super().__init__()
        self.buffers, self.where, self.shape = buffers, where, shape

    def append(self, keys: Tensor, values: Tensor) -> Pair:
        for buffer, x in zip(self.buffers, (keys, values), strict=True):
            buffer[self.where] = x.transpose(1, 2)
        read = (buffer[: self.shape.sources, :, : self.shape.length].flatten(2, 3) for buffer in self.buffers)
        return tuple(read)  # type: ignore[return-value]
