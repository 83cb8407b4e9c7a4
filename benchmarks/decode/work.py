"""What one contender does in a process of its own: `python -m benchmarks.decode.work '{"contender": ..., ...}'`.

The last line printed is JSON: for each cell seconds, CPU seconds, and the highest memory meanwhile.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from benchmarks import probes
from benchmarks.decode.contenders import CELLS, CONTENDERS, load
from benchmarks.tasks import SIZES, Size


def main() -> None:
    """Do the work that the argument asks for, and print its figures."""
    given = json.loads(sys.argv[1])
    size = SIZES[given["size"]]
    model = load(given["contender"], given["folder"], size)
    probes.trim()
    result = documents(model, given, size) if given["work"] == "documents" else cells(model, given, size)
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
            probes.reset_peak()
            probe = probes.Probe()
            tokens = model.generate(**inputs, **options, max_new_tokens=size.target, min_new_tokens=size.target)
        results[name] = probe.stop() | {"peak_mb": probes.memory()["peak_mb"], "check": int(tokens.sum())}
    return results


def documents(model: Any, given: dict[str, Any], size: Size) -> dict[str, Any]:
    """Documents of very different lengths, with results that end when they end: ours refilled, others by eights."""
    import torch

    sources = corpus(given["count"], size)
    options = {"num_beams": 1, "do_sample": False}
    probes.reset_peak()
    with torch.no_grad():
        if CONTENDERS[given["contender"]][0] == "warmstart":
            probe = probes.Probe()
            done = [len(answer.sequences[0]) for answer in model.generate_many(sources, max_new_tokens=size.target)]
        else:
            probe, done = probes.Probe(), []
            for start in range(0, len(sources), 8):
                rows = sources[start : start + 8]
                longest = max(map(len, rows))
                ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
                result = model.generate(ids, attention_mask=(ids != 0).long(), max_new_tokens=size.target, **options)
                done += [result.shape[1]] * len(rows)
    return {"documents": probe.stop() | {"peak_mb": probes.memory()["peak_mb"], "check": len(done)}}


def corpus(count: int, size: Size) -> list[list[int]]:
    """Random ids; lengths are log-normal as those of CNN/DailyMail (mean 766 words, deviation about half of it; See et
    al. 2017), scaled so that the mean is the size's source length, and cut at twice that.
    """
    draw = random.Random(0)
    lengths = [min(2 * size.source, max(8, int(draw.lognormvariate(-0.11, 0.47) * size.source))) for _ in range(count)]
    return [[draw.randrange(5, size.vocabulary["bert"]) for _ in range(length)] for length in lengths]


if __name__ == "__main__":
    main()
