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

_SOURCE = Path(__file__).with_name("kernels.cpp")
# The threads are those of torch's OpenMP: its library is loaded already, a second one would fight it for the cores.
_COMPILE = ["-O3", "-std=c++17", "-march=native", "-fPIC", "-fopenmp", "-c"]
_SECONDS = 180

_POINTER, _INTEGER, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Matrix(ctypes.Structure):
    """One weight matrix as the kernels see it: data (n, k), bias (n,) or null, n."""

    _fields_ = [("data", _POINTER), ("bias", _POINTER), ("outputs", _INTEGER)]


_ARGUMENTS = {
    "warmstart_linear": [_POINTER, *[_INTEGER] * 2, _POINTER, *[_INTEGER] * 2, _POINTER],
    "warmstart_even": [_POINTER, *[_INTEGER] * 2, *[_POINTER] * 2],
    "warmstart_uneven": [_POINTER, *[_INTEGER] * 2, *[_POINTER] * 2],
    "warmstart_attend_own": [
        *[_POINTER] * 3,
        *[_INTEGER] * 9,
        _REAL,
        *[_INTEGER] * 2,
        *[_POINTER] * 7,
    ],
    "warmstart_attend_source": [
        _POINTER,
        *[_INTEGER] * 2,
        _POINTER,
        *[_INTEGER] * 3,
        _REAL,
        _INTEGER,
        *[_POINTER] * 4,
    ],
    "warmstart_norm": [*[_POINTER] * 2, *[_INTEGER] * 2, *[_POINTER] * 2, _REAL, _INTEGER, *[_POINTER] * 2],
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels. The first call on a machine takes some seconds, later ones find the result."""
    path = _place()
    if not path.exists() and (os.environ.get("WARMSTART_COMPILE") == "0" or not _compile(path)):
        return None
    try:
        loaded = ctypes.CDLL(str(path))
        for name, arguments in _ARGUMENTS.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, None
    except (OSError, AttributeError):
        return None
    return loaded


def _place() -> Path:
    """Where the compiled kernels lie: by source, torch and processor, since they are made for this one."""
    told = hashlib.sha256(_SOURCE.read_bytes())
    for fact in (*_COMPILE, torch.__version__, sys.platform, platform.machine(), _processor()):
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


def _compile(path: Path) -> bool:
    """Compile beside the place and move there when whole, so that processes that do so at once do not meet."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            compiled, linked = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
            for command in (
                [*compiler.split(), *_COMPILE, str(_SOURCE), "-o", str(compiled)],
                [*compiler.split(), "-shared", str(compiled), "-o", str(linked)],
            ):
                subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
            linked.replace(path)
    except (OSError, subprocess.SubprocessError):
        return False
    return True
