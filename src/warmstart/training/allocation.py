"""Memory that is freed within a training stays the process's own.

The C library of Linux gives large pieces back to the system when they are freed and asks for them anew: the system then
fills each with zeros first, which takes a tenth to a third of a step on a processor.
"""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 2**25  # larger pieces are given back all the same: the holes that they would leave are not worth the time
_KEPT = {_MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: 2**31 - 1}
_USUAL = {_MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: 2 * _LARGEST}  # what glibc comes to by itself


def keep_memory(kept: bool) -> None:
    """Keep what is freed, or give it back as usual; nothing where the environment says how, or without glibc."""
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    library = ctypes.CDLL(None)
    for option, value in (_KEPT if kept else _USUAL).items():
        library.mallopt(option, value)
    if not kept:
        library.malloc_trim(0)
