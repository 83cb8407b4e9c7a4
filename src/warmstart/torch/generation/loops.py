"""The loops of `generate` that run a model step by step: greedy search, sampling, and the searches with beams.

Shapes: b sources, k rows for each, r = b * k rows, p prompt length, n length so far, v vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from warmstart.decoding import beams, constrained, groups, sampling
from warmstart.decoding.choice import check_found
from warmstart.decoding.constraints import constraints_of
from warmstart.decoding.rules import check_constraints
from warmstart.decoding.settings import Plan
from warmstart.decoding.stopping import Stop, stopping
from warmstart.generation_config import GenerationConfig
from warmstart.torch.arrays import TorchArrays
from warmstart.torch.generation.scores import Scorer, draw_rows, refuse_choice, without_choice
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

    def goes_ahead(self, at: int) -> bool:
        """Whether a device may compute what follows `at` tokens before it is known whether anything must: it has then
        work while the host reads that, and a last step is computed for nothing.
        """
        waits = self.rules or not self.may_leave or self.stream.streamer is not None or self.scorer.guidance is not None
        return not waits and at < self.plan.max_length and self.scorer.runner.goes_ahead


def leaving(done: Tensor, count: int) -> Tensor | None:
    """The sources that go on, if the `count` that are done, of all (b,), are so many that leaving them out pays; None if
    not.

    A change of the batch copies the cache once, so an eighth of the sources leaves at a time.
    """
    return (~done).nonzero()[:, 0] if 0 < count < len(done) and 8 * count >= len(done) else None


def read(*numbers: Tensor) -> list[int]:
    """Some numbers of a device, in one transfer: each waits for all that was asked of the device before."""
    return torch.stack([number.long() for number in numbers]).tolist()


def rows_of(sources: Tensor, each: int) -> Tensor:
    """The rows of these sources, each of which has as many."""
    return (sources[:, None] * each + torch.arange(each, device=sources.device)).flatten()


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

    scores = scorer.scores(state.ids[:, : state.at])
    while True:
        stuck, at, before = without_choice(scores, ~state.done), state.at, scores
        if plan.sample and read(stuck.any())[0]:  # what draws has no defined result
            refuse_choice(before, stuck, at)
        state = sampling.step(xp, state, scores, draw if plan.sample else xp.argmax, stop, plan.pad)
        if len(rows) < len(ids):
            ids[rows, state.at - 1] = state.ids[:, state.at - 1]
        else:
            ids = state.ids
        is_ahead = call.goes_ahead(state.at)
        if is_ahead:
            scores = scorer.scores(state.ids[:, : state.at])
        done = state.done.reshape(-1, plan.rows).all(1)
        is_stuck, ended = read(stuck.any(), done.sum())
        if is_stuck:
            refuse_choice(before, stuck, at)
        if call.stream.streamer is not None:  # which rows have ended is read back from a device
            call.stream.tokens(ids[:, state.at - 1], rows[state.done])
        if state.at >= plan.max_length or (may_end and ended == len(done)):
            break
        sources = leaving(done, ended) if call.may_leave and may_end else None
        if sources is not None:
            kept = rows_of(sources, plan.rows)
            ids = ids.clone() if len(rows) == len(ids) else ids
            state, rows = sampling.Rows(state.at, state.ids[kept], state.done[kept]), rows[kept]
            scorer.reorder(kept, same_sources=False)
            scores = scores[kept] if is_ahead else scores
        if not is_ahead:
            scores = scorer.scores(state.ids[:, : state.at])
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

    scores = scorer.scores(state.ids.flatten(0, 1)[:, : state.at])
    while True:
        state = beams.step(xp, state, scores, settings, draw if plan.sample else xp.top_k, stop)
        is_ahead = call.goes_ahead(state.at)
        if is_ahead:
            scorer.reorder(state.rows)
            scores = scorer.scores(state.ids.flatten(0, 1)[:, : state.at])
        is_going, ended = read(torch.as_tensor(state.going), state.done[:, 0].sum())
        if not is_going:
            break
        kept = leaving(state.done[:, 0], ended) if call.may_leave else None
        rows = state.rows
        if kept is not None:
            everyone = _put_back(everyone or state, state, sources)
            chosen = rows_of(kept, plan.beams)
            fields = {name: x[kept] for name, x in state._asdict().items() if name not in ("at", "rows", "going")}
            state = state._replace(**fields, rows=torch.arange(len(chosen), device=chosen.device))
            sources = sources[kept]
            rows = chosen if is_ahead else rows[chosen]
            scores = scores[chosen] if is_ahead else scores
        if kept is not None or not is_ahead:
            scorer.reorder(rows, same_sources=kept is None)
        if not is_ahead:
            scores = scorer.scores(state.ids.flatten(0, 1)[:, : state.at])
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
