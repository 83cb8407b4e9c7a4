"""What is not kept for a backward pass: what a cheap operation makes again from what is kept anyhow.

A norm and an activation keep their input, and the products that read what they made keep that too; so it is made again
when its gradient is computed, by the same operation from the same numbers (Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

_here = threading.local()


@contextmanager
def spared(wanted: bool) -> Iterator[None]:
    """Within it, what is noted is not kept; unless hooks of others say what is kept, or torch compiles."""
    if not wanted or not torch.is_grad_enabled() or torch.compiler.is_compiling() or _has_hooks():
        yield
        return
    before, _here.noted = getattr(_here, "noted", None), {}
    try:
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _here.noted = before


def note(out: Tensor, make: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    """Note that `make` makes `out` of its sources, which are kept anyhow or noted themselves; gives `out`."""
    noted = None if torch.compiler.is_compiling() else getattr(_here, "noted", None)
    if noted is not None and out.requires_grad and type(out) is Tensor and out.is_contiguous():
        noted[out.data_ptr()] = weakref.ref(out), _Remade(make, [_pack(x.detach()) for x in sources], out.shape)
    return out


def branches(x: Tensor, count: int) -> list[Tensor]:
    """`x` for so many products: under autocast cast once, where each would cast it for itself and keep that.

    Their gradients are added up in the type of `x`, as without.
    """
    kind = x.device.type
    if torch.compiler.is_compiling() or x.dtype != torch.float32 or x.is_meta or not torch.is_autocast_enabled(kind):
        return [x] * count
    dtype = torch.get_autocast_dtype(kind)
    cast = x.detach().to(dtype)
    return [note(_Branch.apply(x, cast), lambda x: x.to(dtype), x) for _ in range(count)]


class _Branch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cast: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        return cast.view_as(cast)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        return upstream[0].to(ctx.dtype), None


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """What a norm makes of `x`, noted where nobody listens to the norm."""
    out: Tensor = norm(x)
    return out if norm._forward_hooks or norm._forward_pre_hooks else note(out, norm.forward, x)


@dataclass(frozen=True)
class _Remade:
    make: Callable[..., Tensor]
    sources: list[Any]
    shape: torch.Size


def _pack(x: Tensor) -> Any:
    noted = _here.noted.get(x.data_ptr())
    if noted is None or type(x) is not Tensor:
        return x, x._version
    out = noted[0]()
    # The memory may be another's by now; what was changed in place cannot be made again.
    if out is None or (out.numel(), out.dtype, out._version) != (x.numel(), x.dtype, 0) or not x.is_contiguous():
        return x, x._version
    return replace(noted[1], shape=x.shape)


def _unpack(kept: Any) -> Tensor:
    if not isinstance(kept, _Remade):
        return _unchanged(*kept)
    with torch.no_grad():
        return kept.make(*(_unpack(source) for source in kept.sources)).view(kept.shape)


def _unchanged(x: Tensor, version: int) -> Tensor:
    if x._version != version:
        raise RuntimeError(
            f"a tensor of shape {tuple(x.shape)} that a gradient is computed from was changed in place after it was "
            "used; change a copy of it"
        )
    return x


def _has_hooks() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
