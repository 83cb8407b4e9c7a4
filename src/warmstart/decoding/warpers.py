"""Processors that look at the scores alone: what shapes the distribution that is drawn from.

Shapes: r rows, v vocabulary.
"""

from __future__ import annotations

from warmstart.decoding.arrays import Array, Arrays, Position
from warmstart.decoding.scores import NEVER, Processor

E = 2.718281828459045
LARGEST = 3.4028234663852886e38
"""The largest finite number in 32 bits."""


def guided(xp: Arrays, scores: Array, without: Array, scale: float) -> Array:
    """Scores (r, v) taken away from those without the source: u + scale (s - u), log-probabilities s and u.

    Sanchez et al. 2023, "Stay on topic with Classifier-Free Guidance", section 2.
    """
    without = xp.log_softmax(without)
    return scale * (xp.log_softmax(scores) - without) + without


def temperature(xp: Arrays, value: float) -> Processor:
    """Divide the scores: below 1 sharpens the distribution, above 1 flattens it."""
    return Processor("temperature", lambda scores, ids, at: scores / value)


def top_k(xp: Arrays, k: int, keep: int = 1) -> Processor:
    """Keep the k likeliest tokens (Fan et al. 2018, section 5.4), at least `keep`; equals of the last one stay too."""

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        return xp.where(scores < _kth(xp, scores, max(k, keep)), NEVER, scores)

    return Processor("top_k", apply)


def top_p(xp: Arrays, p: float, keep: int = 1) -> Processor:
    """Keep the fewest likeliest tokens whose probabilities sum to p or more (Holtzman et al. 2020), at least `keep`.

    Equals of the last one stay too.
    """

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        vocabulary = scores.shape[-1]
        ascending = xp.sort(scores)
        unlikely = xp.cumsum(xp.softmax(ascending)) <= 1 - p
        unlikely = unlikely & (xp.arange(vocabulary) < vocabulary - keep)
        # what is unlikely comes first, so their number is where the rest begins
        least = xp.take(ascending, xp.sum(unlikely, 1, keepdims=True))
        return xp.where(scores < least, NEVER, scores)

    return Processor("top_p", apply)


def min_p(xp: Arrays, p: float, keep: int = 1) -> Processor:
    """Keep the tokens whose probability is at least p times that of the likeliest, and at least `keep`."""

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        probabilities = xp.softmax(scores)
        unlikely = probabilities < p * xp.max(probabilities, 1, keepdims=True)
        return xp.where(unlikely & (scores < _kth(xp, scores, keep)), NEVER, scores)

    return Processor("min_p", apply)


def _kth(xp: Arrays, scores: Array, k: int) -> Array:
    """The k-th largest score of each row (r, 1), or the smallest where there are fewer."""
    return xp.top_k(scores, min(k, scores.shape[-1]))[0][:, -1:]


def typical_p(xp: Arrays, mass: float, keep: int = 1) -> Processor:
    """Keep the tokens whose information is nearest the entropy, until their probabilities sum to `mass` or more.

    Meister et al. 2023, "Locally Typical Sampling", section 3.
    """

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        vocabulary = scores.shape[-1]
        log, probabilities = xp.log_softmax(scores), xp.softmax(scores)
        away = 0.0 - log - _entropy(xp, log, probabilities)
        away = xp.where(away < 0, 0.0 - away, away)
        nearest, order = xp.top_k(0.0 - away, vocabulary)
        count = xp.sum(xp.cumsum(xp.take(probabilities, order)) < mass, 1, keepdims=True)
        count = xp.where(count < keep - 1, keep - 1, count)
        count = xp.where(count > vocabulary - 1, vocabulary - 1, count)
        return xp.where(away > 0.0 - xp.take(nearest, count), NEVER, scores)

    return Processor("typical_p", apply)


def epsilon_cutoff(xp: Arrays, epsilon: float, keep: int = 1) -> Processor:
    """Keep the tokens of at least this probability (Hewitt et al. 2022, section 3), and at least `keep`."""

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        unlikely = xp.softmax(scores) < epsilon
        return xp.where(unlikely & (scores < _kth(xp, scores, keep)), NEVER, scores)

    return Processor("epsilon_cutoff", apply)


def eta_cutoff(xp: Arrays, epsilon: float, keep: int = 1) -> Processor:
    """Keep the tokens of a probability of at least min(epsilon, sqrt(epsilon) exp(-entropy)), and at least `keep`.

    Hewitt et al. 2022, "Truncation Sampling as Language Model Desmoothing", section 4.
    """

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        log, probabilities = xp.log_softmax(scores), xp.softmax(scores)
        eta = epsilon**0.5 * E ** (0.0 - _entropy(xp, log, probabilities))
        eta = xp.where(eta > epsilon, epsilon, eta)
        return xp.where((probabilities < eta) & (scores < _kth(xp, scores, keep)), NEVER, scores)

    return Processor("eta_cutoff", apply)


def remove_invalid(xp: Arrays) -> Processor:
    """Scores that are no numbers become 0, infinite ones the largest and smallest finite number."""

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        scores = xp.where(scores == scores, scores, 0.0)
        scores = xp.where(scores > LARGEST, LARGEST, scores)
        return xp.where(scores < -LARGEST, -LARGEST, scores)

    return Processor("remove_invalid_values", apply)


def renormalise(xp: Arrays) -> Processor:
    """Make the scores log-probabilities again."""
    return Processor("renormalize_logits", lambda scores, ids, at: xp.log_softmax(scores))


def _entropy(xp: Arrays, log: Array, probabilities: Array) -> Array:
    """Of each row (r, 1), in nats; what cannot come adds nothing."""
    return 0.0 - xp.sum(xp.where(probabilities > 0, probabilities * log, 0.0), 1, keepdims=True)
