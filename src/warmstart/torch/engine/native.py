"""The kernels of `kernels.cpp`: compiled once for this processor, kept, and loaded; None where that cannot be.

Nothing needs them: without a compiler the engine runs on torch's operators. `WARMSTART_COMPILE=0` says not to compile.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("kernels.cpp")  # it includes the headers beside it
# The threads are those of torch's OpenMP: its library is loaded already, a second one would fight it for the cores.
_COMPILE = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-c"]
_SECONDS = 180

_POINTER, _INTEGER, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Matrix(ctypes.Structure):
    """One weight matrix as the kernels see it: data (n, k), bias (n,) or null, n; of int8 scales and sums (n,) too."""

    _fields_ = [("data", _POINTER), ("bias", _POINTER), ("outputs", _INTEGER), ("scales", _POINTER), ("sums", _POINTER)]


class Norm(ctypes.Structure):
    """A norm's weight and bias (h,) or null, epsilon, and whether it is one of root mean squares."""

    _fields_ = [("weight", _POINTER), ("bias", _POINTER), ("epsilon", _REAL), ("is_rms", _INTEGER)]


class Heads(ctypes.Structure):
    """One attention layer's shape: see `memory.Heads`."""

    _fields_ = [*((name, _INTEGER) for name in ("heads", "group", "size", "window")), ("scale", _REAL)]


class Held(ctypes.Structure):
    """What a `memory.NativeMemory` holds: see `kernels.cpp`."""

    _fields_ = [
        *((name, _INTEGER) for name in ("rows", "capacity", "type", "sources")),
        *((name, _POINTER) for name in ("keys", "values", "table", "slots", "before", "first", "starts")),
        *((name, _POINTER) for name in ("source_keys", "source_values", "lengths")),
    ]


class Noise(ctypes.Structure):
    """Two words of a seed, what share of 2^32 is dropped, and what the rest is multiplied by: see `dropped.h`."""

    _fields_ = [*((name, ctypes.c_uint32) for name in ("first", "second", "threshold")), ("scale", _REAL)]


class Op(ctypes.Structure):
    """One step of a programme: see `kernels.cpp`."""

    _fields_ = [
        *((name, _INTEGER) for name in ("kind", "layer", "source", "other", "total", "to", "inputs", "outputs")),
        ("matrices", ctypes.POINTER(Matrix)),
        *((name, _INTEGER) for name in ("count", "type", "activation")),
        ("norm", Norm),
        ("heads", Heads),
    ]


TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
ACTIVATIONS = {
    name: number
    for number, names in enumerate(
        (
            ("linear",),
            ("relu",),
            ("gelu", "gelu_python"),
            ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
            ("silu", "swish"),
            ("quick_gelu",),
        )
    )
    for name in names
}

_ARGUMENTS = {
    "warmstart_run": [_POINTER, *[_INTEGER] * 2, _POINTER, _POINTER],
    "warmstart_run_turned": [_POINTER, _INTEGER, *[_POINTER] * 2, *[_INTEGER] * 3, *[_POINTER] * 2],
    "warmstart_linear": [_POINTER, *[_INTEGER] * 2, _POINTER, *[_INTEGER] * 3, _POINTER],
    "warmstart_attend_own": [*[_POINTER] * 3, *[_INTEGER] * 3, _POINTER, _INTEGER, *[_POINTER] * 2],
    "warmstart_attend_source": [_POINTER, _INTEGER, _POINTER, _INTEGER, *[_POINTER] * 2],
    "warmstart_norm": [*[_POINTER] * 2, *[_INTEGER] * 2, *[_POINTER] * 3],
    "warmstart_drop": [_POINTER, *[_INTEGER] * 2, *[_POINTER] * 2],
    "warmstart_weigh": [_POINTER, *[_INTEGER] * 2, _REAL, *[_POINTER] * 2],
    "warmstart_slope": [*[_POINTER] * 2, *[_INTEGER] * 2, _REAL, _POINTER],
}


def library() -> ctypes.CDLL | None:
    """The compiled kernels. The first call on a machine takes some seconds, later ones find the result."""
    return load("native")


@functools.cache
def load(processor: str) -> ctypes.CDLL | None:
    """The kernels for a processor by the name that compilers have for it."""
    path = _place(processor)
    if not path.exists() and (os.environ.get("WARMSTART_COMPILE") == "0" or not _compile(path, processor)):
        return None
    try:
        loaded = ctypes.CDLL(str(path))
        for name, arguments in _ARGUMENTS.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, None
        loaded.warmstart_has_int8.restype = _INTEGER
    except (OSError, AttributeError):
        return None
    return loaded


@functools.cache
def has_fast_bf16() -> bool:
    """Whether torch multiplies bf16 faster than float32: where there are units for whole products of it (AMX, ARM), or
    instructions for it and no fast library for float32. Beside one, those of AVX-512 are half as fast.
    """
    words, has_library = set(_processor().split()), torch.backends.mkl.is_available() and "Intel" in _processor()
    return bool(words & {"amx_bf16", "bf16"}) or ("avx512_bf16" in words and not has_library)


def _place(processor: str) -> Path:
    """Where the compiled kernels lie: by source, torch and processor, since they are made for this one."""
    told = hashlib.sha256(_SOURCE.read_bytes())
    for header in sorted(_SOURCE.parent.glob("*.h")):
        told.update(header.read_bytes())
    for fact in (*_COMPILE, processor, torch.__version__, sys.platform, platform.machine(), _processor()):
        told.update(fact.encode())
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "warmstart" / f"kernels-{told.hexdigest()[:16]}.so"


def _processor() -> str:
    """The processor and what it can do, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _compile(path: Path, processor: str) -> bool:
    """Compile beside the place and move there when whole, so that processes that do so at once do not meet."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            compiled, linked = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
            for command in (
                [*compiler.split(), *_COMPILE, f"-march={processor}", str(_SOURCE), "-o", str(compiled)],
                [*compiler.split(), "-shared", str(compiled), "-o", str(linked)],
            ):
                subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
            linked.replace(path)
    except (OSError, subprocess.SubprocessError):
        return False
    return True
