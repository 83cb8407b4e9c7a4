"""Greedy search and sampling with drafts: several tokens are guessed, and the model checks them in one pass.

The rows of a batch are of different age here, for each takes as many tokens from a draft as are right.

Shapes: r rows, n length, d drafted tokens, s source length, p prompt length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from warmstart.decoding import drafts
from warmstart.decoding.arrays import Position
from warmstart.decoding.processors import Processor, process
from warmstart.torch.arrays import TorchArrays
from warmstart.torch.generation.loops import Call, leaving, rows_of
from warmstart.torch.generation.scores import check_choice, draw_rows
from warmstart.torch.runner import Runner


class Draft(NamedTuple):
    """Tokens (r, d), which of them are there (r, d), and the probabilities (r, d, v) they were drawn by, if drawn."""

    tokens: Tensor
    there: Tensor
    probabilities: Tensor | None = None


class Drafter(Protocol):
    """What guesses the next tokens."""

    def draft(self, ids: Tensor, at: Tensor, live: Tensor) -> Draft:
        """Guess for the rows `ids` (r, n) of which `at` (r, 1) are there; `live` (r,) tells which still go on."""
        ...

    def learn(self, tried: Tensor, accepted: Tensor) -> None:
        """How many tokens of each row's draft were there, and how many right: (r,) both."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Row i becomes what row ``rows[i]`` was."""
        ...


def drafted(call: Call, drafter: Drafter) -> dict[str, Any]:
    """Greedy search and sampling, by drafts."""
    plan = call.plan
    start = call.prompt.repeat_interleave(plan.rows, 0)
    rows, device = len(start), start.device
    ids = torch.full((rows, plan.max_length), plan.pad, device=device)
    ids[:, : plan.prompt_length] = start
    turn = _Turn(call, ids, torch.full((rows, 1), plan.prompt_length, device=device))
    call.stream.prompt(start)
    if plan.prompt_length > 1:  # it passes alone, for the rows of a source share it
        call.scorer.runner.logits(start[:, :-1])
    turn.take(nothing(ids))
    final, at = ids.clone(), turn.at.clone()
    here = torch.arange(rows, device=device)
    shown = plan.prompt_length
    while True:
        ended = turn.done
        gone = ended.reshape(-1, plan.rows).all(1)
        sources = leaving(gone, int(gone.sum())) if call.may_leave else None
        over = bool(ended.all())
        if over or sources is not None or call.stream.streamer is not None:
            final[here], at[here] = turn.ids, turn.at
        if call.stream.streamer is not None:
            shown = _show(call, final, at, here, ended, shown)
        if over:
            break
        if sources is not None:
            kept = rows_of(sources, plan.rows)
            turn.ids, turn.at, turn.done, here = turn.ids[kept], turn.at[kept], turn.done[kept], here[kept]
            call.scorer.reorder(kept, same_sources=False)
            drafter.keep(kept)
        draft = drafter.draft(turn.ids, turn.at, ~turn.done)
        accepted = turn.take(draft)
        if draft.tokens.shape[1]:
            drafter.learn(draft.there.sum(1), accepted)
    for name, columns in turn.columns.items():
        call.scorer.seen[name] = columns
    return {"sequences": final[:, : int(at.max())]}


def nothing(ids: Tensor) -> Draft:
    """No draft for rows (r, n)."""
    return Draft(ids[:, :0], ids[:, :0].bool())


def _show(call: Call, final: Tensor, at: Tensor, here: Tensor, ended: Tensor, shown: int) -> int:
    """Stream what all rows `here` that go on have beyond the first `shown` tokens; tells how many are shown then."""
    least = int(at.max()) if bool(ended.all()) else int(at[here][~ended].min())
    gone = torch.ones(len(final), dtype=torch.bool, device=final.device)
    gone[here] = ended
    for column in range(shown, least):
        call.stream.tokens(final[:, column], (gone & (at[:, 0] <= column + 1)).nonzero()[:, 0])
    return max(shown, least)


