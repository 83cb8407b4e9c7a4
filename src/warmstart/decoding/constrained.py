"""Constrained beam search: beams that are pushed towards holding what must come.

Beside the best candidates of beam search stand those that bring a constraint further; the k of the next step are taken
in turn from all banks (the degrees to which constraints are met). Which tokens these are differs from beam to beam, so
that this search runs in Python, one source after another; what it is given and gives back are numbers.

Shapes: b sources, k beams, c candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from warmstart.decoding.beams import LOW, BeamSettings
from warmstart.decoding.constraints import DisjunctiveConstraint, Progress, progress

ScoreOf = Callable[[int, int], float]
"""(beam, token) -> the sum of scores of a source's beam with this token."""


@dataclass
class Beam:
    """A sequence of one source: its tokens, the sum of its scores, and the row each new token was appended to."""

    tokens: list[int]
    score: float
    origins: tuple[int, ...] = ()
    beam: int = 0  # which beam of the step before it continues


@dataclass
class Search:
    """One source's search."""

    row: int  # that of its first beam
    beams: list[Beam]
    found: list[tuple[float, Beam]] = field(default_factory=list)  # with scores after the length penalty
    done: bool = False

    @classmethod
    def of(cls, prompt: list[int], row: int, beams: int) -> Search:
        """A search that holds the prompt; the first beam alone counts, for they are all the same."""
        return cls(row, [Beam(list(prompt), LOW if beam else 0.0) for beam in range(beams)])


def step(
    search: Search,
    candidates: Sequence[tuple[float, int, int]],
    score_of: ScoreOf,
    settings: BeamSettings,
    constraints: Sequence[DisjunctiveConstraint],
    eos: Sequence[int],
) -> None:
    """Add a token to each beam; `candidates` are the best c, best first: their score, beam and token."""
    if search.done:
        for open_ in search.beams:
            open_.tokens, open_.beam = [*open_.tokens, settings.pad], 0
        return
    running: list[Beam] = []
    for rank, (score, beam, token) in enumerate(candidates):
        before = search.beams[beam]
        longer = Beam([*before.tokens, token], score, (*before.origins, search.row + beam), beam)
        if token not in eos:
            running.append(longer)
        elif rank < settings.beams and progress(constraints, before.tokens).completed:
            _find(search, longer, settings)
        if len(running) == settings.beams:
            break
    after = _balanced(search, running, score_of, settings, constraints)
    search.done = _is_done(search, candidates[0][0], len(after[0].tokens), settings)
    search.beams = after


def _balanced(
    search: Search,
    running: list[Beam],
    score_of: ScoreOf,
    settings: BeamSettings,
    constraints: Sequence[DisjunctiveConstraint],
) -> list[Beam]:
    """The beams of the next step: of the best ones, and of those that bring a constraint further."""
    all_of: list[tuple[Beam, Progress]] = [(x, progress(constraints, x.tokens)) for x in running]
    seen = {tuple(x.tokens) for x in running}
    pushed = 0
    for beam, before in enumerate(search.beams):
        state = progress(constraints, before.tokens)
        for token in [] if state.completed else state.next_tokens():
            tokens = [*before.tokens, token]
            if tuple(tokens) not in seen:
                seen.add(tuple(tokens))
                origins = (*before.origins, search.row + beam)
                all_of.append((Beam(tokens, score_of(beam, token), origins, beam), state.after(token)))
                pushed += 1
    if not pushed:
        return running
    # best bank first, best score first within a bank; then the first of each bank, the second of each ...
    all_of.sort(key=lambda item: -(item[1].bank * 100 + item[0].score))
    places: list[int] = []
    for index, (_, state) in enumerate(all_of):
        same = index > 0 and state.bank == all_of[index - 1][1].bank
        places.append(places[-1] + 1 if same else 0)
    order = sorted(range(len(all_of)), key=lambda index: places[index])
    return [all_of[index][0] for index in order[: settings.beams]]


def _find(search: Search, sequence: Beam, settings: BeamSettings) -> None:
    """Keep the best k finished sequences."""
    score = sequence.score / (len(sequence.tokens) - settings.prompt_length) ** settings.length_penalty
    if len(search.found) < settings.beams or score > min(search.found, key=lambda item: item[0])[0]:
        search.found.append((score, sequence))
        if len(search.found) > settings.beams:
            worst = min(range(len(search.found)), key=lambda index: search.found[index][0])
            del search.found[worst]


def _is_done(search: Search, best: float, length: int, settings: BeamSettings) -> bool:
    if len(search.found) < settings.beams:
        return False
    if settings.early_stopping is True:
        return True
    longest = settings.early_stopping == "never" and settings.length_penalty > 0
    span = (settings.max_length if longest else length) - settings.prompt_length
    return min(search.found, key=lambda item: item[0])[0] >= best / span**settings.length_penalty


def finish(
    search: Search, settings: BeamSettings, constraints: Sequence[DisjunctiveConstraint], sequences: int
) -> list[tuple[float, Beam]]:
    """The best `sequences` of a source with their scores, best first.

    Unfinished ones count where the search is not done. Where fewer of them than asked for hold all that must come,
    those that do not are among them.
    """
    if not search.done:
        met = [beam for beam in search.beams if progress(constraints, beam.tokens).completed]
        for beam in met:
            _find(search, beam, settings)
        if len(met) < sequences:
            for beam in search.beams:
                if not any(beam is other for other in met):
                    _find(search, beam, settings)
    return sorted(search.found, key=lambda item: -item[0])[:sequences]
