"""What one contender does in a process of its own: `python -m benchmarks.decode.work '{"contender": ..., ...}'`.

The last line printed is JSON: for each cell seconds, CPU seconds, the highest memory meanwhile, and that of the process
before the first of them, loading included.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks import probes
from benchmarks.decode import documents
from benchmarks.decode.contenders import CELLS, load
from benchmarks.tasks import SIZES, Size


def main() -> None:
    """Do the work that the argument asks for, and print its figures."""
    given = json.loads(sys.argv[1])
    size = SIZES[given["size"]]
    model = load(given["contender"], given["folder"], size)
    loading = {"loading_mb": probes.memory()["peak_mb"]}
    count = given["documents"]
    if count:
        probes.trim()
        result = documents.work(model, given["contender"], count, size)
    else:
        result = {name: figures | loading for name, figures in cells(model, given, size).items()}
    print(json.dumps(result))


def cells(model: Any, given: dict[str, Any], size: Size) -> dict[str, Any]:
    """All tokens forced, one batch for each cell."""
    import torch

    ids = torch.randint(5, size.vocabulary["bert"], (8, size.source), generator=torch.Generator().manual_seed(0))
    results = {}
    for name in given["cells"]:
        batch, beams = CELLS[name]
        inputs = {"input_ids": ids[:batch], "attention_mask": torch.ones_like(ids[:batch])}
        options = {"num_beams": beams, "do_sample": False}
        with torch.no_grad():
            model.generate(**inputs, **options, max_new_tokens=2, min_new_tokens=2)
            probes.trim()  # else a small batch behind a large one would count what that one left free
            probes.reset_peak()
            probe = probes.Probe()
            tokens = model.generate(**inputs, **options, max_new_tokens=size.target, min_new_tokens=size.target)
        results[name] = probe.stop() | {"peak_mb": probes.memory()["peak_mb"], "check": int(tokens.sum())}
    return results


if __name__ == "__main__":
    main()
