"""A decoder's step on a GPU in few kernels, over the buffers of `fixed.Space`, by the stack's spec.

With few lines a kernel takes about as long as it takes to start, so that products take norms, activations and residual
sums with them; with many, products run in tiles, and sums and norms in a kernel between them. float32 with many lines
is multiplied by torch's own products.

Shapes: r lines (rows times new tokens), n numbers, h hidden size, v vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from warmstart.spec import StackSpec
from warmstart.torch.elements import ACTIVATIONS, RMSNormFromOne
from warmstart.torch.engine import native
from warmstart.torch.engine.memory import cross_heads, own_heads
from warmstart.torch.engine.plain import knows
from warmstart.torch.loading import straighten

FEW = 4  # lines that are multiplied one by one
_FILL = 264  # programmes that keep all of a GPU's processors at work


def step_for(decoder: Any) -> GpuStep | None:
    """The step of a decoder whose device and spec have kernels; None leaves it to the modules."""
    return GpuStep(decoder) if can_fuse(decoder.spec) and has_kernels(decoder.device) else None


@functools.cache
def has_kernels(device: torch.device) -> bool:
    """Whether Triton, which torch's CUDA builds bring, is here and works."""
    if device.type != "cuda" or os.environ.get("WARMSTART_COMPILE") == "0" or find_spec("triton") is None:
        return False
    try:
        from warmstart.torch.engine import gpu_kernels

        x = torch.zeros(1, 16, device=device)
        with _on(device):
            gpu_kernels.gate[(1, 1)](x, x, 8, ACTIVATION="linear", BLOCK=8, PDL=False)
    except Exception as error:  # it asks for a compiler, among other things, and says so in many ways
        warnings.warn(
            f"the kernels for {device} could not be built, and decoding is slower: Triton asks for a C compiler; "
            f"WARMSTART_COMPILE=0 goes without ({error})",
            stacklevel=2,
        )
        return False
    return True


def _on(device: torch.device) -> Any:
    """Where Triton starts its kernels: on the current device, wherever their tensors lie."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def can_fuse(spec: StackSpec) -> bool:
    """Whether the kernels have all that a stack's step asks for."""
    names = [spec.mlp.activation] + ([spec.head.transform] if spec.head is not None and spec.head.transform else [])
    return (
        knows(spec)
        and spec.layers > 0
        and spec.norm.main
        and not (spec.norm.before and spec.norm.shared)
        and all(name in native.ACTIVATIONS for name in names)
    )


