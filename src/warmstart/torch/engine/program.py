"""A decoder's step, its head, or an encoder as one call of the compiled kernels: their operations over an arena.

Shapes: r rows (of one new token or more; an encoder's tokens), b sources, h hidden size, n outputs. A place in the
arena is a column of it: the numbers that stand before it in each row.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from warmstart.torch.engine import native
from warmstart.torch.engine.memory import NativeMemory, cross_heads, own_heads
from warmstart.torch.engine.products import NormParts, Weights, can_native, norm

_NONE = -1
_PRODUCT, _GATE, _NORM, _OWN, _SOURCE, _WITHIN = range(6)


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

    def attend(self, over: int, layer: int, source: int, to: int, heads: Any) -> None:
        """Attention over what rows hold or within sources (from queries, keys and values side by side), or over sources
        (from queries).
        """
        self._add(over, source, to, layer=layer, heads=heads.native)

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
        if self.list is None:
            self.list = (native.Op * len(self.ops))(*self.ops)
        rows, count = len(x), len(self.ops)
        arena = torch.empty(rows * self.width) if arena is None else arena
        start, width = results
        arena[rows * at : rows * at + x.numel()] = x.flatten()
        pointer = None if held is None else ctypes.byref(held)
        library.warmstart_run(self.list, count, rows, pointer, arena.data_ptr())
        return arena[rows * start : rows * (start + width)].view(rows, width)


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
            program.attend(over, index, wide, inner, parts.own_heads)
            program.product(inner, y, own.output)
            self._residual(y, parts.attention_norm if not before else (parts.cross_norm or parts.mlp_norm))
            if layer.cross_attention is not None:
                program.product(self.h, wide, layer.cross_attention.query)
                program.attend(_SOURCE, index, wide, inner, parts.cross_heads)
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
        """Embedded tokens (n, h) of sources, one behind the other, each of so many, to their states (n, h), which last
        until the next call.
        """
        starts = torch.tensor([0, *itertools.accumulate(counts)])
        return self._run(library, x, native.Held(sources=len(counts), starts=starts.data_ptr()))

    def _run(self, library: ctypes.CDLL, x: Tensor, held: Any) -> Tensor:
        if len(self.arena) < len(x) * self.program.width:  # a new one each time would cost as many new pages
            self.arena = torch.empty(len(x) * self.program.width)
        return self.program.run(library, x, self.x, (self.h, self.size), held, self.arena)


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
