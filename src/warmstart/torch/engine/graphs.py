"""Decoding by recorded steps: CUDA graphs over the buffers of `fixed.Space`, and the runner that replays them.

A step's first pass of a shape runs as it is, on a stream of its own, which warms up what the second pass records; from
then on it is replayed. Between calls a model keeps its buffers and graphs, until its weights lie elsewhere.
`WARMSTART_GRAPHS=0` says not to record.

Shapes: b sources, k rows for each, r = b * k rows, n length so far, p prompt length, s source length, t new tokens,
v vocabulary.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from warmstart.torch.cache import KeyValueCache
from warmstart.torch.engine.encoder import parts_of
from warmstart.torch.engine.fixed import Part, Space, can_fix
from warmstart.torch.engine.gpu_step import step_for
from warmstart.torch.engine.plain import is_plain, tensors_of
from warmstart.torch.engine.runner import decoder_of, is_padded_left

Compute = Callable[[], Tensor]
TOGETHER = (
    8192  # tokens of sources that are computed together: they fill a GPU, and what lies between layers stays small
)
_MOST = 64  # graphs of a model; steps of further shapes run as they are


class Graphs:
    """The recorded steps of one `Space`, or parts of an encoder, by what their shapes depend on. `record` makes of a
    step what replays it; None records nothing.
    """

    def __init__(self, record: Callable[[Compute], Compute] | None, warm: Callable[[Compute], Tensor]):
        self.record, self.warm = record, warm
        self.made: dict[Any, Compute | None] = {}  # None: it has run once
        self.replays = 0

    def __call__(self, shape: Any, step: Compute) -> Tensor:
        if self.record is None or (shape not in self.made and len(self.made) >= _MOST):
            return step()
        if shape not in self.made:
            self.made[shape] = None
            return self.warm(step)
        replay = self.made[shape]
        if replay is None:
            try:
                replay = self.made[shape] = self.record(step)
            except RuntimeError as error:
                warnings.warn(f"a step could not be recorded, and runs without a graph: {error}", stacklevel=2)
                self.record = None
                return step()
        self.replays += 1
        return replay()


def graphs_for(device: torch.device) -> Graphs:
    """CUDA graphs on a CUDA device, with one pool of memory for all; elsewhere nothing is recorded."""
    if device.type != "cuda" or os.environ.get("WARMSTART_GRAPHS") == "0":
        return Graphs(None, lambda step: step())
    side, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm(step: Compute) -> Tensor:
        here = torch.cuda.current_stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            out = step()
        here.wait_stream(side)
        out.record_stream(here)
        return out

    def record(step: Compute) -> Compute:
        graph = torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(side):
            # not `torch.cuda.graph`, which gives back all memory that is free before it begins
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                out = step()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(side)

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    return Graphs(record, warm)


_idle: weakref.WeakKeyDictionary[Any, tuple[Any, Space]] = weakref.WeakKeyDictionary()


def borrow(owner: Any, decoder: Any, sources: int, each: int, capacity: int, source: int) -> Space:
    """Buffers for at least so many sources, rows of each, tokens of a row and of a source: those of an earlier call
    where they suffice. They are the owner's until it is gone.
    """
    stamp = tuple((x.data_ptr(), x.dtype, x.shape) for x in tensors_of(decoder))
    held, space = _idle.pop(decoder, (None, None))
    if held != stamp or space is None or space.each != each:
        space = None
    sizes = sources, capacity, source
    if space is not None:
        has = space.sources, space.capacity, space.source_capacity
        if any(x < y for x, y in zip(has, sizes, strict=True)):
            sizes, space = tuple(map(max, has, sizes)), None  # type: ignore[assignment]
    if space is None:
        sources, capacity, source = sizes
        space = Space(decoder, sources, each, capacity, source, graphs_for(decoder.device), step_for(decoder))
    space.clear()
    back = weakref.finalize(owner, _give_back, weakref.ref(decoder), stamp, space)
    back.atexit = False
    return space


def _give_back(decoder: Any, stamp: Any, space: Space) -> None:
    if (owner := decoder()) is not None:
        _idle[owner] = stamp, space


def release(decoder: Any) -> None:
    """Let go of the buffers and graphs that a decoder keeps between calls."""
    _idle.pop(decoder, None)


class FixedRunner:
    """A `Runner` for models that `can_record` allows; a prompt's first pass is the modules'."""

    is_alone = True

    def __init__(
        self, model: Any, source: dict[str, Any], prompt: Any, *, rows: int, length: int, mask: Tensor | None = None
    ):
        """See `ModuleRunner`, of which `prompt` is one with a row for each source; `length` is how many tokens a row
        may hold at most.
        """
        self.model, self.decoder, self.source, self.prompt = model, decoder_of(model), source, prompt
        self.rows, self.capacity, self.length = rows, length, 0
        self.first = None if mask is None else mask.bool().int().argmax(1).repeat_interleave(rows)
        self.space: Space | None = None

    def logits(self, ids: Tensor, keep: int = 1) -> Tensor:
        if self.space is None and ids.shape[1] > 1:
            logits = self.prompt.logits(ids[:: self.rows], keep)
            self._begin(len(ids) // self.rows, self.prompt.cache)
            self.length = ids.shape[1]
            return logits.repeat_interleave(self.rows, 0)
        space = self.space or self._begin(len(ids) // self.rows)
        new = ids[:, self.length :]
        self.decoder._check(new, None, None, SimpleNamespace(length=self.length))
        self.length = ids.shape[1]
        return space.logits(self.decoder, new, self.length)[:, -keep:]

    def drafted(self, ids: Tensor, at: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        space = self.space or self._begin(len(ids) // self.rows)
        width = 1 << max(0, int(counts.max())).bit_length()  # what goes beyond a row's own drafts is not looked at
        before = at - 1
        new = ids.gather(1, (before + torch.arange(width, device=ids.device)).clamp_max(ids.shape[1] - 1))
        self.decoder._check(new[:, :1], None, None, None)
        space.before[space.rows] = before[:, 0]
        logits = space.logits(self.decoder, new, int(before.max()) + width)
        return logits.flatten(0, 1), torch.arange(len(ids), device=ids.device) * width

    def _begin(self, sources: int, held: KeyValueCache | None = None) -> Space:
        """Buffers with the sources, and with what the rows of each hold already."""
        mask, length = self.source.get("attention_mask"), 0
        parts: Iterable[Part] = ()
        pairs = [] if held is None else [layer.source for layer in held.layers if layer.source is not None]
        if pairs:
            length, parts = pairs[0][0].shape[2], [(slice(sources), pairs)]
        elif self.source:
            length, parts = self.source["encoder_outputs"][0].shape[1], source_parts(self.model, self.source)
        self.space = borrow(self, self.decoder, sources, self.rows, self.capacity, length)
        if mask is None:
            mask = torch.ones(sources, length, dtype=torch.bool, device=self.space.device)
        self.space.join(parts, mask.bool(), [length] * sources)
        if held is not None:
            self.space.hold(held, self.first)
        self.source, self.prompt = {}, None
        return self.space

    @property
    def record(self) -> Callable[[Compute], Compute] | None:
        return None if self.space is None else self.space.run.record

    def reorder(self, rows: Tensor) -> None:
        if self.space is not None:
            sources = None if len(rows) == len(self.space.rows) else rows[:: self.rows] // self.rows
            self.space.take(rows, sources)

    def crop(self, length: int) -> None:
        if self.space is not None and length < self.length:
            self.space.crop(length)
            self.length = length

    @property
    def cache(self) -> KeyValueCache | None:
        """What is held, as the modules would hold it: copied when it is asked for."""
        return None if self.space is None else self.space.as_cache(self.length)


class FixedRows:
    """The rows at work in a batch that is refilled: see `EngineRows`."""

    def __init__(self, model: Any, sources: int, each: int, capacity: int):
        self.model, self.sizes = model, (sources, each, capacity)
        self.space: Space | None = None

    def join(self, source: dict[str, Any], counts: list[int]) -> None:
        length = max(counts)
        if self.space is None:
            self.space = borrow(self, self.model.decoder, *self.sizes, length)
        elif length > self.space.source_capacity:
            self.space.widen(length)
            self.space.run.made.clear()
        self.space.join(source_parts(self.model, source), source["attention_mask"].bool(), counts)

    def logits(self, ids: Tensor, longest: int) -> Tensor:
        assert self.space is not None
        return self.space.logits(self.model.decoder, ids, longest)[:, 0]

    def take(self, rows: Tensor, sources: Tensor | None = None) -> None:
        assert self.space is not None
        self.space.take(rows, sources)


def can_record(model: Any, source: dict[str, Any], mask: Tensor | None) -> bool:
    """Whether the steps of a model on a CUDA device have fixed shapes, with this source and prompts of this mask."""
    seen = source.get("attention_mask")
    if model.device.type != "cuda" or (seen is not None and seen.dim() != 2):
        return False
    return can_fix(decoder_of(model).spec) and is_plain(model, "cuda") and is_padded_left(mask)


def source_parts(model: Any, source: dict[str, Any]) -> Iterator[Part]:
    """The keys and values of some sources after the other, so that what lies between stays small."""
    states = source["encoder_outputs"][0]
    if hasattr(model, "enc_to_dec_proj"):
        states = model.enc_to_dec_proj(states)
    for some in parts_of([states.shape[1]] * len(states), TOGETHER):
        layers = model.decoder.layers_in_order()
        yield some, (layer.cross_attention._source_pair(states[some], None) for layer in layers)
