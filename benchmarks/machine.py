"""Describes the machine and measures its limits: `python -m benchmarks.machine` prints them as JSON.

A limit is a time that no implementation can beat with the same arithmetic: floating-point operations over the rate of
matrix products, or bytes over the rate of memory.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.tasks import PAIRS, Size


def describe() -> dict[str, Any]:
    """What the figures of a table depend on."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
        "vectors": torch.backends.cpu.get_cpu_capability(),
    } | {name: version(name) for name in ("torch", "transformers", "warmstart")}


def limits() -> dict[str, float]:
    """The best rates seen: `gflops` of matrix products in each type, `gigabytes` read per second.

    Products are torch's and the engine's. Numbers in bf16 can also be multiplied in fp32: on processors where that is
    faster, it is the rate of both. Memory is read by a sum, in one stream for each thread, and by the engine's product
    with one row, in several: some processors' prefetchers make more of these.
    """
    import torch
    import torch.nn.functional as F

    from warmstart.torch.engine.int8 import Int8Linear
    from warmstart.torch.engine.products import product

    x, layer = torch.randn(2048, 768), torch.nn.Linear(768, 3072, bias=False).requires_grad_(False)
    brain, small = x.bfloat16(), x.to(torch.int8)
    brain_layer, small_layer = copy.deepcopy(layer).bfloat16(), Int8Linear(layer)
    small_weight = small_layer.weight.T.contiguous()

    def rate(*products: Callable[[], Any]) -> float:
        return 2 * 2048 * 768 * 3072 / min(map(_fastest, products)) / 1e9

    engine, brain_engine, small_engine = (product(each) for each in (layer, brain_layer, small_layer))
    exact = rate(lambda: layer(x), lambda: engine(x))
    has_dynamic = "fbgemm" in torch.backends.quantized.supported_engines
    dynamic = [_dynamic(x, layer.weight)] if has_dynamic else []
    integers = rate(lambda: torch._int_mm(small, small_weight), lambda: small_engine(x), *dynamic)
    big = torch.nn.Linear(768, 2**18 // 3, bias=False).requires_grad_(False)  # 256 MiB: larger than any cache here
    read = product(big)
    return {
        "gflops": exact,
        "gflops_bf16": max(exact, rate(lambda: F.linear(brain, brain_layer.weight), lambda: brain_engine(x))),
        "gflops_int8": max(exact, integers),
        "gigabytes": big.weight.nbytes / min(_fastest(big.weight.sum), _fastest(lambda: read(x[:1]))) / 1e9,
    }


def _dynamic(x: Any, weight: Any) -> Callable[[], Any]:
    """The product in int8 that rounds its inputs itself: the fastest of torch's where processors have no VNNI."""
    import torch

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this moves to another package
        rounded = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), {torch.nn.Linear})
    return lambda: rounded(x)


def flops(pair: str, size: Size) -> dict[str, float]:
    """Floating-point operations of one batch: `forward`, `train` (backward is twice as much), and its `step` bytes.

    Matrix products alone count, two operations for each multiplication; attention over all pairs of positions.
    """
    decoder = PAIRS[pair][1]
    h, s, t = size.hidden, size.source, size.target
    attend = 4 * h  # per query and key: scores and sums
    source = size.layers * (2 * 12 * h * h + attend * s)
    cross_pairs = size.layers * 2 * 2 * h * h
    target = size.layers * (2 * 14 * h * h + attend * (t + s)) + 2 * h * size.vocabulary[decoder]
    target += 2 * h * h if decoder == "bert" else 0  # the head's dense layer
    forward = size.batch * (s * (source + cross_pairs) + t * target)
    weights = size.layers * 14 * h * h + h * size.vocabulary[decoder]
    source_pairs = size.layers * size.batch * s * 2 * h
    return {
        "forward": forward,
        "train": 3 * forward,
        "source": size.batch * s * (source + cross_pairs),
        "step_bytes": 4 * (weights + source_pairs),
    }


def limit_seconds(work: str, pair: str | None, size: Size, rates: dict[str, float]) -> float | None:
    """The limit of a kind of work on a machine of these rates; None where there is none to state."""
    if pair is None or work not in ("forward", "train", "generate"):
        return None
    needs, operations, transfer = flops(pair, size), rates["gflops"] * 1e9, rates["gigabytes"] * 1e9
    if work == "generate":
        return needs["source"] / operations + size.target * needs["step_bytes"] / transfer
    return needs[work] / operations


def _fastest(function: Callable[[], Any], samples: int = 20, seconds: float = 2.0) -> float:
    """The least of so many times, or of fewer that take so long: where no instruction fits, a product takes seconds."""
    function()
    times: list[float] = []
    while len(times) < samples and sum(times) < seconds:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    print(json.dumps({**describe(), **limits()}))
