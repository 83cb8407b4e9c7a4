"""Linear layers as the engine runs them: several over one input at once, by the fastest kernel for their weights.

Shapes: r rows, k inputs, n outputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from warmstart.torch.elements import ACTIVATIONS, RMSNormFromOne
from warmstart.torch.engine import native
from warmstart.torch.engine.int8 import NARROW, Int8Linear, packed

Product = Callable[[Tensor], Tensor]
"""Rows (r, k) in float32 to all outputs side by side (r, n), in float32."""
NormParts = tuple[Tensor, Tensor | None, float, bool]
"""A norm's weight, bias, epsilon, and whether it is one of root mean squares."""


def product(*layers: Any, activation: str = "linear") -> Product:
    """The activation of the product with the weights of some `nn.Linear` or `Int8Linear`, one beside the other.

    Weights are read where they lie at each call; only biases of other types than float32 are copied.
    """
    library = native.library()
    if can_native(layers[0]) and activation in native.ACTIVATIONS:
        assert library is not None
        return _native_product(library, layers, activation)
    multiply = _int8_product(layers) if isinstance(layers[0], Int8Linear) else _torch_product(layers)
    return multiply if activation == "linear" else lambda x: ACTIVATIONS[activation](multiply(x))


def can_native(layer: Any) -> bool:
    """Whether the compiled kernels multiply with the weights of this layer; int8 asks for a processor with AVX2."""
    library = native.library()
    return library is not None and (not isinstance(layer, Int8Linear) or bool(library.warmstart_has_int8()))


class Weights:
    """The weights of some linear layers as the kernels see them; what the pointers are of is held with them."""

    def __init__(self, layers: Sequence[Any]):
        weights = [layer.weight.detach().contiguous() for layer in layers]
        biases = [None if layer.bias is None else layer.bias.detach().float().contiguous() for layer in layers]
        self.held: list[Any] = [weights, biases]
        scales: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * len(layers)
        if isinstance(layers[0], Int8Linear):
            scales = [(layer.scale.float().contiguous(), layer.sums()) for layer in layers]
            self.held.append(scales)
        self.matrices = (native.Matrix * len(layers))(
            *(
                native.Matrix(w.data_ptr(), _pointer(bias), len(w), *map(_pointer, more))
                for w, bias, more in zip(weights, biases, scales, strict=True)
            )
        )
        self.type, self.count = native.TYPES[weights[0].dtype], len(layers)
        self.inputs, self.outputs = weights[0].shape[1], sum(len(weight) for weight in weights)


def _native_product(library: ctypes.CDLL, layers: Sequence[Any], activation: str) -> Product:
    of, which = Weights(layers), native.ACTIVATIONS[activation]

    def multiply(x: Tensor) -> Tensor:
        y = torch.empty(len(x), of.outputs)
        x = x.contiguous()
        library.warmstart_linear(x.data_ptr(), len(x), of.inputs, of.matrices, of.count, of.type, which, y.data_ptr())
        return y

    return multiply


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _int8_product(layers: Sequence[Int8Linear]) -> Product:
    if (pack := packed(layers)) is None:
        return lambda x: torch.cat([layer(x) for layer in layers], -1)
    bias = None
    if any(layer.bias is not None for layer in layers):
        bias = torch.cat([x.new_zeros(x.shape) if b is None else b.float() for x, b in _scales_and_biases(layers)])

    def multiply(x: Tensor) -> Tensor:
        most = x.abs().amax(1, keepdim=True)
        y = torch.ops.quantized.linear_dynamic(x / most.clamp_min(1e-30), pack, NARROW) * most
        return y if bias is None else y + bias

    return multiply


def _scales_and_biases(layers: Sequence[Int8Linear]) -> list[tuple[Tensor, Tensor | None]]:
    return [(layer.scale, layer.bias) for layer in layers]


def _torch_product(layers: Sequence[Any]) -> Product:
    if len(layers) == 1:
        return lambda x: _apply(layers[0], x)
    return lambda x: torch.cat([_apply(layer, x) for layer in layers], -1)


def _apply(layer: Any, x: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    if weight.dtype is torch.float32 and weight.is_cpu and has_onednn():
        # unlike the library behind F.linear, oneDNN is fast with few rows, and on processors of every maker
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x.to(weight.dtype), weight, bias).float()


def has_onednn() -> bool:
    """Whether torch has the operators of oneDNN here."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def norm(module: nn.Module | None) -> NormParts | None:
    """A norm's parts in float32."""
    if module is None:
        return None
    weight = module.weight.detach().float().contiguous()  # type: ignore[operator]
    weight = 1 + weight if isinstance(module, RMSNormFromOne) else weight
    if isinstance(module, nn.LayerNorm):
        bias = None if module.bias is None else module.bias.detach().float().contiguous()
        return weight, bias, module.eps, False
    return weight, None, module.epsilon, True  # type: ignore[return-value]


def add_norm(x: Tensor, y: Tensor | None, of: NormParts) -> tuple[Tensor, Tensor]:
    """The sum of x and y (r, h), and its norm."""
    weight, bias, epsilon, is_rms = of
    library = native.library()
    if library is not None:
        x, out = x.contiguous(), torch.empty_like(x)
        total = x if y is None else torch.empty_like(x)
        how = ctypes.byref(native.Norm(weight.data_ptr(), _pointer(bias), epsilon, is_rms))
        library.warmstart_norm(x.data_ptr(), _pointer(y), *x.shape, how, total.data_ptr(), out.data_ptr())
        return total, out
    total = x if y is None else x + y
    if is_rms:
        return total, total * torch.rsqrt(total.square().mean(-1, keepdim=True) + epsilon) * weight
    return total, F.layer_norm(total, weight.shape, weight, bias, epsilon)
