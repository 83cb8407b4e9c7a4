"""Dropout that keeps a seed, for processors; where there are no kernels, one byte of each number.

There torch's own draws a number in fp32 for each, and keeps that until the backward pass.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable

from warmstart.torch.engine import native

_KINDS = (torch.float32, torch.bfloat16)


def is_drawn_apart(*inputs: Tensor) -> bool:
    """Whether what stays is drawn here: on a processor, in fp32 or bf16, and where nothing traces or maps."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    return all(
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype in _KINDS
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        for x in inputs
    )


def stays(shape: tuple[int, ...], dropout: float, generator: Generator | None = None) -> Tensor:
    """1 for what stays (a share of 1 - dropout, to 1 / 65,536), else 0; four are drawn with each number, for speed."""
    count = math.prod(shape)
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    threshold = min(round(dropout * 2**16) - 2**15, 2**15 - 1)
    return (drawn.view(torch.int16)[:count] >= threshold).view(shape).view(torch.int8)


def new_seed() -> int:
    """A seed from torch's own random numbers."""
    return int(torch.randint(2**62, ()))


def noise(seed: int, dropout: float) -> native.Noise:
    """The noise of a seed, as the kernels take it."""
    return native.Noise(seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, round(dropout * 2**32), 1 / (1 - dropout))


class Dropout(nn.Dropout):
    """`nn.Dropout`, which keeps less where it can."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or self.inplace or not is_drawn_apart(x):
            return super().forward(x)
        out: Tensor = (_Dropped if native.library() is None else _Hashed).apply(x, self.p)
        return out


class _Hashed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float) -> Tensor:
        ctx.noise = noise(new_seed(), dropout)
        return _hashed(x, ctx.noise)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        return _hashed(upstream[0], ctx.noise), None


def _hashed(x: Tensor, made: native.Noise) -> Tensor:
    x, library = x.contiguous(), native.library()
    assert library is not None
    out = torch.empty_like(x)
    library.warmstart_drop(x.data_ptr(), x.numel(), native.TYPES[x.dtype], ctypes.byref(made), out.data_ptr())
    return out


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float) -> Tensor:
        stayed = stays(tuple(x.shape), dropout)
        ctx.save_for_backward(stayed)
        ctx.scale = 1 / (1 - dropout)
        return (x * stayed).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        return (upstream[0] * ctx.saved_tensors[0]).mul_(ctx.scale), None
