"""A decoder's step, or its head, as one call of the compiled kernels: a list of their operations over an arena.

Shapes: r rows (of one new token or more), h hidden size, n outputs. A place in the arena is a column of it: the numbers
that stand before it in each row.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from warmstart.torch.engine import native
from warmstart.torch.engine.memory import NativeMemory
from warmstart.torch.engine.products import NormParts, Weights, can_native

_NONE = -1
_PRODUCT, _GATE, _NORM, _OWN, _SOURCE = range(5)


class Program:
    """Operations one after another, run by one team of threads. `place` makes room, the others add an operation."""

    def __init__(self) -> None:
        self.width = 0
        self.ops: list[native.Op] = []
        self.held: list[Any] = []  # what the pointers are of
        self.list: Any = None

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

    def attend(self, layer: int, source: int, to: int, heads: Any, *, own: bool) -> None:
        """Attention over what rows hold (from queries, keys and values side by side), or over sources (queries)."""
        self._add(_OWN if own else _SOURCE, source, to, layer=layer, heads=heads.native)

    def _add(self, kind: int, source: int, to: int, **fields: Any) -> None:
        self.ops.append(native.Op(kind=kind, source=source, to=to, **{"other": _NONE, "total": _NONE} | fields))

    def run(self, library: ctypes.CDLL, x: Tensor, at: int, results: tuple[int, int], held: Any = None) -> Tensor:
        """Rows x (r, n) go to the place `at`; gives those at a place of a width."""
        if self.list is None:
            self.list = (native.Op * len(self.ops))(*self.ops)
        rows, count = len(x), len(self.ops)
        arena = torch.empty(rows * self.width)
        start, width = results
        arena[rows * at : rows * at + x.numel()] = x.flatten()
        pointer = None if held is None else ctypes.byref(held)
        library.warmstart_run(self.list, count, rows, pointer, arena.data_ptr())
        return arena[rows * start : rows * (start + width)].view(rows, width)


class StackProgram:
    """The layers of a decoder, in a programme."""

    def __init__(self, decoder: Any, layers: Sequence[Any], final_norm: NormParts | None):
        spec, modules = decoder.spec, list(decoder.layers_in_order())
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
            program.attend(index, wide, inner, parts.own_heads, own=True)
            program.product(inner, y, own.output)
            self._residual(y, parts.attention_norm if not before else (parts.cross_norm or parts.mlp_norm))
            if parts.cross is not None:
                program.product(self.h, wide, layer.cross_attention.query)
                program.attend(index, wide, inner, parts.cross_heads, own=False)
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
        return self.program.run(memory.library, x, self.x, (self.h, self.size), memory.held())


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


def can_program(decoder: Any) -> bool:
    """Whether the kernels have all operations of this decoder's layers and head."""
    spec = decoder.spec
    names = [layer.mlp.activation for layer in decoder.layers]
    if decoder.head.dense is not None:
        names.append(decoder.head.activation)
    modules = [own for layer in decoder.layers for own in (layer.attention, layer.cross_attention) if own is not None]
    return (
        len(decoder.layers) > 0
        and can_native(decoder.head.output)
        and spec.attention.rotary is None
        and (not spec.norm.before or (decoder.final_norm is not None and spec.norm.main and not spec.norm.shared))
        and all(module.query_norm is None and module.key_norm is None for module in modules)
        and all(name in native.ACTIVATIONS for name in names)
    )


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