class Norm(NamedTuple):
    """A norm's parts, where they lie, and its kind, as the kernels know it."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    epsilon: float = 0.0
    kind: str = ""


def _norm(module: Any) -> Norm | None:
    if module is None:
        return None
    if isinstance(module, torch.nn.LayerNorm):
        return Norm(module.weight, module.bias, module.eps, "mean")
    is_from_one = isinstance(module, RMSNormFromOne)
    return Norm(module.weight, None, module.epsilon, "root mean square" + " from one" * is_from_one)


class _Layer:
    """What the kernels need of a layer beside its matrices."""

    def __init__(self, layer: Any, spec: Any, index: int):
        own, cross = layer.attention, layer.cross_attention
        self.own_heads, self.cross_heads = own_heads(spec, index), cross_heads(spec, index)
        self.attention_norm, self.mlp_norm = _norm(layer.attention_norm), _norm(layer.mlp_norm)
        self.cross_norm = _norm(layer.cross_attention_norm)
        self.query_norm, self.key_norm = _norm(own.query_norm), _norm(own.key_norm)
        self.source_query_norm = None if cross is None else _norm(cross.query_norm)


class GpuStep:
    """The layers and the head of a decoder, as kernels over its weights where they lie."""

    def __init__(self, decoder: Any):
        from warmstart.torch.engine import gpu_kernels

        straighten(decoder)
        self.kernels: Any = gpu_kernels
        self.early, self.failed = _early(decoder.device), False
        self.decoder, self.spec = decoder, decoder.spec
        self.dtype = decoder.embeddings.token.weight.dtype
        self.modules = list(decoder.layers_in_order())
        self.parts = [_Layer(layer, decoder.spec, index) for index, layer in enumerate(self.modules)]
        self.embedding_norm, self.final_norm = _norm(decoder.embeddings.norm), _norm(decoder.final_norm)
        self.head_norm = _norm(decoder.head.norm)
        self.before, tables = self.spec.norm.before, self.spec.embedding
        rare = tables.projected or tables.tokens_projected or tables.task_types or tables.beside
        self.norms_last = not rare and (self.embedding_norm is None or not tables.norm_before_positions)
        # rounded to the weights' type, as the module has it
        self.scale = float(torch.tensor(tables.scale, dtype=self.dtype))

    def logits(self, space: Any, shape: Any) -> Tensor | None:
        """The float32 logits (r, v) after the new tokens that stand in the space; None where a GPU has no room for a
        kernel.
        """
        import triton

        if self.failed:
            return None
        try:
            with _on(space.device):
                return self._logits(space, shape)
        except triton.TritonError as error:
            warnings.warn(
                f"{space.device} has no room for a kernel of the {self.spec.family} decoder, and decoding is slower; "
                f"WARMSTART_COMPILE=0 goes without kernels ({error})",
                stacklevel=2,
            )
            self.failed = True
            return None

    def _logits(self, space: Any, shape: Any) -> Tensor:
        before, head = self.before, self.decoder.head
        x, rotations = self._embed(space, shape), self._rotations(space, shape)
        lines = self._lines(x, self.embedding_norm if self.norms_last else None)
        if before:
            lines.norm(self.parts[0].attention_norm)
        for index, (layer, parts) in enumerate(zip(self.modules, self.parts, strict=True)):
            own, cross, mlp = layer.attention, layer.cross_attention, layer.mlp
            y = self._own(lines.read(own.query, own.key, own.value), index, rotations[index], space, shape)
            has_source = cross is not None and shape.source > 0
            between = parts.cross_norm if has_source else parts.mlp_norm
            lines.add(y, own.output, between if before else parts.attention_norm)
            if has_source:
                y = self._source(lines.read(cross.query), index, space, shape)
                lines.add(y, cross.output, parts.mlp_norm if before else parts.cross_norm)
            if mlp.gate is None:
                y = lines.read(mlp.up, activation=mlp.activation)
            else:
                y = self._gate(lines.read(mlp.gate, mlp.up), mlp.activation)
            following = parts.mlp_norm
            if before:
                last = index + 1 == len(self.parts)
                following = self.final_norm if last else self.parts[index + 1].attention_norm
            lines.add(y, mlp.down, following)
        if head.dense is not None:
            lines = self._lines(lines.read(head.dense, activation=head.activation, to=torch.float32), self.head_norm)
        return lines.read(head.output, to=torch.float32)

    def _lines(self, x: Tensor, of: Norm | None) -> _Few | _Many:
        return (_Few if len(x) <= FEW else _Many)(self, x, of)

    def _embed(self, space: Any, shape: Any) -> Tensor:
        """Vectors (r, h) of the new tokens, before the norm where it stands last."""
        tables, spec, rows = self.decoder.embeddings, self.spec.embedding, shape.sources * space.each
        ids = space.ids[shape.new][:rows]
        if not self.norms_last:
            positions = space.positions(shape)
            if tables.position is not None:
                positions = positions + spec.position_offset
            return tables(ids, None, positions, None).flatten(0, 1).float()
        x, kind = torch.empty(ids.numel(), spec.size, device=ids.device), tables.token_type
        self.kernels.embed[(len(x),)](
            ids, space.before, space.first, tables.token.weight,
            None if tables.position is None else tables.position.weight, None if kind is None else kind.weight,
            x, spec.size, spec.position_offset, space.top, self.scale,
            NEW=shape.new, COLUMNS=_power(spec.size), **self.early,
        )  # fmt: skip
        return x

    def _rotations(self, space: Any, shape: Any) -> list[Any]:
        """Cosine and sine (r, turned size) for each layer, or None."""
        if self.spec.attention.rotary is None:
            return [None] * len(self.parts)
        rows = shape.sources * space.each
        x = torch.empty(0, device=space.device)  # its type is that of what is made
        made = self.decoder._rotations(x, space.positions(shape), None, (rows, shape.new), 0)
        return [tuple(part.flatten(0, 2).contiguous() for part in pair) for pair in made]

    def _own(self, x: Tensor, index: int, rotation: Any, space: Any, shape: Any) -> Tensor:
        part = self.parts[index]
        heads, of, key_norm = part.own_heads, part.query_norm or Norm(), part.key_norm or Norm()
        to = torch.empty(len(x), heads.count * heads.group * heads.size, dtype=self.dtype, device=x.device)
        cosine, sine = rotation or (x, x)
        keys, values = space.own[index]
        self.kernels.attend_own[(len(x), heads.count * heads.group)](
            x, keys, values, space.table, space.before, space.first, cosine, sine, of.weight, of.bias,
            key_norm.weight, key_norm.bias, of.epsilon, to, heads.count, space.capacity, space.top, heads.scale,
            NEW=shape.new, EACH=space.each, GROUP=heads.group, HEAD=heads.size, SIZE=_power(heads.size),
            TURNED=cosine.shape[1] if rotation else 0, KIND=of.kind, WINDOW=heads.window,
            BLOCK=64, **self.early,
        )  # fmt: skip
        return to

    def _source(self, x: Tensor, index: int, space: Any, shape: Any) -> Tensor:
        heads, of = self.parts[index].cross_heads, self.parts[index].source_query_norm or Norm()
        assert heads is not None
        to, lines = torch.empty_like(x), space.each * shape.new
        keys, values = space.pairs[index]
        queries = lines * heads.group
        queries = 1 if queries == 1 else min(64, max(16, _power(queries)))
        self.kernels.attend_source[(shape.sources, heads.count, -(-lines * heads.group // queries))](
            x, keys, values, space.bias, space.ends, *of[:3], to, heads.count, space.source_capacity, heads.scale,
            LINES=lines, GROUP=heads.group, HEAD=heads.size, SIZE=max(16, _power(heads.size)), KIND=of.kind,
            QUERIES=queries, BLOCK=256 // x.element_size(), **self.early,
        )  # fmt: skip
        return to

    def _gate(self, x: Tensor, activation: str) -> Tensor:
        size = x.shape[1] // 2
        to = torch.empty(len(x), size, dtype=self.dtype, device=x.device)
        self.kernels.gate[(len(x), -(-size // 1024))](
            x, to, size, ACTIVATION=_name(activation), BLOCK=1024, **self.early
        )
        return to

    def normed(self, x: Tensor, y: Tensor | None, of: Norm | None) -> tuple[Tensor, Tensor]:
        """Where sums go on from, and what is read, after the sum of x and y (r, n), with its norm."""
        size = x.shape[1]
        to = torch.empty(x.shape, dtype=self.dtype, device=x.device)
        total = to if self.dtype is torch.float32 and not self.before else torch.empty_like(x)
        weight, bias, epsilon, kind = of or Norm()
        self.kernels.add_norm[(len(x),)](
            x, y, weight, bias, total, to, size, epsilon,
            KIND=kind, BEFORE=self.before, COLUMNS=_power(size), **self.early,
        )  # fmt: skip
        return total, to

    def few(
        self,
        x: Tensor,
        of: Norm | None,
        layers: Sequence[Any],
        activation: str,
        to: torch.dtype,
        other: tuple[Tensor, Norm | None] | None = None,
    ) -> Tensor:
        """The activated product (r, n) of the norm of x with some layers, side by side, plus another's norm."""
        weights, biases, outputs = _matrices(layers)
        total, (lines, inputs) = sum(outputs), x.shape
        y = torch.empty(lines, total, dtype=to, device=x.device)
        norm_weight, norm_bias, epsilon, kind = of or Norm()
        beside, its = other or (None, None)
        other_weight, other_bias, other_epsilon, other_kind = its or Norm()
        block = min(16, _power(total * lines // _FILL + 2) // 2)
        blocks = sum(-(-count // block) for count in outputs)
        self.kernels.product_of_few[(blocks, lines)](
            x, norm_weight, norm_bias, epsilon, *weights, *biases, *outputs, *[0] * (3 - len(outputs)),
            beside, other_weight, other_bias, other_epsilon, y, total,
            INPUTS=inputs, KIND=kind or other_kind, MATRICES=len(layers), ACTIVATION=_name(activation), BLOCK=block,
            CHUNK=min(_power(inputs), 16384 // block), COLUMNS=_power(inputs), OTHER_COLUMNS=_power(total),
            **self.early,
        )  # fmt: skip
        return y

    def many(self, x: Tensor, layers: Sequence[Any], activation: str, to: torch.dtype) -> Tensor:
        """The activated product (r, n) of x with some layers, side by side."""
        weights, biases, outputs = _matrices(layers)
        if self.dtype is torch.float32:
            y = torch.cat([F.linear(x, layer.weight, layer.bias) for layer in layers], 1)
            return y if activation == "linear" else ACTIVATIONS[activation](y)
        total, (lines, inputs) = sum(outputs), x.shape
        y = torch.empty(lines, total, dtype=to, device=x.device)
        high, block = _tile(lines)
        blocks = sum(-(-count // block) for count in outputs)
        self.kernels.product_of_many[(blocks, -(-lines // high))](
            x, *weights, *biases, *outputs, *[0] * (3 - len(outputs)), y, total, lines, inputs,
            MATRICES=len(layers), ACTIVATION=_name(activation), LINES=high, BLOCK=block,
            CHUNK=max(16, min(128, _power(inputs))), num_stages=4, **self.early,
        )  # fmt: skip
        return y


class _Few:
    """Few lines: sums x (r, h), whose norm is taken by those who read them."""

    def __init__(self, step: GpuStep, x: Tensor, of: Norm | None):
        self.step, self.x, self.of = step, x, of

    def norm(self, of: Norm | None) -> None:
        """Read the norm of what was read so far; sums go on from that."""
        if self.of is not None:
            self.x = self.step.normed(self.x, None, self.of)[1].float()
        self.of = of

    def read(self, *layers: Any, activation: str = "linear", to: torch.dtype | None = None) -> Tensor:
        """The activated product (r, n) of what is read with some layers, side by side."""
        return self.step.few(self.x, self.of, layers, activation, to or self.step.dtype)

    def add(self, y: Tensor, layer: Any, following: Norm | None) -> None:
        """Add a layer's product of y; the `following` norm is read from then on."""
        beside = self.x, None if self.step.before else self.of
        self.x, self.of = self.step.few(y, None, (layer,), "linear", torch.float32, beside), following


class _Many:
    """Many lines: sums x (r, h), and what is read of them; as `_Few` otherwise."""

    def __init__(self, step: GpuStep, x: Tensor, of: Norm | None):
        self.step = step
        self.x, self.h = step.normed(x, None, of)
        if step.before and of is not None:
            self.x = self.h.float()

    def norm(self, of: Norm | None) -> None:
        self.x, self.h = self.step.normed(self.x, None, of)

    def read(self, *layers: Any, activation: str = "linear", to: torch.dtype | None = None) -> Tensor:
        return self.step.many(self.h, layers, activation, to or self.step.dtype)

    def add(self, y: Tensor, layer: Any, following: Norm | None) -> None:
        y = self.step.many(y, (layer,), "linear", torch.float32)
        self.x, self.h = self.step.normed(self.x, y, following)


def _tile(lines: int) -> tuple[int, int]:
    """How many lines and outputs a programme computes, where there are many."""
    return (16, 16) if lines <= 16 else (32, 16) if lines <= 32 else (64, 32)


def _early(device: torch.device) -> dict[str, Any]:
    """What lets kernels start before those ahead of them are done, where the GPU and Triton can."""
    import triton.language as tl

    is_nvidia = device.type == "cuda" and torch.version.hip is None
    can = is_nvidia and torch.cuda.get_device_capability(device) >= (9, 0) and hasattr(tl.extra.cuda, "gdc_wait")
    return {"PDL": can, "launch_pdl": True} if can else {"PDL": False}


def _matrices(layers: Sequence[Any]) -> tuple[list[Any], list[Any], list[int]]:
    """Weights and biases of up to three layers, and how many outputs each has."""
    none = [None] * (3 - len(layers))
    weights, biases = ([getattr(layer, name) for layer in layers] for name in ("weight", "bias"))
    return weights + none, biases + none, [len(weight) for weight in weights]


def _name(activation: str) -> str:
    """The first name of an activation."""
    return next(name for name, number in native.ACTIVATIONS.items() if number == native.ACTIVATIONS[activation])


def _power(count: int) -> int:
    """The power of two that holds so many.

    >>> [_power(count) for count in (1, 2, 3, 768)]
    [1, 2, 4, 1024]
    """
    return 1 << max(0, count - 1).bit_length()
