"""A decoder's step, its head, or an encoder as one call of the compiled kernels: their operations over an arena.

Shapes: r rows (of one new token or more; an encoder's tokens), b sources, h hidden size, n outputs. A place in the
arena is a column of it: the numbers that stand before it in each row. A decoder's rows lie one after the other at a
place; an encoder's stay turned, as `panels.h` has it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from warmstart.torch.engine import native
from warmstart.torch.engine.memory import NativeMemory, cross_heads, own_heads, places
from warmstart.torch.engine.products import NormParts, Weights, can_native, norm

_NONE = -1
_UNIT = 16  # rows that stay turned are filled up to a multiple of it: the lanes of the widest vectors
_PRODUCT, _GATE, _NORM, _OWN, _SOURCE, _WITHIN, _KEEP = range(7)


class Program:
    """Operations one after another, run by one team of threads. `place` makes room, the others add an operation."""

    def __init__(self) -> None:
        self.width = 0
        self.ops: list[native.Op] = []
        self.held: list[Any] = []  # what the pointers are of

    def place(self, width: int) -> int:
        """Room for so many numbers of each row."""
        self.width += width
        return self.width - width

    def product(self, source: int, to: int, *layers: Any, activation: str = "linear") -> None:
        """The activation of the rows times the weights of some layers, side by side."""
        of = Weights(layers)
        self._add(
            _PRODUCT, source, to, inputs=of.inputs, outputs=of.outputs, count=of.count, type=of.type,
            matrices=of.matrices, activation=native.ACTIVATIONS[activation],
        )  # fmt: skip
        self.held.append(of)

    def gate(self, source: int, to: int, width: int, activation: str) -> None:
        """The activation of the left half of (r, 2 * width), times the right."""
        self._add(_GATE, source, to, outputs=width, activation=native.ACTIVATIONS[activation])

    def norm(self, source: int, other: int, total: int, to: int, width: int, of: NormParts | None) -> None:
        """The sum of two places (of one, if the other is negative) into `total`, its norm, if there is one, to `to`."""
        weight, bias, epsilon, is_rms = of or (None, None, 0.0, False)
        pointers = (None if x is None else x.data_ptr() for x in (weight, bias))
        self._add(_NORM, source, to, other=other, total=total, inputs=width,
                  norm=native.Norm(*pointers, epsilon, is_rms))  # fmt: skip
        self.held.append(of)

    def attend(self, over: int, layer: int, source: int, to: int, heads: Any, weights: torch.dtype) -> None:
        """Attention over what rows hold or within sources (from queries, keys and values side by side), or over sources
        (from queries), of a layer whose weights are of a type.
        """
        self._add(over, source, to, layer=layer, heads=heads.native, type=native.TYPES[weights])

    def keep(self, source: int, layer: int, heads: Any) -> None:
        """Keys and values, side by side, go where the sources keep those of a layer."""
        self._add(_KEEP, source, _NONE, layer=layer, heads=heads.native)

    def _add(self, kind: int, source: int, to: int, **fields: Any) -> None:
        self.ops.append(native.Op(kind=kind, source=source, to=to, **{"other": _NONE, "total": _NONE} | fields))

    def run(
        self,
        library: ctypes.CDLL,
        x: Tensor,
        at: int,
        results: tuple[int, int],
        held: Any = None,
        arena: Tensor | None = None,
    ) -> Tensor:
        """Rows x (r, n) go to the place `at`; gives those at a place of a width, as a view of the arena."""
        rows, count = len(x), len(self.ops)
        arena = torch.empty(rows * self.width) if arena is None else arena
        start, width = results
        arena[rows * at : rows * at + x.numel()] = x.flatten()
        pointer = None if held is None else ctypes.byref(held)
        library.warmstart_run(self.array, count, rows, pointer, arena.data_ptr())
        return arena[rows * start : rows * (start + width)].view(rows, width)

    def run_turned(
        self,
        library: ctypes.CDLL,
        x: Tensor,
        at: int,
        arena: Tensor,
        held: Any,
        end: int = 0,
        out: Tensor | None = None,
    ) -> None:
        """The same over tokens x (n, h) of the sources that are held, which stay turned in the arena: they go to place
        `at`, and what is at `end` to out (n, h).
        """
        to = None if out is None else out.data_ptr()
        library.warmstart_run_turned(
            self.array, len(self.ops), ctypes.byref(held), x.data_ptr(), x.shape[1], at, end, arena.data_ptr(), to
        )

    @functools.cached_property
    def array(self) -> Any:
        """The operations as the kernels take them, when all have been added."""
        return (native.Op * len(self.ops))(*self.ops)


class LayerParts:
    """What a programme needs of a layer beside its matrices: heads and norms."""

    def __init__(self, layer: Any, spec: Any, index: int):
        self.own_heads, self.cross_heads = own_heads(spec, index), cross_heads(spec, index)
        self.attention_norm, self.mlp_norm = norm(layer.attention_norm), norm(layer.mlp_norm)
        self.cross_norm: NormParts | None = None
        if layer.cross_attention is not None:
            self.cross_norm = norm(layer.cross_attention_norm)


class StackProgram:
    """The layers of a decoder or an encoder, in a programme."""

    def __init__(
        self, stack: Any, layers: Sequence[LayerParts], final_norm: NormParts | None, *, encodes: bool = False
    ):
        spec, modules = stack.spec, list(stack.layers_in_order())
        over = _WITHIN if encodes else _OWN
        self.arena = torch.empty(0)
        self.size, before = spec.hidden_size, spec.norm.before
        self.program = program = Program()
        self.x = program.place(self.size)
        self.h = program.place(self.size) if before else self.x
        y = program.place(self.size)
        wide = program.place(max(_width(layer) for layer in modules))
        inner = program.place(max(_inner(layer) for layer in modules))
        if before and len(layers):
            program.norm(self.x, _NONE, _NONE, self.h, self.size, layers[0].attention_norm)
        for index, (layer, parts) in enumerate(zip(modules, layers, strict=True)):
            own = layer.attention
            program.product(self.h, wide, own.query, own.key, own.value)
            program.attend(over, index, wide, inner, parts.own_heads, own.query.weight.dtype)
            program.product(inner, y, own.output)
            self._residual(y, parts.attention_norm if not before else (parts.cross_norm or parts.mlp_norm))
            if layer.cross_attention is not None:
                program.product(self.h, wide, layer.cross_attention.query)
                program.attend(_SOURCE, index, wide, inner, parts.cross_heads, own.query.weight.dtype)
                program.product(inner, y, layer.cross_attention.output)
                self._residual(y, parts.mlp_norm if before else parts.cross_norm)
            mlp = layer.mlp
            if mlp.gate is None:
                program.product(self.h, wide, mlp.up, activation=mlp.activation)
                program.product(wide, y, mlp.down)
            else:
                program.product(self.h, wide, mlp.gate, mlp.up)
                program.gate(wide, inner, mlp.up.out_features, mlp.activation)
                program.product(inner, y, mlp.down)
            following = parts.mlp_norm
            if before:
                following = final_norm if index + 1 == len(layers) else layers[index + 1].attention_norm
            self._residual(y, following)

    def _residual(self, y: int, following: NormParts | None) -> None:
        """What the next layer reads is at `h`; where norms stand after the sum, it is the next sum's start too."""
        if following is None and self.h != self.x:
            raise ValueError("a norm before each layer, and none here")
        self.program.norm(self.x, y, self.x, self.h, self.size, following)

    def states(self, x: Tensor, memory: NativeMemory) -> Tensor:
        """Embedded rows (r, h) to states (r, h)."""
        return self._run(memory.library, x, memory.held()).clone()

    def encoded(self, library: ctypes.CDLL, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Embedded tokens (n, h) of sources, one behind the other, each of so many, to their states (n, h)."""
        x, starts = x.contiguous(), _starts(counts)
        out = torch.empty_like(x)
        held = native.Held(sources=len(counts), starts=starts.data_ptr())
        self.program.run_turned(library, x, self.x, self._arena(_whole_units(len(x))), held, self.h, out)
        return out

    def _run(self, library: ctypes.CDLL, x: Tensor, held: Any) -> Tensor:
        return self.program.run(library, x, self.x, (self.h, self.size), held, self._arena(len(x)))

    def _arena(self, rows: int) -> Tensor:
        if len(self.arena) < rows * self.program.width:  # a new one each time would cost as many new pages
            self.arena = torch.empty(rows * self.program.width)
        return self.arena


class SourceProgram:
    """From the states of sources to their keys and values in all layers of a decoder, in a programme."""

    def __init__(self, decoder: Any):
        self.program = program = Program()
        crosses = [layer.cross_attention for layer in decoder.layers]
        self.start = program.place(crosses[0].key.in_features)
        both = program.place(2 * crosses[0].key.out_features)
        for index, cross in enumerate(crosses):
            program.product(self.start, both, cross.key, cross.value)
            program.keep(both, index, cross_heads(decoder.spec, index))

    def keep(self, library: ctypes.CDLL, x: Tensor, counts: Sequence[int], pairs: Sequence[Tensor]) -> None:
        """States x (n, h) of sources, one behind the other, each of so many, to their pairs (layers, 2, m, s, d)."""
        starts, x, layers = _starts(counts), x.contiguous(), range(pairs[0].shape[0])
        kept = [places([pair[layer, kind] for layer in layers for pair in pairs]) for kind in range(2)]
        held = native.Held(sources=len(counts), starts=starts.data_ptr(), type=int(pairs[0].dtype is torch.bfloat16))
        held.source_keys, held.source_values = (ctypes.addressof(of) for of in kept)
        arena = torch.empty(_whole_units(len(x)) * self.program.width)
        self.program.run_turned(library, x, self.start, arena, held)


class HeadProgram:
    """From states to logits, in a programme."""

    def __init__(self, head: Any, norm: NormParts | None):
        self.program, self.output = Program(), head.output.out_features
        self.start = at = self.program.place(head.output.in_features if head.dense is None else head.dense.in_features)
        if head.dense is not None and norm is not None:
            size = head.dense.out_features
            at, inner = self.program.place(size), self.program.place(size)
            self.program.product(self.start, inner, head.dense, activation=head.activation)
            self.program.norm(inner, _NONE, _NONE, at, size, norm)
        self.end = self.program.place(self.output)
        self.program.product(at, self.end, head.output)

    def logits(self, library: ctypes.CDLL, states: Tensor) -> Tensor:
        """States (r, h) to logits (r, n)."""
        return self.program.run(library, states, self.start, (self.end, self.output))


def can_keep(decoder: Any) -> bool:
    """Whether the kernels have all that is between states of sources and a decoder's keys and values of them."""
    crosses = [layer.cross_attention for layer in decoder.layers]
    return all(cross.key_norm is None and _can_turn(cross.key) for cross in crosses)


def can_program(stack: Any, *, encodes: bool = False) -> bool:
    """Whether the kernels have all operations of a decoder's layers and head, or of an encoder's layers."""
    spec, layers = stack.spec, list(stack.layers)
    names = [layer.mlp.activation for layer in layers]
    if not encodes and stack.head.dense is not None:
        names.append(stack.head.activation)
    modules = [own for layer in layers for own in (layer.attention, layer.cross_attention) if own is not None]
    return (
        len(layers) > 0
        and can_native(layers[0].attention.query if encodes else stack.head.output)
        and spec.attention.rotary is None
        and (not spec.norm.before or (stack.final_norm is not None and spec.norm.main and not spec.norm.shared))
        and all(module.query_norm is None and module.key_norm is None for module in modules)
        and all(name in native.ACTIVATIONS for name in names)
        and not (encodes and (spec.causal or any(spec.attention.windows) or not spec.norm.first))
        and (not encodes or all(_can_turn(part) for layer in layers for part in _read(layer)))
    )


def _read(layer: Any) -> tuple[Any, ...]:
    """One matrix for each kind of input of a layer."""
    return layer.attention.query, layer.attention.output, layer.mlp.up, layer.mlp.down


def _can_turn(layer: Any) -> bool:
    """Whether the kernels multiply rows that stay turned with the weights of this layer: int8 may go by four inputs,
    bfloat16 by two.
    """
    word = {torch.int8: 4, torch.bfloat16: 2}.get(layer.weight.dtype, 1)
    return can_native(layer) and layer.weight.shape[1] % word == 0


def _starts(counts: Sequence[int]) -> Tensor:
    """Where the tokens of sources start, and where the last one's end."""
    return torch.tensor([0, *itertools.accumulate(counts)])


def _whole_units(rows: int) -> int:
    return -(-rows // _UNIT) * _UNIT


def _width(layer: Any) -> int:
    own, mlp = layer.attention, layer.mlp
    cross = layer.cross_attention.query.out_features if layer.cross_attention is not None else 0
    return max(
        sum(part.out_features for part in (own.query, own.key, own.value)),
        mlp.up.out_features * (1 if mlp.gate is None else 2),
        cross,
    )


def _inner(layer: Any) -> int:
    widths = [layer.attention.output.in_features, layer.mlp.down.in_features]
    if layer.cross_attention is not None:
        widths.append(layer.cross_attention.output.in_features)
    return max(widths)
