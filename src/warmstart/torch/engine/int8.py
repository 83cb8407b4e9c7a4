"""Linear layers in 8 bits: weights with a scale for each output, inputs with a scale for each row, made as they come.

Shapes: r rows, k inputs, n outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Without VNNI torch's kernels add two products in 16 bits: inputs of 7 bits keep these sums exact.
NARROW = not getattr(torch._C._cpu, "_is_avx512_vnni_supported", lambda: False)()
# Numbers that are rounded or added up together: what lies between is no larger. Freed again and again between things
# that stay, it would leave holes as large in the C library's heap.
_BLOCK = 2**16


class Int8Linear(nn.Module):
    """A linear layer whose weights are int8 (n, k) with float32 scales (n,); it is for inference alone.

    >>> layer = Int8Linear(nn.Linear(64, 3))
    >>> layer(torch.zeros(2, 64)).shape, layer.weight.dtype
    (torch.Size([2, 3]), torch.int8)
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        values, scale = quantised(layer.weight.detach())
        self.register_buffer("weight", values)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Rows (..., k) to (..., n): both sides rounded to 8 bits, sums exact."""
        values, scale = quantised(x.float().reshape(-1, self.in_features))
        # the sums are whole numbers below 2^24 for k <= 1040, and rounded as any float32 sum beyond
        y = values.float() @ self.weight.float().T * scale[:, None] * self.scale
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def sums(self) -> Tensor:
        """The sum of each row of weights (n,), kept until they change."""
        stamp = self.weight.data_ptr(), self.weight._version
        held = self.__dict__.get("row_sums")
        if held is None or held[0] != stamp:
            sums = torch.empty(self.out_features, dtype=torch.int32)
            for own in _blocks(self.weight):  # torch widens what it adds up
                torch.sum(self.weight[own], 1, dtype=torch.int32, out=sums[own])
            held = self.__dict__["row_sums"] = stamp, sums
        return held[1]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def packed(layers: Sequence[Int8Linear]) -> Any:
    """The weights of some layers, one beside the other, as the int8 kernels of torch want them; None without these.

    They are kept with the first layer, and made again when weights have changed.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return None
    stamp = tuple((layer.weight.data_ptr(), layer.weight._version) for layer in layers)
    held = layers[0].__dict__.get("packs", {})
    if stamp not in held:
        weight, scale = (torch.cat([x.contiguous() for x in xs]) for xs in _both(layers))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that its quantised tensors will move to another package
            zeros = torch.zeros(len(scale), dtype=torch.long)
            # weights whose row is all 0 have scale 0, which the kernels refuse
            tensor = torch._make_per_channel_quantized_tensor(weight, scale.double().clamp_min(1e-30), zeros, 0)
            held = {stamp: torch.ops.quantized.linear_prepack(tensor, None)}
        layers[0].__dict__["packs"] = held
    return held[stamp]


def _both(layers: Sequence[Int8Linear]) -> tuple[list[Tensor], list[Tensor]]:
    return [layer.weight for layer in layers], [layer.scale.float() for layer in layers]


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (r, k) as int8 from -127 to 127, and the scale of each row (r,): the largest number over 127.

    >>> quantised(torch.tensor([[2.0, -1.0], [0.0, 0.0]]))
    (tensor([[127, -64],
            [  0,   0]], dtype=torch.int8), tensor([0.0157, 0.0000]))
    """
    values, scale = torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows))
    for own in _blocks(rows):
        part = rows[own].float()
        most = part.abs().amax(1, keepdim=True)
        values[own] = (part * torch.where(most > 0, 127 / most, 0.0)).round_()
        scale[own] = most[:, 0] / 127
    return values, scale


def _blocks(rows: Tensor) -> Iterator[slice]:
    count = max(1, _BLOCK // max(1, rows.shape[1]))
    return (slice(start, start + count) for start in range(0, len(rows), count))


def quantize(model: Any) -> None:
    """Replace every linear layer of a model by its int8 form, in place; embeddings and norms stay as they are."""
    replace_all(model)
    for parameter in model.parameters():  # what stays leaves the mapped file, whose pages can then go
        parameter.data = parameter.data.clone()


def replace_all(model: nn.Module, names: Collection[str] | None = None) -> None:
    """Replace the linear layers of these names, or all, by their int8 form, if they have their values."""
    for name in [name for name, _ in model.named_modules()] if names is None else names:
        module = model.get_submodule(name)
        if type(module) is nn.Linear and not any(parameter.is_meta for parameter in module.parameters()):
            place, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(place), leaf, Int8Linear(module))
