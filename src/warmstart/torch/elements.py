"""The small parts of a layer: activations and norms."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from warmstart.spec import NormSpec

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": lambda x: x,
}


def check_activation(name: str) -> str:
    """The name of an activation, if it is known."""
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not supported; use one of {', '.join(sorted(ACTIVATIONS))}")
    return name


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019), computed in fp32 whatever the weights' type."""

    def __init__(self, size: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * y.to(x.dtype)


class RMSNormFromOne(RMSNorm):
    """A root mean square norm whose weight is what is added to 1 (Gemma)."""

    def __init__(self, size: int, epsilon: float):
        super().__init__(size, epsilon)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)
        return (y * (1 + self.weight.float())).to(x.dtype)


def make_norm(size: int, spec: NormSpec) -> nn.Module:
    """The norm that a spec asks for, over the last `size` numbers."""
    if spec.kind == "rms":
        return (RMSNormFromOne if spec.from_one else RMSNorm)(size, spec.epsilon)
    return nn.LayerNorm(size, spec.epsilon, bias=spec.bias)


class HeadNorms(nn.Module):
    """A norm for each head of x (..., heads, size): the first is called `head_0_norm`, and so on."""

    def __init__(self, heads: int, size: int, spec: NormSpec):
        super().__init__()
        for head in range(heads):
            self.add_module(f"head_{head}_norm", make_norm(size, replace(spec, bias=False)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([norm(x[..., head, :]) for head, norm in enumerate(self.children())], -2)


def capped(x: Tensor, cap: float) -> Tensor:
    """Numbers between -cap and cap: a soft cap (Gemma 2, section 2)."""
    return torch.tanh(x / cap) * cap