class _Turn:
    """The rows as they stand: ids (r, n), how many are there (r, 1), which rows have ended (r,)."""

    def __init__(self, call: Call, ids: Tensor, at: Tensor) -> None:
        self.call, self.ids, self.at, self.stop = call, ids, at, call.stop
        self.done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        self.columns: dict[str, list[Tensor]] = {name: [] for name in call.scorer.seen}

    def take(self, draft: Draft) -> Tensor:
        """Check a draft in one pass; each row takes what is right of it and one token more. Tells how much was."""
        call, at = self.call, self.at
        width = draft.tokens.shape[1]
        there, ids, counts = draft.there, self.ids, -self.done.long()
        last = ids.shape[1] - 1
        if width:
            places = at + torch.arange(width, device=at.device)
            there = there & (places < last) & ~self.done[:, None]
            places = places.clamp(max=last)  # what lies beyond is not there, and leaves what stands there
            ids = ids.scatter(1, places, torch.where(there, draft.tokens, ids.gather(1, places)))
            counts = counts + there.sum(1)
        logits, begins = call.scorer.runner.drafted(ids, at, counts)
        one_each = not width and len(logits) == len(ids)
        right = torch.zeros_like(counts)
        active = ~self.done
        for j in range(int(counts.max()) + 1):
            # of rows that do not go on any logits do
            raw = logits if one_each else logits[(begins[: len(ids)] + j).clamp(max=len(logits) - 1)]
            here = self.at
            scores = call.scorer.processed(raw, self.ids, self._position())
            check_choice(scores, active, here[:, 0].tolist())
            drafted = draft.tokens[:, j] if j < width else None
            offered = there[:, j] if j < width else torch.zeros_like(active)
            new, same = self._choose(scores, drafted, offered, draft, j)
            self._keep(raw, scores, active, here)
            place = here.clamp(max=last)
            self.ids = self.ids.scatter(1, place, torch.where(active[:, None], new[:, None], self.ids.gather(1, place)))
            self.at = here + active[:, None]
            self.done = self.done | (active & self.stop(self.ids, new, self.at))
            if not width:
                break
            right += active & same
            active = active & same & ~self.done
            if not bool(active.any()):
                break
        return right

    def _position(self) -> Position:
        """How many tokens the rows hold: one number where it is the same for all that go on, which costs less."""
        ages = set(self.at[~self.done, 0].tolist())
        return ages.pop() if len(ages) == 1 else self.at

    def _choose(
        self, scores: Tensor, drafted: Tensor | None, offered: Tensor, draft: Draft, j: int
    ) -> tuple[Tensor, Tensor]:
        """Each row's token, and whether it is the drafted one."""
        call = self.call
        if not call.plan.sample:
            new = call.xp.argmax(scores)
        elif drafted is None or draft.probabilities is None:
            # a draft that was not drawn: a token drawn by the model's distribution is compared with it
            new = draw_rows(scores, call.generator)[:, 0]
        else:
            target = torch.softmax(scores, -1)
            uniform = torch.rand(len(target), generator=call.generator, device=target.device)
            taken, rest = drafts.accept(call.xp, target, draft.probabilities[:, j], drafted, uniform)
            taken = taken & offered
            rest = torch.where(offered[:, None], rest, target)
            other = torch.multinomial(rest, 1, generator=call.generator)[:, 0]
            return torch.where(taken, drafted, other), taken
        return new, offered & (new == drafted) if drafted is not None else offered

    def _keep(self, raw: Tensor, scores: Tensor, active: Tensor, here: Tensor) -> None:
        for name, columns in self.columns.items():
            values = {"logits": raw, "scores": scores}[name]
            for row in active.nonzero()[:, 0].tolist():
                step = int(here[row]) - self.call.plan.prompt_length
                while len(columns) <= step:
                    columns.append(torch.zeros_like(values))
                columns[step][row] = values[row]


