"""Held-out measurement: ROUGE of what a model writes, beside the input's own first sentence."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from warmstart.demo.batches import padded
from warmstart.demo.corpus import Pair
from warmstart.demo.recipe import IGNORED, Examples

MEASURES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
BATCH = 50
RESAMPLES = 1000


def first_sentence(source: str) -> str:
    """What a reader sees first: of prose its first sentence, of code the line with `def`.

    >>> first_sentence("def area(width, height): return width * height")
    'def area(width, height):'
    >>> first_sentence("Area of a box. See also volume.")
    'Area of a box.'
    """
    header = re.match(r"(?:async )?def .*?\)(?: ?->.*?)? ?:(?= |$)", source)
    return header.group() if header else re.split(r"(?<=[.!?])\s", source, maxsplit=1)[0]


def write_summaries(
    model: Any, tokenizer: Any, sources: Sequence[str], watch: Callable[[float], None] = lambda share: None
) -> list[str]:
    """What a model writes for each source, with its own settings of `generate`."""
    written: list[str] = []
    for start in range(0, len(sources), BATCH):
        batch = tokenizer(list(sources[start : start + BATCH]), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        written += tokenizer.batch_decode(ids, skip_special_tokens=True)
        watch(len(written) / len(sources))
    return written


def rouge(written: Sequence[str], pairs: Sequence[Pair]) -> dict[str, list[float]]:
    """ROUGE F1 of each summary against its reference, 0 to 100 (Lin 2004; words stemmed)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(MEASURES), use_stemmer=True)
    scores = [scorer.score(pair.summary, text) for pair, text in zip(pairs, written, strict=True)]
    return {measure: [100 * score[measure].fmeasure for score in scores] for measure in MEASURES}


def held_out_loss(model: Any, examples: Examples) -> float:
    """Cross-entropy of the references in nats per token."""
    total = count = 0.0
    for start in range(0, len(examples.sources), BATCH):
        ids = padded(examples.sources[start : start + BATCH], model.config.encoder.pad_token_id)
        labels = padded(examples.labels[start : start + BATCH], IGNORED)
        tokens = int((labels != IGNORED).sum())
        with torch.no_grad():
            total += tokens * model(input_ids=ids, labels=labels).loss.item()
        count += tokens
    return total / count


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def gain_interval(better: Sequence[float], other: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean difference of paired scores, by bootstrap (Koehn 2004).

    >>> gain_interval([3.0, 3.0, 3.0], [1.0, 1.0, 1.0])
    (2.0, 2.0)
    """
    differences = [a - b for a, b in zip(better, other, strict=True)]
    chooser = random.Random(seed)
    means = sorted(mean(chooser.choices(differences, k=len(differences))) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
