"""Diverse beam search: groups of beams, each a search of its own that is kept from choosing what those before it chose.

Vijayakumar et al. 2016, "Diverse Beam Search", with the bookkeeping of `transformers`: a finished sequence is an ended
one among a group's best g candidates; a group is done once it holds g of them and the best candidate could not win.

Shapes: b sources, k beams in groups of g, c candidates (some multiple of g), p prompt length, n length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from warmstart.decoding.arrays import Array, Arrays, Position, repeat, write
from warmstart.decoding.beams import LOW, BeamSettings
from warmstart.decoding.stopping import Stop

Score = Callable[[Array, Array, Array, "Array | None"], Array]
"""Log-probabilities (b * g, v) of a group, its ids (b * g, n), its rows (b * g,), and what the groups before chose
(b * g, any number) -> processed scores (b * g, v)."""


class Group(NamedTuple):
    """One group's sequences. An origin is the row (source * k + beam) that a token was appended to, else -1."""

    ids: Array  # (b, g, n) unfinished sequences
    scores: Array  # (b, g)
    origins: Array  # (b, g, n - p)
    found: Array  # (b, g, n) finished sequences, best first
    found_scores: Array  # (b, g) LOW where there is none yet
    found_origins: Array  # (b, g, n - p)
    is_found: Array  # (b, g)
    done: Array  # (b, 1)


class Groups(NamedTuple):
    """The state: `rows` (b * k,) is the row each unfinished sequence continues, `going` () whether to go on."""

    at: Position
    groups: tuple[Group, ...]
    rows: Array
    going: Array


def start(xp: Arrays, prompt: Array, settings: BeamSettings, count: int) -> Groups:
    """`count` groups that hold the prompt (b, p); `settings.beams` and `settings.candidates` are those of one group."""
    sources, at = prompt.shape
    beams, length = settings.beams, settings.max_length
    room = xp.full((sources, beams, length - at), settings.pad)
    ids = xp.concat([xp.take(prompt[:, None, :], xp.full((sources, beams), 0)), room], 2)
    origins = xp.full((sources, beams, length - at), -1)
    group = Group(
        ids=ids,
        scores=xp.where(xp.arange(beams) > 0, LOW, xp.full((sources, beams), 0.0)),
        origins=origins,
        found=ids,
        found_scores=xp.full((sources, beams), LOW),
        found_origins=origins,
        is_found=xp.full((sources, beams), False),
        done=xp.full((sources, 1), False),
    )
    return Groups(at, (group,) * count, xp.arange(sources * count * beams), xp.all(xp.full((1,), True)))


def ids_of(xp: Arrays, state: Groups) -> Array:
    """The unfinished sequences of all groups, rows in order of source, group and beam: (b * k, n)."""
    ids = xp.concat([group.ids for group in state.groups], 1)
    return xp.reshape(ids, (ids.shape[0] * ids.shape[1], ids.shape[2]))


def step(xp: Arrays, state: Groups, log: Array, settings: BeamSettings, score: Score, stop: Stop) -> Groups:
    """Add a token to each unfinished sequence by the log-probabilities (b * k, v); `stop` knows end tokens alone."""
    beams, count = settings.beams, len(state.groups)
    sources, vocabulary = state.groups[0].ids.shape[0], log.shape[-1]
    log = xp.reshape(log, (sources, count * beams, vocabulary))
    groups: list[Group] = []
    rows: list[Array] = []
    chosen: Array | None = None
    for index, group in enumerate(state.groups):
        first = index * beams
        flat = (sources * beams, vocabulary)
        own = xp.reshape(xp.arange(sources)[:, None] * (count * beams) + first + xp.arange(beams), (sources * beams,))
        ids = xp.reshape(group.ids, (sources * beams, group.ids.shape[-1]))
        before = None if chosen is None else _for_rows(xp, chosen, beams)
        scores = score(xp.reshape(log[:, first : first + beams], flat), ids, own, before)
        group, origin, token = _advance(
            xp, group, state.at, xp.reshape(scores, (sources, beams * vocabulary)), settings, stop, first, count * beams
        )
        groups.append(group)
        rows.append(origin)
        chosen = token if chosen is None else xp.concat([chosen, token], 1)
    done = xp.concat([group.done for group in groups], 1)
    return Groups(
        state.at + 1, tuple(groups), xp.reshape(xp.concat(rows, 1), (sources * count * beams,)), ~xp.all(done)
    )


