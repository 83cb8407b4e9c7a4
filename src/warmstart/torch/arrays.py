"""The array functions of decoding, for torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class TorchArrays:
    """`warmstart.decoding.arrays.Arrays` on one device: ids are int64, floats float32."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def array(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, device=self.device)

    def full(self, shape: tuple[int, ...], value: bool | int | float) -> Tensor:
        return torch.full(shape, value, device=self.device)

    def arange(self, stop: int) -> Tensor:
        return torch.arange(stop, device=self.device)

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.reshape(shape)

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(list(parts), axis)

    def where(self, condition: Tensor, yes: Any, no: Any) -> Tensor:
        return torch.where(condition, yes, no)

    def to_float(self, x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) else float(x)

    def any(self, x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
        return torch.any(x) if axis is None else torch.any(x, axis, keepdims)

    def all(self, x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
        return torch.all(x) if axis is None else torch.all(x, axis, keepdims)

    def sum(self, x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
        return torch.sum(x) if axis is None else torch.sum(x, axis, keepdims)

    def max(self, x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
        return torch.amax(x) if axis is None else torch.amax(x, axis, keepdims)

    def min(self, x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
        return torch.amin(x) if axis is None else torch.amin(x, axis, keepdims)

    def argmax(self, x: Tensor) -> Tensor:
        width, part = x.shape[-1], 64
        if x.dim() != 2 or x.is_cuda or width < part or x.numel() < 16384:
            return torch.argmax(x, -1)
        # A maximum alone is several times as fast as where it stands: first of which part it is, then where in it.
        whole = width // part * part
        first = torch.argmax(x[:, :whole].unflatten(1, (-1, part)).amax(2), 1, keepdim=True) * part
        first = first + torch.arange(part, device=x.device)
        index = torch.cat([first, torch.arange(whole, width, device=x.device).expand(len(x), -1)], 1)
        return torch.gather(index, 1, torch.argmax(torch.gather(x, 1, index), 1, keepdim=True))[:, 0]

    def top_k(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        width, part = x.shape[-1], 64
        if x.dim() != 2 or x.is_cuda or width < 64 * part or width // part < 4 * k:
            values, indices = torch.topk(x, k)
            return values, indices
        # The k largest are among those of the k parts with the largest maxima: one pass over all, not a selection.
        whole = width // part * part
        parts = x[:, :whole].unflatten(1, (-1, part))
        chosen = torch.topk(parts.amax(2), k)[1].sort(1)[0]
        index = (chosen[:, :, None] * part + torch.arange(part, device=x.device)).flatten(1)
        if whole < width:
            rest = torch.arange(whole, width, device=x.device).expand(len(x), -1)
            index = torch.cat([index, rest], 1)
        values, places = torch.topk(torch.gather(x, 1, index), k)
        return values, torch.gather(index, 1, places)

    def sort(self, x: Tensor) -> Tensor:
        return torch.sort(x)[0]

    def cumsum(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, -1)

    def softmax(self, x: Tensor) -> Tensor:
        return torch.softmax(x, -1)

    def log_softmax(self, x: Tensor) -> Tensor:
        return torch.log_softmax(x, -1)

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        beyond = x.shape[2:]
        if beyond:
            index = index.reshape(*index.shape, *(1 for _ in beyond)).expand(*index.shape, *beyond)
        return torch.gather(x, 1, index)

    def mark(self, tokens: Tensor, valid: Tensor, size: int) -> Tensor:
        # what is not valid goes to a column beyond the vocabulary, so that all writes are of one value
        marked = torch.zeros(tokens.shape[0], size + 1, dtype=torch.bool, device=tokens.device)
        return marked.scatter_(1, torch.where(valid, tokens, size), True)[:, :size]
