"""Tensors in pages of their own, which the system has back as soon as they are given up.

What malloc is given back it keeps where something newer lies behind it. Keys and values are large, of every size, and
come and go with their sources: of what was given up, it kept most.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_LEAST = 1 << 20  # bytes: smaller ones malloc has room for


def fresh(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros. Pages of a large one are claimed when they are written, and go with it."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LEAST or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(shape, dtype=dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape)).view(*shape)


def give_back(x: Tensor) -> None:
    """Let the system have the whole pages of a contiguous part of a `fresh` tensor: what it held is lost."""
    start, end = x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end and (advise := _advise()) is not None:
        advise(start, end - start, mmap.MADV_DONTNEED)


@functools.cache
def _advise() -> Any:
    if sys.platform != "linux":  # elsewhere the same advice is none to act on
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
