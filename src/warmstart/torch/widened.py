"""Linear layers whose bf16 inputs are multiplied as fp32, for processors that are faster so.

What autocast would do on a processor without units for bf16: inputs and results are bf16, and what is kept for the
backward pass. But the weights are read as they are, unrounded, and so their gradients are made.

Shapes: n rows, i inputs, o outputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from warmstart.torch.engine import native


def widened() -> contextlib.AbstractContextManager[Any]:
    """Within it, linear layers multiply so, where autocast to bf16 is on and the processor is faster so."""
    return _Widened() if is_wanted() else contextlib.nullcontext()


def is_wanted() -> bool:
    """Whether autocast asks a processor for products of bf16 that it makes faster of fp32."""
    is_cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return is_cast and not native.has_fast_bf16()


class _Widened(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.linear and not kwargs and all(_fits(x) for x in args):
            return _Linear.apply(*args, *[None] * (3 - len(args)))
        return function(*args, **(kwargs or {}))


def _fits(x: Any) -> bool:
    return x is None or (
        isinstance(x, Tensor) and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.dtype, ctx.has_bias = x.dtype, bias is not None
        x = x.bfloat16()
        ctx.save_for_backward(x, weight)
        with torch.autocast("cpu", enabled=False):
            return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).bfloat16()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        (x, weight), wants = ctx.saved_tensors, ctx.needs_input_grad
        out = upstream[0].flatten(0, -2).float()
        with torch.autocast("cpu", enabled=False):
            into = (out @ weight.float()).to(ctx.dtype).view(x.shape) if wants[0] else None
            made = (out.t() @ x.flatten(0, -2).float()).to(weight.dtype) if wants[1] else None
            added = out.sum(0).to(weight.dtype) if ctx.has_bias and wants[2] else None
        return into, made, added
