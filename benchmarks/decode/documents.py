"""Many documents of very different lengths, whose summaries end when they end.

The sources' lengths spread as those of CNN/DailyMail do, and so do those of what is written, about 70 tokens with a
deviation of 25 (its summaries have 56 words on average): weights are random, but end tokens are likelier than chance
would have them, and no three tokens come twice, which keeps random weights from going round in circles.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import probes
from benchmarks.decode.contenders import BYTES, CONTENDERS
from benchmarks.tasks import Size

SETTINGS = {"num_beams": 1, "do_sample": False, "max_length": 142, "min_length": 40, "no_repeat_ngram_size": 3}
BATCH = 8  # of libraries that take batches, in the order of the documents
END = {768: 2.02, 32: 0.3}  # hidden size -> what is added to the logit of the end token

Results = dict[str, list[dict[str, Any]]]


def make_ending(pair_folder: Path, place: Path, size: Size) -> Path:
    """A checkpoint as another, but for an end token that comes earlier; gives its folder."""
    import torch

    import warmstart

    model = warmstart.EncoderDecoderModel.from_pretrained(pair_folder)
    with torch.no_grad():
        model.decoder.head.output.bias[model.generation_config.eos_token_id] += END[size.hidden]
    model.save_pretrained(place / "documents")
    return place / "documents"


def corpus(count: int, size: Size) -> list[list[int]]:
    """Random ids; lengths are log-normal as those of CNN/DailyMail (mean 766 words, deviation about half of it; See et
    al. 2017), scaled so that the mean is the size's source length, and cut at twice that.
    """
    draw = random.Random(0)
    lengths = [min(2 * size.source, max(8, int(draw.lognormvariate(-0.11, 0.47) * size.source))) for _ in range(count)]
    return [[draw.randrange(5, size.vocabulary["bert"]) for _ in range(length)] for length in lengths]


def work(model: Any, contender: str, count: int, size: Size) -> dict[str, Any]:
    """Write for all documents, ours refilled, others by eights; what was written is among the figures."""
    import torch

    sources = corpus(count, size)
    with torch.no_grad():
        model.generate(torch.tensor([sources[0][:8]]), max_new_tokens=2)  # what is made once is there now
        probes.reset_peak()
        probe = probes.Probe()
        if CONTENDERS[contender][0] == "warmstart":
            written = [answer.sequences[0].tolist() for answer in model.generate_many(sources, **SETTINGS)]
        else:
            written = []
            for start in range(0, len(sources), BATCH):
                rows = sources[start : start + BATCH]
                longest = max(map(len, rows))
                ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
                written += model.generate(ids, attention_mask=(ids != 0).long(), **SETTINGS).tolist()
    figures = probe.stop() | {"peak_mb": probes.memory()["peak_mb"]}
    return {"documents": figures | {"written": [_ended(row) for row in written]}}


def _ended(row: list[int]) -> list[int]:
    """A row without what stands before it and behind its end: the start token, padding."""
    row = row[1:]
    return row[: row.index(2) + 1] if 2 in row else row


def limit(lengths: list[int], count: int, dtype: str, size: Size, machine: dict[str, Any]) -> tuple[float, float]:
    """Seconds that nothing can pass: of the sources, by operations alone, and of what is written, `lengths` tokens.

    All documents are written together, so that each step reads the weights once for all; what is kept of a source is
    read once for each token that is written to it. Both go at the rates that the machine was measured to have.
    """
    h, layers = size.hidden, size.layers
    weight_bytes, kept_bytes = BYTES[dtype]
    rate = machine[{"float32": "gflops", "bfloat16": "gflops_bf16", "int8": "gflops_int8"}[dtype]] * 1e9
    sources = [len(source) for source in corpus(count, size)]
    weights = layers * 14 * h * h + h * size.vocabulary["bert"] + h * h
    reading = sum(n * layers * 2 * (12 * h * h + 2 * h * n + 2 * h * h) for n in sources) / rate
    seen = sum(t * layers * 2 * h * (n + t / 2) for n, t in zip(sources, lengths, strict=True))
    bytes_read = max(lengths) * weights * weight_bytes + seen * kept_bytes
    return reading, max(bytes_read / (machine["gigabytes"] * 1e9), 2 * (sum(lengths) * weights + seen) / rate)


def table(results: Results, size: Size, machine: dict[str, Any], given: argparse.Namespace) -> tuple[Table, str]:
    """One row for each contender, the limit of its type beside it; and what the columns say."""
    count = given.documents
    sources = [len(source) for source in corpus(count, size)]
    out = Table(title=f"{count} documents of {_spread(sources)} tokens")
    for heading in ("", "seconds", "limit", "share", "x transformers fp32", "written", "equal", "peak MB"):
        out.add_column(heading, justify="right")
    of = {name: [record["documents"] for record in records] for name, records in results.items()}
    clock = "cpu_seconds" if given.cpu else "seconds"
    time = {name: statistics.median(record[clock] for record in records) for name, records in of.items()}
    reference = of["transformers fp32"][0]["written"] if "transformers fp32" in of else None
    for name, records in of.items():
        written = records[0]["written"]
        lengths = [len(row) for row in written]
        parts = limit(lengths, count, CONTENDERS[name][1], size, machine)
        out.add_row(
            name,
            f"{time[name]:.1f}",
            f"{parts[0]:.1f} + {parts[1]:.1f}",
            f"{sum(parts) / time[name]:.0%}",
            "" if reference is None else f"{time['transformers fp32'] / time[name]:.2f}",
            _spread(lengths),
            "" if reference is None else f"{equal(written, reference):.2%}",
            f"{statistics.median(record['peak_mb'] for record in records):.0f}",
        )
    says = (
        "limit: seconds for the sources' operations, and for what is written, bytes or operations, whichever is more; "
        "written: tokens, mean and deviation; equal: the share of tokens that are those of transformers in float32"
    )
    return out, says


def equal(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of positions that hold the same token; a sequence that is longer differs there."""
    pairs = list(zip(ours, theirs, strict=True))
    same = sum(a == b for row, other in pairs for a, b in zip(row, other, strict=False))
    return same / sum(max(len(row), len(other)) for row, other in pairs)


def _spread(lengths: list[int]) -> str:
    return f"{statistics.mean(lengths):.0f} ± {statistics.pstdev(lengths):.0f}"