class LookUp:
    """Drafts from the sources, those of each row or None, and from what was written."""

    def __init__(self, sources: Sequence[drafts.Text | None], size: int, count: int) -> None:
        self.count = count
        self.rows = [drafts.Copying(source, size) for source in sources]

    def draft(self, ids: Tensor, at: Tensor, live: Tensor) -> Draft:
        ages, going = at[:, 0].tolist(), live.tolist()
        begin = min(len(row.own.tokens) for row in self.rows)
        patience, found = drafts.patience(sum(going)), []
        for row, age, goes, tokens in zip(self.rows, ages, going, ids[:, begin : max(ages)].tolist(), strict=True):
            row.own.extend(tokens[len(row.own.tokens) - begin : age - begin])
            found.append(row.draft(self.count, patience) if goes else [])
        width = max(map(len, found))
        if not width:
            return nothing(ids)
        tokens = ids.new_tensor([row + [-1] * (width - len(row)) for row in found])
        return Draft(tokens.clamp(min=0), tokens >= 0)

    def learn(self, tried: Tensor, accepted: Tensor) -> None:
        for row, *counts in zip(self.rows, tried.tolist(), accepted.tolist(), strict=True):
            row.learn(*counts)

    def keep(self, rows: Tensor) -> None:
        self.rows = [self.rows[row] for row in rows.tolist()]


class Assistant:
    """Drafts of a smaller model, one token after another; a row's draft ends behind a token it was not sure of."""

    def __init__(
        self,
        xp: TorchArrays,
        runner: Runner,
        processors: list[Processor],
        prompt: Tensor,
        source: Tensor | None,
        *,
        count: int,
        grows: bool,
        threshold: float,
        generator: torch.Generator | None,
        sample: bool,
    ) -> None:
        """`prompt` (r, p), `source` (r, s) what processors read; `grows` fits the count to what is accepted."""
        self.xp, self.runner, self.processors, self.source = xp, runner, processors, source
        self.count, self.grows, self.threshold = count, grows, threshold
        self.generator, self.sample = generator, sample
        runner.logits(prompt)

    def draft(self, ids: Tensor, at: Tensor, live: Tensor) -> Draft:
        ids = ids.clone()
        sure = live.clone()
        tokens, there, probabilities = [], [], []
        least = int(at[live].min())
        for j in range(self.count):
            here = (at + j).clamp(max=ids.shape[1])
            last = min(int(here[sure].max()), ids.shape[1])
            self.runner.crop(min(self.runner.length, least + j - 1))
            logits = self.runner.logits(ids[:, :last], last - (least + j) + 1)
            index = (here - (least + j)).clamp(0, logits.shape[1] - 1)
            scores = process(self.xp, self.processors, self.xp.take(logits, index)[:, 0], ids, here, self.source)
            chances = torch.softmax(scores, -1)
            new = draw_rows(scores, self.generator)[:, 0] if self.sample else scores.argmax(-1)
            tokens.append(new)
            there.append(sure)
            probabilities.append(chances)
            place = here.clamp(max=ids.shape[1] - 1)
            ids.scatter_(1, place, torch.where(sure[:, None], new[:, None], ids.gather(1, place)))
            sure = sure & (chances.gather(1, new[:, None])[:, 0] >= self.threshold) & (here[:, 0] + 2 < ids.shape[1])
            if not bool(sure.any()):
                break
        drawn = torch.stack(probabilities, 1) if self.sample else None
        return Draft(torch.stack(tokens, 1), torch.stack(there, 1), drawn)

    def learn(self, tried: Tensor, accepted: Tensor) -> None:
        if self.grows and bool((tried > 0).any()):
            all_right = bool((accepted >= tried)[tried > 0].all())
            self.count = self.count + 2 if all_right else max(1, self.count - 1)

    def keep(self, rows: Tensor) -> None:
        self.runner.reorder(rows)
        self.source = None if self.source is None else self.source[rows]