def _for_rows(xp: Arrays, chosen: Array, beams: int) -> Array:
    """(b, m) of the sources as (b * g, m) of their rows."""
    sources, count = chosen.shape
    spread = chosen[:, None, :] + xp.full((sources, beams, count), 0)
    return xp.reshape(spread, (sources * beams, count))


def _advance(
    xp: Arrays,
    group: Group,
    at: Position,
    scores: Array,
    settings: BeamSettings,
    stop: Stop,
    first: int,
    per_source: int,
) -> tuple[Group, Array, Array]:
    """One group's step by the scores (b, g * v): the group, each beam's origin (b, g), its new token (b, g)."""
    sources, beams, length = group.ids.shape
    vocabulary, candidates = scores.shape[-1] // beams, settings.candidates
    total = xp.reshape(scores, (sources, beams, vocabulary)) + group.scores[:, :, None]
    best, index = xp.top_k(xp.reshape(total, (sources, beams * vocabulary)), candidates)
    beam, token = index // vocabulary, index % vocabulary
    row = beam + first + xp.arange(sources)[:, None] * per_source
    ids = write(xp, xp.take(group.ids, beam), at, token)
    origins = write(xp, xp.take(group.origins, beam), at - settings.prompt_length, row)
    flat = (sources * candidates,)
    ended = stop(xp.reshape(ids, (*flat, length)), xp.reshape(token, flat), repeat(xp, at + 1, candidates))
    ended = xp.reshape(ended, (sources, candidates))

    new = ended & (xp.arange(candidates) < beams) & ~group.done
    found = _merge(xp, group, settings, at + 1, new, best, ids, origins)
    longest = settings.early_stopping == "never" and settings.length_penalty > 0
    span = (settings.max_length if longest else at + 1) - settings.prompt_length
    possible = best[:, :1] / xp.to_float(span) ** settings.length_penalty
    enough = xp.all(found[3], 1, keepdims=True)
    if settings.early_stopping is not True:
        enough = enough & (xp.min(found[1], 1, keepdims=True) >= possible)

    running, order = xp.top_k(best + xp.to_float(ended) * LOW, beams)
    # a group that is done chooses the pad token, which the groups behind it see
    chosen = xp.where(group.done, settings.pad, xp.take(token, order))
    moved = Group(xp.take(ids, order), running, xp.take(origins, order), *found, done=group.done | enough)
    return moved, xp.take(row, order), chosen


def _merge(
    xp: Arrays,
    group: Group,
    settings: BeamSettings,
    at: Position,
    new: Array,
    scores: Array,
    ids: Array,
    origins: Array,
) -> tuple[Array, Array, Array, Array]:
    """The best g of what was found and of those among `new` (b, m)."""
    scores = scores / xp.to_float(at - settings.prompt_length) ** settings.length_penalty
    scores = xp.where(new, scores, LOW)
    merged, order = xp.top_k(xp.concat([group.found_scores, scores], 1), settings.beams)
    return (
        xp.take(xp.concat([group.found, ids], 1), order),
        merged,
        xp.take(xp.concat([group.found_origins, origins], 1), order),
        xp.take(xp.concat([group.is_found, new], 1), order),
    )


def finish(xp: Arrays, state: Groups, settings: BeamSettings, sequences: int) -> tuple[Array, Array, Array, Array]:
    """The best `sequences` of each source, unfinished ones of groups that are not done included; as `beams.finish`."""
    kept = []
    for group in state.groups:
        open_ = ~group.done & (group.scores > LOW / 2)
        kept.append(_merge(xp, group, settings, state.at, open_, group.scores, group.ids, group.origins))
    ids, scores, origins, _ = (xp.concat(list(parts), 1) for parts in zip(*kept, strict=True))
    best, order = xp.top_k(scores, sequences)
    rows = best.shape[0] * sequences
    ids = xp.reshape(xp.take(ids, order), (rows, ids.shape[-1]))
    origins = xp.reshape(xp.take(origins, order), (rows, origins.shape[-1]))
    return ids, xp.reshape(best, (rows,)), origins, xp.max(xp.sum(origins >= 0, 1))
