"""The loops of `generate` that run a model step by step: greedy search, sampling, and the searches with beams.

Shapes: b sources, k rows for each, r = b * k rows, p prompt length, n length so far, v vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from warmstart.decoding import beams, constrained, groups, sampling
from warmstart.decoding.choice import check_choice, check_found
from warmstart.decoding.constraints import constraints_of
from warmstart.decoding.rules import check_constraints
from warmstart.decoding.settings import Plan
from warmstart.decoding.stopping import Stop, stopping
from warmstart.generation_config import GenerationConfig
from warmstart.torch.arrays import TorchArrays
from warmstart.torch.generation.scores import Scorer, draw_rows, trouble
from warmstart.torch.generation.streamers import Stream


@dataclass
class Call:
    """One call of `generate`, worked out."""

    xp: TorchArrays
    config: GenerationConfig
    plan: Plan
    scorer: Scorer
    prompt: Tensor  # (b, p)
    rules: Sequence[Stop]  # what may end a row beside an end token and the length
    generator: torch.Generator | None
    stream: Stream
    may_leave: bool  # whether nothing but the tokens is wanted of rows that have ended

    @property
    def stop(self) -> Stop:
        """When rows end."""
        return stopping(self.xp, self.plan.eos, self.plan.max_length, self.rules)

    def is_alone(self, at: int) -> bool:
        """Whether a device may compute what follows `at` tokens before it is known whether anything must: it has then
        work while the host reads that, and a last step is computed for nothing.
        """
        waits = self.rules or not self.may_leave or self.stream.streamer is not None or self.scorer.guidance is not None
        return not waits and at < self.plan.max_length and self.scorer.runner.is_alone


_FEW = 8  # steps for which recording does not pay


def leaving(done: Tensor, count: int) -> Tensor | None:
    """The sources that go on, if so many of all (b,) are done, `count`, that leaving them out pays; None if not.

    A change of the batch copies the cache once, so an eighth of the sources leaves at a time.
    """
    return (~done).nonzero()[:, 0] if 0 < count < len(done) and 8 * count >= len(done) else None


def rows_of(sources: Tensor, each: int) -> Tensor:
    """The rows of these sources, each of which has as many."""
    return (sources[:, None] * each + torch.arange(each, device=sources.device)).flatten()


class Later:
    """Numbers on their way from a device: they wait for what was asked of it before them, not for what comes after."""

    def __init__(self, numbers: Tensor):
        self.numbers, self.event = numbers, None
        if numbers.is_cuda:
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.event = torch.cuda.current_stream(numbers.device).record_event()

    def tolist(self) -> list[int]:
        """The numbers, once they are here."""
        if self.event is not None:
            self.event.synchronize()
        return self.numbers.tolist()


class Recorded:
    """A search's step, from the logits (r, v) on: `choose` gives the new state and the numbers that the host must read.

    Where the device records what it does, the second step of a batch of one size is recorded, and replayed from then
    on: its tensors then stay where they are, and are the state.
    """

    def __init__(self, choose: Callable[[Any, Tensor], tuple[Any, Tensor]], call: Call):
        self.choose, self.call, self.may = choose, call, not call.plan.sample
        self.size: torch.Size | None = None  # of the logits
        self.replay: Callable[[], Any] | None = None
        self.raw = self.numbers = torch.empty(0)
        self.state: Any = None

    def __call__(self, state: Any, raw: Tensor) -> tuple[Any, Later]:
        """The state after a token more, and the numbers."""
        record = self.call.scorer.runner.record
        if self.size != raw.shape:
            self.size, self.replay = raw.shape, None
        elif self.replay is not None:
            self.raw.copy_(raw)
        elif record is not None and self.may and self.call.is_alone(state.at + _FEW):
            self._record(record, state, raw)
        if self.replay is not None:
            self.replay()
            return self.state._replace(at=state.at + 1), Later(self.numbers)
        new, self.numbers = self.choose(state, raw)
        return new, Later(self.numbers)

    def _record(self, record: Callable[[Callable[[], Tensor]], Callable[[], Tensor]], state: Any, raw: Tensor) -> None:
        held = state._replace(at=torch.tensor(state.at, device=raw.device))
        self.state, self.raw, self.numbers = type(held)(*(x.clone() for x in held)), raw.clone(), self.numbers.clone()

        def step() -> Tensor:
            new, numbers = self.choose(self.state, self.raw)
            for old, fresh in zip((*self.state, self.numbers), (*new, numbers), strict=True):
                old.copy_(fresh)  # what is recorded shares its memory with what else is
            return self.numbers

        try:
            self.replay = record(step)
        except RuntimeError:  # something that cannot be recorded: it runs as it is
            self.may = False


def one_by_one(call: Call) -> dict[str, Any]:
    """Greedy search and sampling."""
    xp, plan, scorer = call.xp, call.plan, call.scorer
    state = sampling.start(xp, call.prompt.repeat_interleave(plan.rows, 0), plan.max_length, plan.pad)
    ids, rows = state.ids, torch.arange(len(state.ids), device=state.ids.device)  # all rows, and which are still here
    may_end = bool(plan.eos or call.rules)
    stop = call.stop
    call.stream.prompt(state.ids[:, : state.at])

    def draw(scores: Tensor) -> Tensor:
        return draw_rows(scores, call.generator, None if len(rows) == len(ids) else rows, len(ids))[:, 0]

    def choose(state: sampling.Rows, raw: Tensor) -> tuple[sampling.Rows, Tensor]:
        scores = scorer.scored(raw, state.ids, state.at)
        stuck = trouble(scores, ~state.done)
        if plan.sample:  # what draws has no defined result
            kind, row = stuck.tolist()
            check_choice(kind, row, state.at)
        state = sampling.step(xp, state, scores, draw if plan.sample else xp.argmax, stop, plan.pad)
        return state, torch.cat((stuck, state.done.reshape(-1, plan.rows).all(1).sum()[None]))

    step = Recorded(choose, call)
    raw = scorer.raw(state.ids[:, : state.at])
    while True:
        state, numbers = step(state, raw)
        if len(rows) < len(ids):
            ids[rows, state.at - 1] = state.ids[:, state.at - 1]
        else:
            ids = state.ids
        is_ahead = call.is_alone(state.at)
        if is_ahead:
            raw = scorer.raw(state.ids[:, : state.at])
        kind, row, ended = numbers.tolist()
        check_choice(kind, row, state.at - 1)
        if call.stream.streamer is not None:  # which rows have ended is read back from a device
            call.stream.tokens(ids[:, state.at - 1], rows[state.done])
        if state.at >= plan.max_length or (may_end and ended * plan.rows == len(rows)):
            break
        if call.may_leave and may_end:
            sources = leaving(state.done.reshape(-1, plan.rows).all(1), ended)
            if sources is not None:
                kept = rows_of(sources, plan.rows)
                ids = ids.clone() if len(rows) == len(ids) else ids
                state, rows = sampling.Rows(state.at, state.ids[kept], state.done[kept]), rows[kept]
                scorer.reorder(kept, same_sources=False)
                raw = raw[kept] if is_ahead else raw
        if not is_ahead:
            raw = scorer.raw(state.ids[:, : state.at])
    return {"sequences": ids[:, : state.at]}


def beam_search(call: Call) -> dict[str, Any]:
    """Beam search and beam sampling."""
    xp, plan, scorer = call.xp, call.plan, call.scorer
    settings, stop = beams.settings_of(plan, call.config, plan.beams), call.stop
    state = beams.start(xp, call.prompt, settings)
    total = len(state.ids)
    everyone: beams.Beams | None = None  # what sources that have left had found
    sources = torch.arange(total, device=state.ids.device)

    def draw(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        index = draw_rows(scores, call.generator, None if everyone is None else sources, total, count)
        return torch.gather(scores, 1, index), index

    def choose(state: beams.Beams, raw: Tensor) -> tuple[beams.Beams, Tensor]:
        scores = scorer.scored(raw, state.ids.flatten(0, 1), state.at)
        state = beams.step(xp, state, scores, settings, draw if plan.sample else xp.top_k, stop)
        scorer.reorder(state.rows)
        return state, torch.stack((state.going.long(), state.done[:, 0].sum()))

    step = Recorded(choose, call)
    raw = scorer.raw(state.ids.flatten(0, 1)[:, : state.at])
    while True:
        state, numbers = step(state, raw)
        is_ahead = call.is_alone(state.at)
        if is_ahead:
            raw = scorer.raw(state.ids.flatten(0, 1)[:, : state.at])
        is_going, ended = numbers.tolist()
        if not is_going:
            break
        kept = leaving(state.done[:, 0], ended) if call.may_leave else None
        if kept is not None:
            everyone = _put_back(everyone or state, state, sources)
            rows, sources = rows_of(kept, plan.beams), sources[kept]
            fields = {name: x[kept] for name, x in state._asdict().items() if name not in ("at", "rows", "going")}
            state = state._replace(
                **fields, rows=torch.arange(len(rows), device=rows.device), going=state.going.clone()
            )
            scorer.reorder(rows, same_sources=False)
            raw = raw[rows] if is_ahead else raw
        if not is_ahead:
            raw = scorer.raw(state.ids.flatten(0, 1)[:, : state.at])
    if everyone is not None:
        state = _put_back(everyone, state, sources)
    return _found(call, *beams.finish(xp, state, plan.sequences))


def _put_back(everyone: beams.Beams, state: beams.Beams, sources: Tensor) -> beams.Beams:
    """What all sources have found, with what these have found by now."""
    names = ("found", "found_scores", "found_origins", "is_found")
    return everyone._replace(
        **{name: getattr(everyone, name).index_copy(0, sources, getattr(state, name)) for name in names}
    )


def _found(call: Call, ids: Tensor, sums: Tensor, origins: Tensor, longest: Tensor | int) -> dict[str, Any]:
    new = int(longest)
    check_found(sums.reshape(-1, call.plan.sequences)[:, 0].tolist(), new, call.config.length_penalty)
    return {
        "sequences": ids[:, : call.plan.prompt_length + new],
        "sequences_scores": sums if call.config.output_scores else None,
        "beam_indices": origins[:, :new],
    }


def group_search(call: Call) -> dict[str, Any]:
    """Diverse beam search."""
    xp, plan, scorer = call.xp, call.plan, call.scorer
    settings = beams.settings_of(plan, call.config, plan.beams // plan.groups)
    ends = stopping(xp, plan.eos, plan.max_length + 1)
    state = groups.start(xp, call.prompt, settings, plan.groups)
    kept = call.prompt

    def score(log: Tensor, held: Tensor, rows: Tensor, chosen: Tensor | None) -> Tensor:
        kept[rows] = scores = scorer.processed(log, held[:, : state.at], state.at, rows, chosen)
        return scores

    while True:
        ids = groups.ids_of(xp, state)
        raw = scorer.raw(ids[:, : state.at])
        scorer.keep("logits", raw)
        kept = torch.empty_like(raw)

        log = scorer.guided(xp.log_softmax(raw), ids[:, : state.at])
        state = groups.step(xp, state, log, settings, score, ends)
        scorer.keep("scores", kept)
        if not bool(state.going) or state.at >= plan.max_length or _ruled(call, groups.ids_of(xp, state), state.at):
            break
        scorer.reorder(state.rows)
    return _found(call, *groups.finish(xp, state, settings, plan.sequences))


def _ruled(call: Call, ids: Tensor, at: int) -> bool:
    """Whether the caller's rules end all rows."""
    if not call.rules:
        return False
    ended = ids.new_zeros(len(ids), dtype=torch.bool)
    for rule in call.rules:
        ended = ended | torch.as_tensor(rule(ids, ids[:, at - 1], at), device=ids.device)
    return bool(ended.all())


