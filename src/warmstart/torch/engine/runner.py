"""The engine's runner: a plain model's decoder, its sources and what its rows hold.

Shapes: b sources, k rows for each, r = b * k rows, n length so far, p prompt length, s source length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from warmstart.torch.cache import KeyValueCache
from warmstart.torch.engine import native
from warmstart.torch.engine.encoder import source_pairs
from warmstart.torch.engine.int8 import Int8Linear
from warmstart.torch.engine.memory import Memory, NativeMemory, TorchMemory
from warmstart.torch.engine.plain import is_plain, knows
from warmstart.torch.engine.step import Step


class EngineRunner:
    """A `Runner` for models that `can_run` allows."""

    is_alone, record = False, None

    def __init__(self, model: Any, source: dict[str, Any], *, rows: int, length: int, mask: Tensor | None = None):
        """See `ModuleRunner`; `length` is how many tokens a row may hold at most."""
        self.decoder = decoder_of(model)
        self.rows, self.length, self.started = rows, 0, False
        self.step = Step(self.decoder)
        pairs: Sequence[Any] = [None] * (1 if mask is None else len(mask))
        if source:
            pairs = pairs_of(model, source)
        self.has_sources = bool(source)
        self.starts = None if mask is None else mask.bool().int().argmax(1)
        self.capacity, self.pairs = length, pairs
        self.memory: Memory | None = None

    def logits(self, ids: Tensor, keep: int = 1) -> Tensor:
        spread = 1 if self.started else self.rows
        if self.memory is None:
            self._begin(len(ids) // self.rows)
        assert self.memory is not None
        new = ids[::spread, self.length :]
        self.decoder._check(new, None, None, SimpleNamespace(length=self.length))
        states = self.step.states(new, self.memory)
        states = states.view(*new.shape, -1)[:, -keep:]
        logits = self.step.logits(states.flatten(0, 1)).view(*states.shape[:2], -1)
        self.length = ids.shape[1]
        if not self.started:
            self.started = True
            self.memory.spread(spread)
        return logits if spread == 1 else logits.repeat_interleave(spread, 0)

    def drafted(self, ids: Tensor, at: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        if self.memory is None:
            self._begin(len(ids) // self.rows)
        assert self.memory is not None
        if not self.started:
            self.started = True
            self.memory.spread(self.rows)
        self.memory.crop((at[:, 0] - 1).int())
        if int(counts.max()) <= 0:  # a step as any other, and cheaper than one that leaves out rows that are done
            new = ids.gather(1, at - 1)
            self.decoder._check(new, None, None, None)
            return self.step.logits(self.step.states(new, self.memory)), torch.arange(len(ids))
        lines = self.memory.expect(counts.int() + 1)
        new = ids[lines.rows, lines.places]
        self.decoder._check(new[:, None], None, None, None)
        return self.step.logits(self.step.states(new, self.memory, lines)), lines.starts

    def _begin(self, sources: int) -> None:
        pairs = self.pairs if self.has_sources else [None] * sources
        self.memory = new_memory(self.decoder, sources * self.rows, self.capacity)
        self.memory.join(pairs, 1)  # type: ignore[arg-type]
        self.pairs = []
        if self.starts is not None:
            self.memory.first = self.starts.to(torch.int32)

    def reorder(self, rows: Tensor) -> None:
        if self.memory is None:
            return
        sources = None
        if len(rows) != len(self.memory.before):
            sources = rows[:: self.rows] // self.rows
        self.memory.take(rows, sources)

    def crop(self, length: int) -> None:
        if self.memory is not None and length < self.length:
            self.memory.crop(length)
            self.length = length

    @property
    def cache(self) -> KeyValueCache | None:
        """What is held, as the modules would hold it: copied when it is asked for."""
        return None if self.memory is None else self.memory.as_cache()


class EngineRows:
    """The rows at work in a batch that is refilled: sources join and leave it with all their rows."""

    def __init__(self, model: Any, sources: int, each: int, capacity: int):
        """Room for so many sources, with `each` as many rows, of as many tokens as `capacity`."""
        self.model, self.each, self.step = model, each, Step(model.decoder)
        self.memory = new_memory(model.decoder, sources * each, capacity)

    def join(self, source: dict[str, Any], counts: list[int]) -> None:
        """Add the sources that `encode_source` gave, of so many tokens, with empty rows."""
        self.memory.join(pairs_of(self.model, source), self.each)

    def logits(self, ids: Tensor, longest: int) -> Tensor:
        """The float32 logits (r, v) after a new token (r, 1) of each row, `longest` tokens in a row at most."""
        return self.step.logits(self.step.states(ids, self.memory))

    def take(self, rows: Tensor, sources: Tensor | None = None) -> None:
        """Let row i be what row ``rows[i]`` was, and source i what ``sources[i]`` was; others leave."""
        self.memory.take(rows, sources)


def can_run(model: Any, mask: Tensor | None) -> bool:
    """Whether the engine can run this model with prompts of this mask (b, n), padded on the left if at all."""
    return is_padded_left(mask) and knows(decoder_of(model).spec) and is_plain(model)


def is_padded_left(mask: Tensor | None) -> bool:
    """Whether what a prompt's mask (b, n) leaves out stands before the rest, if there is anything."""
    return mask is None or not bool((mask.bool().int().diff(dim=1) < 0).any())


def decoder_of(model: Any) -> Any:
    """The stack that writes."""
    return model.decoder if hasattr(model, "encode") else model


def memory_type(decoder: Any) -> torch.dtype:
    """The type of kept keys and values: half as wide where the weights are less than float32."""
    weight = decoder.layers[0].attention.query.weight if len(decoder.layers) else decoder.head.output.weight
    return torch.float32 if weight.dtype is torch.float32 else torch.bfloat16


def new_memory(decoder: Any, slots: int, capacity: int) -> Memory:
    """Memory for as many rows as `slots`, of as many tokens as `capacity`."""
    library = native.library()
    if library is None:
        return TorchMemory(decoder.spec, capacity, memory_type(decoder))
    return NativeMemory(library, decoder.spec, slots, capacity, memory_type(decoder))


def pairs_of(model: Any, source: dict[str, Any]) -> list[Tensor]:
    """The keys and values of each source; see `source_pairs`."""
    states = source["encoder_outputs"][0]
    if hasattr(model, "enc_to_dec_proj"):
        states = model.enc_to_dec_proj(states)
    return source_pairs(model.decoder, states, source["attention_mask"], memory_type(model.decoder))


def has_int8(model: Any) -> bool:
    """Whether a model was quantised here."""
    return any(isinstance(module, Int8Linear) for module in model.modules())
