"""The table for a GPU: tokens per second, time of a step, and the share of the limit that the rate of memory sets.

`python -m benchmarks.decode` prints it where CUDA is; `--gpu --size tiny` tries the programme on a processor, where the
figures say nothing. Each contender has a process of its own: `python -m benchmarks.decode.device '{...}'`, whose last
line is JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import probes
from benchmarks.checkpoints import make
from benchmarks.tasks import SIZES, Size

# name -> (module, arguments of generate, environment)
CONTENDERS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "transformers, eager": ("transformers", {}, {}),
    # it compiles its step by itself where the cache is static and the device CUDA
    "transformers, static cache and compiled": ("transformers", {"cache_implementation": "static"}, {}),
    "warmstart, without graphs": ("warmstart", {}, {"WARMSTART_GRAPHS": "0"}),
    "warmstart": ("warmstart", {}, {}),
}
BATCHES = (1, 32, 256)
TYPES = {"bfloat16": 2, "float16": 2, "float32": 4}
_WARM, _TIMED = 3, 5


def compare(given: argparse.Namespace, run: Callable[..., dict[str, Any]], settings: dict[str, str]) -> None:
    """Measure all contenders in one type, and print the table."""
    console, size = Console(highlight=False, width=150), SIZES[given.size]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="warmstart-decode-", dir=given.folder) as place:
        task = {"folder": str(make("bert2bert", size, Path(place))), "size": given.size, "dtype": given.dtype}
        for _ in range(given.runs):
            for name, (_, _, environment) in CONTENDERS.items():
                argument = json.dumps(task | {"contender": name})
                results[name].append(run(["benchmarks.decode.device", argument], os.environ | settings | environment))
    first = results["warmstart"][0]
    rate = max(record["gigabytes"] for records in results.values() for record in records)
    console.print(
        f"{first['device']}, torch {first['torch']}, {given.dtype}; copies at {rate:.0f} GB/s, read and written; "
        f"a {given.size} bert2bert, source {size.source}, {size.target} new tokens, greedy"
    )
    out = Table(title="new tokens per second, encoder included; a step, and the share of its limit; peak MB")
    for heading in ("", *(f"batch {batch}" for batch in BATCHES)):
        out.add_column(heading, justify="right")
    theirs = results["transformers, eager"][0]
    for name, records in results.items():
        out.add_row(name, *(_cell(records, str(batch), size, given.dtype, rate, theirs) for batch in BATCHES))
    limits = (step_bytes(batch, size, given.dtype) / rate / 1e6 for batch in BATCHES)
    out.add_row("limit of a step", *(f"{limit:.3f} ms" for limit in limits))
    console.print(out)
    console.print("equal: tokens that are those of transformers, eager; where two are as likely, either may come first")
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


def _cell(
    records: list[dict[str, Any]], batch: str, size: Size, dtype: str, rate: float, theirs: dict[str, Any]
) -> str:
    failed = [record[batch]["error"] for record in records if "error" in record[batch]]
    if failed:
        return failed[0]
    whole, encoder, peak = (
        probes.median([record[batch][name] for record in records]) for name in ("seconds", "first", "peak_mb")
    )
    step = (whole - encoder) / (size.target - 1)
    share = step_bytes(int(batch), size, dtype) / rate / 1e9 / step
    figures = f"{int(batch) * size.target / whole:.0f}/s; {step * 1e3:.2f} ms ({share:.0%}); {peak:.0f} MB"
    if "tokens" not in theirs[batch]:
        return figures
    pairs = list(zip(records[0][batch]["tokens"], theirs[batch]["tokens"], strict=True))
    return f"{figures}; {sum(x == y for x, y in pairs) / len(pairs):.0%} equal"


def step_bytes(batch: int, size: Size, dtype: str) -> float:
    """What a step must read: each of the decoder's weights, and each kept key and value, half of the target's."""
    h, layers = size.hidden, size.layers
    weights = layers * 14 * h * h + h * size.vocabulary["bert"] + h * h
    return TYPES[dtype] * (weights + layers * 2 * h * batch * (size.source + size.target / 2))


def main() -> None:
    """Do one contender's work, and print its figures."""
    import torch

    given = json.loads(sys.argv[1])
    size, dtype = SIZES[given["size"]], getattr(torch, given["dtype"])
    module, options, _ = CONTENDERS[given["contender"]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = importlib.import_module(module).EncoderDecoderModel.from_pretrained(given["folder"], dtype=dtype)
    model = model.eval().to(device)
    result: dict[str, Any] = {"torch": torch.__version__, "gigabytes": copy_rate(device)}
    result["device"] = torch.cuda.get_device_name() if device == "cuda" else "a processor, to try the programme"
    for batch in BATCHES:
        try:
            result[str(batch)] = measured(model, batch, options, size, device)
        except (RuntimeError, ValueError, TypeError) as error:
            result[str(batch)] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"}
    print(json.dumps(result))


def measured(model: Any, batch: int, options: dict[str, Any], size: Size, device: str) -> dict[str, Any]:
    """Seconds of a call, and of one with a single new token; the highest memory, and the first row's tokens."""
    import torch

    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, size.vocabulary["bert"], (batch, size.source), generator=draw).to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "num_beams": 1, "do_sample": False, **options}

    def seconds(new: int) -> tuple[float, Any]:
        times = []
        for count in range(_WARM + _TIMED):
            start = time.perf_counter()
            with torch.no_grad():
                tokens = model.generate(**inputs, max_new_tokens=new, min_new_tokens=new)
            if device == "cuda":
                torch.cuda.synchronize()
            times += [time.perf_counter() - start] if count >= _WARM else []
        return probes.median(times), tokens

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    probes.reset_peak()
    whole, tokens = seconds(size.target)
    peak = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else probes.memory()["peak_mb"]
    return {"seconds": whole, "first": seconds(1)[0], "peak_mb": peak, "tokens": tokens.flatten().tolist()}


def copy_rate(device: str) -> float:
    """Gigabytes that a copy of a large tensor reads and writes in a second, the best of some."""
    import torch

    count = 2**30 if device == "cuda" else 2**26
    source, target = (torch.zeros(count, dtype=torch.uint8, device=device) for _ in range(2))
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(5):
            target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 5 * 2 * count / (time.perf_counter() - start) / 1e9)
    return best


if __name__ == "__main__":
    main()