def constrained_search(call: Call) -> dict[str, Any]:
    """Beam search whose sequences must hold what the constraints ask for."""
    xp, plan, scorer, config = call.xp, call.plan, call.scorer, call.config
    settings = beams.settings_of(plan, call.config, plan.beams)
    wanted = constraints_of(config.constraints, config.force_words_ids)
    k, device = plan.beams, call.prompt.device
    searches = [constrained.Search.of(ids, i * k, k) for i, ids in enumerate(call.prompt.tolist())]
    at = plan.prompt_length
    while True:
        ids = torch.tensor([beam.tokens for search in searches for beam in search.beams], device=device)
        scores = scorer.scores(ids)
        check_constraints(wanted, plan.eos, scores.shape[-1])
        sums = torch.tensor([beam.score for search in searches for beam in search.beams], device=device)
        total = (scores + sums[:, None]).reshape(len(searches), -1)
        best, index = (x.tolist() for x in xp.top_k(total, settings.candidates))
        vocabulary = scores.shape[-1]
        for number, search in enumerate(searches):
            candidates = [
                (x, i // vocabulary, i % vocabulary) for x, i in zip(best[number], index[number], strict=True)
            ]
            held = total[number].reshape(k, vocabulary)
            constrained.step(search, candidates, functools.partial(_score, held), settings, wanted, plan.eos)
        at += 1
        ids = torch.tensor([beam.tokens for search in searches for beam in search.beams], device=device)
        if all(search.done for search in searches) or at >= plan.max_length or _ruled(call, ids, at):
            break
        scorer.reorder(torch.tensor([x.row + beam.beam for x in searches for beam in x.beams], device=device))
    found = [item for search in searches for item in constrained.finish(search, settings, wanted, plan.sequences)]
    width = max(len(sequence.tokens) for _, sequence in found)
    tokens = [sequence.tokens + [plan.pad] * (width - len(sequence.tokens)) for _, sequence in found]
    new = width - plan.prompt_length
    origins = [[*sequence.origins, *[-1] * (new - len(sequence.origins))] for _, sequence in found]
    sums = torch.tensor([score for score, _ in found], device=device)
    return _found(call, torch.tensor(tokens, device=device), sums, torch.tensor(origins, device=device), new)


def _score(scores: Tensor, beam: int, token: int) -> float:
    return float(scores[beam, token])
