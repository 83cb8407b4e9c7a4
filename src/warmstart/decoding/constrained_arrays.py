"""Constrained beam search for compiled loops: its state as arrays, and the step in Python that such a loop calls.

What `constrained` keeps in lists stands here in numbers of fixed shapes, which a framework carries through its loop and
hands to the host for each step (`jax.pure_callback`, `tf.numpy_function`). The functions take nested lists (`tolist()`)
and give nested lists.

Shapes: b sources, k beams, c candidates, w words (the tokens of the constraints), p prompt length, n longest length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from warmstart.decoding.arrays import Array, Arrays
from warmstart.decoding.beams import LOW, BeamSettings
from warmstart.decoding.constrained import Beam, Search, finish, step
from warmstart.decoding.constraints import DisjunctiveConstraint


class Constrained(NamedTuple):
    """The state. An origin is the row (source * k + beam) that a token was appended to; -1 where there is no token."""

    at: Any  # how many tokens the unfinished sequences hold
    ids: Array  # (b, k, n) unfinished sequences
    scores: Array  # (b, k) the sums of their scores
    origins: Array  # (b, k, n - p)
    rows: Array  # (b * k,) the row each unfinished sequence continues
    found: Array  # (b, k, n) finished sequences, in the order in which they were found
    found_scores: Array  # (b, k) LOW where there is none
    found_origins: Array  # (b, k, n - p)
    done: Array  # (b,)


def start(xp: Arrays, prompt: Array, settings: BeamSettings) -> Constrained:
    """The k beams of each source, holding its prompt (b, p); the first alone counts, for they are all the same."""
    sources, at = prompt.shape
    beams, length = settings.beams, settings.max_length
    room = xp.full((sources, beams, length - at), settings.pad)
    ids = xp.concat([xp.take(prompt[:, None, :], xp.full((sources, beams), 0)), room], 2)
    origins = xp.full((sources, beams, length - at), -1)
    return Constrained(
        at=at,
        ids=ids,
        scores=xp.where(xp.arange(beams) > 0, LOW, xp.full((sources, beams), 0.0)),
        origins=origins,
        rows=xp.arange(sources * beams),
        found=ids,
        found_scores=xp.full((sources, beams), LOW),
        found_origins=origins,
        done=xp.full((sources,), False),
    )


def words_of(constraints: Sequence[DisjunctiveConstraint]) -> list[int]:
    """The tokens that bring a constraint further: those whose scores a step must know, beside the best ones."""
    return sorted({token for item in constraints for words in item.alternatives for token in words})


def on_host(
    state: Constrained,
    best: list[list[float]],
    index: list[list[int]],
    of_words: list[list[list[float]]],
    vocabulary: int,
    settings: BeamSettings,
    constraints: Sequence[DisjunctiveConstraint],
    eos: Sequence[int],
) -> Constrained:
    """Add a token to each beam; `state` and what is returned are nested lists.

    `best` (b, c) are the best sums of scores, best first, and `index` (b, c) where they stand in (k * vocabulary);
    `of_words` (b, k, w) are those of `words_of(constraints)`.
    """
    place = {token: i for i, token in enumerate(words_of(constraints))}
    searches = _searches(state, settings)
    for number, search in enumerate(searches):
        candidates = [
            (score, i // vocabulary, i % vocabulary) for score, i in zip(best[number], index[number], strict=True)
        ]
        held = of_words[number]
        step(search, candidates, lambda beam, token, held=held: held[beam][place[token]], settings, constraints, eos)  # type: ignore[misc]
    return _numbers(searches, state.at + 1, settings)


def finish_on_host(
    state: Constrained, settings: BeamSettings, constraints: Sequence[DisjunctiveConstraint], sequences: int
) -> tuple[list[list[int]], list[float], list[list[int]]]:
    """The best m `sequences` of each source: ids (b * m, n), scores (b * m,), origins (b * m, n - p)."""
    ids, scores, origins = [], [], []
    for search in _searches(state, settings):
        for score, beam in finish(search, settings, constraints, sequences):
            ids.append(_filled(beam.tokens, settings.max_length, settings.pad))
            scores.append(score)
            origins.append(_filled(beam.origins, settings.max_length - settings.prompt_length, -1))
    return ids, scores, origins


def _searches(state: Constrained, settings: BeamSettings) -> list[Search]:
    new, prompt = state.at - settings.prompt_length, settings.prompt_length
    searches = []
    for number, done in enumerate(state.done):
        beams = [
            Beam(ids[: state.at], score, tuple(origins[:new]))
            for ids, score, origins in zip(state.ids[number], state.scores[number], state.origins[number], strict=True)
        ]
        found = []
        for ids, score, origins in zip(
            state.found[number], state.found_scores[number], state.found_origins[number], strict=True
        ):
            if score > LOW / 2:
                held = sum(origin >= 0 for origin in origins)
                found.append((score, Beam(ids[: prompt + held], 0.0, tuple(origins[:held]))))
        searches.append(Search(number * settings.beams, beams, found, done))
    return searches


def _numbers(searches: list[Search], at: int, settings: BeamSettings) -> Constrained:
    length, beams = settings.max_length, settings.beams
    new = length - settings.prompt_length
    nothing = (LOW, Beam([], 0.0))
    held = [[*search.found, *[nothing] * (beams - len(search.found))] for search in searches]
    return Constrained(
        at=at,
        ids=[[_filled(beam.tokens, length, settings.pad) for beam in search.beams] for search in searches],
        scores=[[beam.score for beam in search.beams] for search in searches],
        origins=[[_filled(beam.origins, new, -1) for beam in search.beams] for search in searches],
        rows=[search.row + beam.beam for search in searches for beam in search.beams],
        found=[[_filled(beam.tokens, length, settings.pad) for _, beam in found] for found in held],
        found_scores=[[score for score, _ in found] for found in held],
        found_origins=[[_filled(beam.origins, new, -1) for _, beam in found] for found in held],
        done=[search.done for search in searches],
    )


def _filled(values: Sequence[int], length: int, value: int) -> list[int]:
    return [*values, *[value] * (length - len(values))]
