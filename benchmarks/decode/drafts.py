"""What drafts from the source gain and cost: `python -m benchmarks.decode.drafts`.

Greedy search with `prompt_lookup_num_tokens` beside greedy search without, calls alternate in one process, medians.
What the model writes is given, so that weights need no training and every pass does its usual work: an extract (spans
of the source, as a summary that copies), a correction of the source, its words in another order, or tokens that it does
not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import probes
from benchmarks.checkpoints import make
from benchmarks.decode.contenders import load
from benchmarks.tasks import SIZES, Size

TYPES = ("float32", "bfloat16", "int8")
SPANS = 3  # of an extract


def extract(source: list[int], length: int, draw: random.Random, vocabulary: int) -> list[int]:
    """Spans of the source, one after another."""
    size = -(-length // SPANS)
    starts = [draw.randrange(len(source) - size) for _ in range(SPANS)]
    return [token for start in starts for token in source[start : start + size]][:length]


def corrected(source: list[int], length: int, draw: random.Random, vocabulary: int) -> list[int]:
    """The source with every 20th word changed, from its beginning."""
    changed = foreign(source, length, draw, vocabulary)
    return [changed[place] if place % 20 == 19 else token for place, token in enumerate(source[:length])]


def shuffled(source: list[int], length: int, draw: random.Random, vocabulary: int) -> list[int]:
    """Words of the source: each stands there, hardly ever behind the one before."""
    return [draw.choice(source) for _ in range(length)]


def foreign(source: list[int], length: int, draw: random.Random, vocabulary: int) -> list[int]:
    """Tokens of the upper half of the vocabulary, where sources here have none."""
    return [draw.randrange(vocabulary // 2, vocabulary) for _ in range(length)]


WRITTEN: dict[str, Callable[..., list[int]]] = {
    "an extract": extract,
    "a correction": corrected,
    "the source's words": shuffled,
    "other words": foreign,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode.drafts", description=__doc__)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["float32", "int8"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--count", type=int, default=10, help="prompt_lookup_num_tokens (10)")
    parser.add_argument("--new", type=int, help="tokens written; those of the size (64 of base) if not given")
    parser.add_argument(
        "--written", nargs="+", choices=WRITTEN, default=list(WRITTEN), metavar="WHAT", help="which rows"
    )
    parser.add_argument("--runs", type=int, default=3, help="calls of each (3)")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cpu", action="store_true", help="CPU seconds of one thread, for a machine others use too")
    given = parser.parse_args()
    given.threads = 1 if given.cpu else given.threads
    import torch

    torch.set_num_threads(given.threads)
    size = SIZES[given.size]
    given.new = given.new or size.target
    print(
        f"Seconds of {given.new} tokens of a source of {size.source}; of them the source's, before the first token.\n"
    )
    print(
        "| type | batch | what is written | without drafts | with | the source | times as fast | without the source |"
    )
    print("| --- " * 8 + "|")
    with tempfile.TemporaryDirectory(prefix="warmstart-drafts-") as place:
        folder = str(make("bert2bert", size, Path(place)))
        for dtype in given.types:
            model = load(f"warmstart {dict(zip(TYPES, ('fp32', 'bf16', 'int8'), strict=True))[dtype]}", folder, size)
            for batch in given.batches:
                for name in given.written:
                    plain, drafted, source = compared(model, size, batch, WRITTEN[name], given)
                    seconds = f"{plain:.2f} | {drafted:.2f} | {source:.2f}"
                    faster = f"{plain / drafted:.2f} | {(plain - source) / (drafted - source):.2f}"
                    print(f"| {dtype} | {batch} | {name} | {seconds} | {faster} |")
                    sys.stdout.flush()


def compared(
    model: Any, size: Size, batch: int, written: Callable[..., list[int]], given: argparse.Namespace
) -> tuple[float, float, float]:
    """Seconds of a call without drafts, with them, and of one token alone: medians; the tokens are the same."""
    import torch

    draw, vocabulary = random.Random(0), size.vocabulary["bert"]
    sources = [[draw.randrange(5, vocabulary // 2) for _ in range(size.source)] for _ in range(batch)]
    targets = [written(source, given.new, draw, vocabulary) for source in sources]
    options = {
        "num_beams": 1,
        "do_sample": False,
        "prefix_allowed_tokens_fn": lambda row, ids: [targets[row][min(len(ids), given.new) - 1]],
    }
    ids = torch.tensor(sources)
    calls = {"plain": {"new": given.new}, "drafted": {"new": given.new, "drafts": given.count}, "source": {"new": 1}}
    times: dict[str, list[float]] = {name: [] for name in calls}
    results = []
    with torch.no_grad():
        for turn in range(given.runs + 1):
            for name, call in calls.items():
                probe = probes.Probe()
                how = {"max_new_tokens": call["new"], "min_new_tokens": call["new"]}
                how |= {"prompt_lookup_num_tokens": call.get("drafts")}
                result = model.generate(ids, attention_mask=torch.ones_like(ids), **options, **how)
                results.append(result)
                if turn:  # the first of each warms up
                    times[name].append(probe.stop()["cpu_seconds" if given.cpu else "seconds"])
    assert all(torch.equal(result, results[0][:, : result.shape[1]]) for result in results)
    return probes.median(times["plain"]), probes.median(times["drafted"]), probes.median(times["source"])


if __name__ == "__main__":
    main()
