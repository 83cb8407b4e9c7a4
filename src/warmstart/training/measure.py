"""How good a model is: its loss on pairs, what it writes for them, and how near that comes to the references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from warmstart.inputs import IGNORED
from warmstart.training.batches import collate, plan, source_of
from warmstart.training.examples import Examples
from warmstart.training.extras import needs
from warmstart.training.loss import PairLoss

METRICS = ("rouge1", "rouge2", "rougeL", "bleu", "chrf", "exact")
_ROUGE = METRICS[:3]


def held_out_loss(model: Any, examples: Examples, budget: int) -> float:
    """Cross-entropy of the targets in nats per token, without smoothing or dropout."""
    was_training, total = model.training, torch.zeros((), dtype=torch.float64)
    loss, pad = PairLoss(model.eval()), model.config.encoder.pad_token_id
    lengths = examples.lengths("source"), examples.lengths("target")
    with torch.no_grad():
        for rows in plan(*lengths, budget, seed=0, epoch=0):
            batch = collate(examples, rows, 0 if pad is None else pad)
            total += loss(**{name: value.to(model.device) for name, value in batch.items()}, count=1).double().cpu()
    model.train(was_training)
    return float(total) / int(lengths[1].sum())


def written(
    model: Any, examples: Examples, tokenizer: Any, budget: int, settings: Mapping[str, Any] | None = None
) -> list[str]:
    """What a model writes for each source, with its own settings of `generate` or those given."""
    was_training, pad = model.training, model.config.encoder.pad_token_id
    model.eval()
    texts = [""] * len(examples)
    lengths = examples.lengths("source"), examples.lengths("target")
    for rows in plan(*lengths, budget, seed=0, epoch=0):
        batch = collate(examples, rows, 0 if pad is None else pad)
        ids = model.generate(**source_of(model, batch), **(settings or {}))
        for row, text in zip(rows, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            texts[row] = text.strip()
    model.train(was_training)
    return texts


def parts(texts: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """What each metric counts, for each text (texts, counts): summed over texts, it gives that metric of all of them.

    ROUGE F1 (Lin 2004) with stemmed words and exact match are themselves; BLEU (Papineni et al. 2002) and chrF
    (Popović 2015) count n-grams, as sacrebleu does, because they are defined over a whole set of texts.

    Raises:
        ImportError: rouge-score or sacrebleu is not installed.
        ValueError: there is not one reference for each text.
    """
    if len(texts) != len(references) or not texts:
        raise ValueError(f"{len(texts)} texts and {len(references)} references; give one for each, and one at least")
    with needs("rouge_score", "ROUGE scores"):
        from rouge_score.rouge_scorer import RougeScorer
    with needs("sacrebleu", "BLEU and chrF"):
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    scorer = RougeScorer(list(_ROUGE), use_stemmer=True)
    scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    found = {name: np.array([[100 * score[name].fmeasure] for score in scores]) for name in _ROUGE}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        found[name] = np.array(metric._extract_corpus_statistics(list(texts), [list(references)]))
    same = [100.0 * (text.strip() == reference.strip()) for text, reference in zip(texts, references, strict=True)]
    return found | {"exact": np.array(same)[:, None]}


def scores(counted: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Each metric from 0 to 100, from what `parts` counted over some texts.

    >>> both = parts(["the cat sat", "a dog"], ["the cat sat", "one bird"])
    >>> {name: round(value) for name, value in scores(both).items() if name in ("rouge1", "exact")}
    {'rouge1': 50, 'exact': 50}
    """
    return {name: _score(name, values.sum(0), len(values)) for name, values in counted.items()}


def _score(name: str, sums: np.ndarray, texts: int) -> float:
    if name == "bleu":
        from sacrebleu.metrics.bleu import BLEU

        return float(BLEU()._compute_score_from_stats(sums.tolist()).score)
    if name == "chrf":
        from sacrebleu.metrics.chrf import CHRF

        return float(CHRF()._compute_score_from_stats(sums.tolist()).score)
    return float(sums[0]) / texts


def bootstrap(counted: Mapping[str, np.ndarray], draws: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """Each metric of so many sets of texts, drawn from the texts with replacement (draws); Koehn 2004.

    The same seed draws the same texts, so that two models' draws are pairs.
    """
    draw = np.random.default_rng(seed)
    texts = len(next(iter(counted.values())))
    weights = draw.multinomial(texts, np.full(texts, 1 / texts), size=draws)
    return {
        name: np.array([_score(name, sums, texts) for sums in weights @ values]) for name, values in counted.items()
    }


def interval(values: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """The middle share of some values.

    >>> interval(np.arange(101.0))
    (2.5, 97.5)
    """
    rest = 50 * (1 - share)
    low, high = np.percentile(values, [rest, 100 - rest])
    return round(float(low), 12), round(float(high), 12)


def significance(one: np.ndarray, other: np.ndarray, observed: float) -> float:
    """The two-sided p-value of a difference, from the paired bootstrap of two models (draws).

    The share of draws whose difference, moved to have no mean, is at least as large as the `observed` one.
    """
    difference = one - other
    beyond = np.abs(difference - difference.mean()) >= abs(observed)
    return float((beyond.sum() + 1) / (len(difference) + 1))


def label_count(labels: torch.Tensor) -> int:
    """How many labels count."""
    return int((labels != IGNORED).sum())
