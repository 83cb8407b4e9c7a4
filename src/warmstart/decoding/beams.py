"""Beam search: for each source the best k unfinished sequences are carried on, and the best k finished ones kept.

The algorithm is that of `transformers` since 4.50, whose rule for stopping is a heuristic: what an unfinished sequence
may reach is taken to be its score divided by its present length (to the power of the length penalty).

Shapes: b sources, k beams, c candidates (some multiple of k), p prompt length, n length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from warmstart.decoding.arrays import Array, Arrays, Position, repeat, write
from warmstart.decoding.settings import Plan
from warmstart.decoding.stopping import Stop
from warmstart.generation_config import GenerationConfig

LOW = -1.0e9
"""Added to a score to take it out of the running, and still to be ordered among the others that are."""

Select = Callable[[Array, int], tuple[Array, Array]]
"""Scores (b, k * v) and a count c -> c of them (b, c), and where they stand: the best, or drawn at random."""


@dataclass(frozen=True)
class BeamSettings:
    """What stays the same through a search.

    `early_stopping`: True ends a source's search once it has k finished sequences; False when its best unfinished one
    cannot win at its present length; "never" when it cannot at any length.
    `length_penalty`: a finished sequence's log-probability is divided by its number of new tokens to this power.
    """

    beams: int
    prompt_length: int
    max_length: int
    candidates: int
    pad: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False


def settings_of(plan: Plan, config: GenerationConfig, beams: int) -> BeamSettings:
    """What stays the same through a search with so many beams."""
    return BeamSettings(
        beams=beams,
        prompt_length=plan.prompt_length,
        max_length=plan.max_length,
        # so many that k unfinished ones remain if each beam's likeliest tokens are all end tokens
        candidates=max(2, 1 + len(plan.eos)) * beams,
        pad=plan.pad,
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
    )


class Beams(NamedTuple):
    """The state. An origin is the row (source * k + beam) that a token was appended to; -1 where there is no token."""

    at: Position  # how many tokens the unfinished sequences hold: one number, or a column (b, 1)
    ids: Array  # (b, k, n) unfinished sequences
    scores: Array  # (b, k) the sums of their scores
    origins: Array  # (b, k, n - p)
    rows: Array  # (b * k,) the row each unfinished sequence continues: how the cache is to be reordered
    found: Array  # (b, k, n) finished sequences, best first
    found_scores: Array  # (b, k) their scores, LOW where there is none yet
    found_origins: Array  # (b, k, n - p)
    is_found: Array  # (b, k)
    improvable: Array  # (b, 1) whether an unfinished sequence may still do better than a finished one
    done: Array  # (b, 1) whether nothing that comes can change what a source has found
    going: Array  # () whether to go on


def start(xp: Arrays, prompt: Array, settings: BeamSettings) -> Beams:
    """The k beams of each source, holding its prompt (b, p); the first alone counts, for they are all the same."""
    sources, at = prompt.shape
    beams, length = settings.beams, settings.max_length
    room = xp.full((sources, beams, length - at), settings.pad)
    ids = xp.concat([xp.take(prompt[:, None, :], xp.full((sources, beams), 0)), room], 2)
    origins = xp.full((sources, beams, length - at), -1)
    return Beams(
        at=at,
        ids=ids,
        scores=xp.where(xp.arange(beams) > 0, LOW, xp.full((sources, beams), 0.0)),
        origins=origins,
        rows=xp.arange(sources * beams),
        found=ids,
        found_scores=xp.full((sources, beams), LOW),
        found_origins=origins,
        is_found=xp.full((sources, beams), False),
        improvable=xp.full((sources, 1), True),
        done=xp.full((sources, 1), False),
        going=xp.all(xp.full((1,), True)),
    )


def step(xp: Arrays, state: Beams, scores: Array, settings: BeamSettings, select: Select, stop: Stop) -> Beams:
    """Add a token to each unfinished sequence by the scores of the vocabulary (b * k, v)."""
    sources, beams, length = state.ids.shape
    vocabulary, candidates = scores.shape[-1], settings.candidates

    total = xp.reshape(scores, (sources, beams, vocabulary)) + state.scores[:, :, None]
    best, index = select(xp.reshape(total, (sources, beams * vocabulary)), candidates)
    beam, token = index // vocabulary, index % vocabulary
    row = beam + xp.arange(sources)[:, None] * beams
    ids = write(xp, xp.take(state.ids, beam), state.at, token)
    origins = write(xp, xp.take(state.origins, beam), state.at - settings.prompt_length, row)
    at = state.at + 1
    flat = (sources * candidates,)
    ended = stop(xp.reshape(ids, (*flat, length)), xp.reshape(token, flat), repeat(xp, at, candidates))
    ended = xp.reshape(ended, (sources, candidates))

    running, order = xp.top_k(best + xp.to_float(ended) * LOW, beams)
    found = _with_finished(xp, state, settings, at, best, ids, origins, ended)
    improvable = state.improvable & _improvable(xp, settings, at, running, *found[1::2])
    done = ~improvable | xp.all(ended, 1, keepdims=True)
    going = xp.any(improvable) & ~xp.all(ended)
    if settings.early_stopping is True:
        done = done | xp.all(found[3], 1, keepdims=True)
        going = going & ~xp.all(found[3])
    return Beams(
        at,
        xp.take(ids, order),
        running,
        xp.take(origins, order),
        xp.reshape(xp.take(row, order), (sources * beams,)),
        *found,
        improvable,
        state.done | done,
        going,
    )


def _with_finished(
    xp: Arrays,
    state: Beams,
    settings: BeamSettings,
    at: Position,
    scores: Array,
    ids: Array,
    origins: Array,
    ended: Array,
) -> tuple[Array, Array, Array, Array]:
    """The best k of the finished sequences so far and those that have just ended."""
    # a candidate beyond the best k is only there so that k unfinished ones remain
    new = ended & (xp.arange(settings.candidates) < settings.beams)
    scores = scores / xp.to_float(at - settings.prompt_length) ** settings.length_penalty
    if settings.early_stopping is True:
        scores = scores + xp.to_float(xp.all(state.is_found, 1, keepdims=True)) * LOW
    scores = scores + xp.to_float(~state.improvable) * LOW
    scores = scores + xp.to_float(~new) * LOW
    merged, order = xp.top_k(xp.concat([state.found_scores, scores], 1), settings.beams)
    return (
        xp.take(xp.concat([state.found, ids], 1), order),
        merged,
        xp.take(xp.concat([state.found_origins, origins], 1), order),
        xp.take(xp.concat([state.is_found, new], 1), order),
    )


def _improvable(
    xp: Arrays, settings: BeamSettings, at: Position, running: Array, found_scores: Array, is_found: Array
) -> Array:
    """Whether the best unfinished sequence may still beat the worst finished one: (b, 1)."""
    longest = settings.early_stopping == "never" and settings.length_penalty > 0
    length = (settings.max_length if longest else at) - settings.prompt_length
    possible = running[:, :1] / xp.to_float(length) ** settings.length_penalty
    worst = xp.where(is_found, xp.min(found_scores, 1, keepdims=True), LOW)
    return xp.any(possible > worst, 1, keepdims=True)


def finish(xp: Arrays, state: Beams, sequences: int) -> tuple[Array, Array, Array, Array]:
    """The best `sequences` of each source, rows in order of source: ids (b * m, n), scores (b * m,), origins
    (b * m, n - p), and the number of new tokens of the longest, a scalar.
    """
    sources, _, length = state.found.shape
    rows = sources * sequences
    ids = xp.reshape(state.found[:, :sequences], (rows, length))
    origins = xp.reshape(state.found_origins[:, :sequences], (rows, state.found_origins.shape[-1]))
    longest = xp.max(xp.sum(origins >= 0, 1))
    return ids, xp.reshape(state.found_scores[:, :sequences], (rows,)), origins, longest
