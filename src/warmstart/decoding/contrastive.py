"""Contrastive search: of the likeliest tokens, the one that is likely and unlike what was there already.

Su et al. 2022, "A Contrastive Framework for Neural Text Generation", section 4.2.

Shapes: b rows, k candidates, n length, h hidden size.
"""

from __future__ import annotations

from warmstart.decoding.arrays import Array, Arrays


def choose(
    xp: Arrays, probabilities: Array, candidates: Array, context: Array, real: Array | None, alpha: float
) -> Array:
    """Which of the candidates of each row (b,).

    `probabilities` (b, k) are theirs; `candidates` (b, k, h) their hidden states, `context` (b, n, h) those of the
    tokens before, and `real` (b, n) which of these are tokens. A candidate's score is (1 - alpha) times its
    probability, less alpha times its largest cosine similarity to a token before.
    """
    similarity = xp.sum(_unit(xp, candidates)[:, :, None] * _unit(xp, context)[:, None], -1)
    if real is not None:
        similarity = xp.where(real[:, None, :], similarity, float("-inf"))
    return xp.argmax(probabilities * (1.0 - alpha) - xp.max(similarity, -1) * alpha)


def _unit(xp: Arrays, x: Array) -> Array:
    return x / xp.sum(x * x, -1, keepdims=True) ** 0.5
