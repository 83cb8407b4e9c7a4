"""Greedy search and sampling with drafts: several tokens are guessed, and the model checks them in one pass.

The rows of a batch are of different age here, for each takes as many tokens from a draft as are right.

Shapes: r rows, n length, d drafted tokens, s source length, v vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from warmstart.decoding import drafts
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
    nothing = Draft(start[:, :0], start[:, :0].bool())
    if plan.prompt_length > 1:  # it passes alone, for the rows of a source share it
        call.scorer.runner.logits(start[:, :-1])
    turn.take(nothing)
    final, at = ids.clone(), turn.at.clone()
    here = torch.arange(rows, device=device)
    shown = plan.prompt_length
    while True:
        final[here], at[here] = turn.ids, turn.at
        ended = turn.done
        least = int(at.max()) if bool(ended.all()) else int(turn.at[~ended].min())
        gone = torch.ones(rows, dtype=torch.bool, device=device)
        gone[here] = ended
        for column in range(shown, least):
            call.stream.tokens(final[:, column], (gone & (at[:, 0] <= column + 1)).nonzero()[:, 0])
        shown = max(shown, least)
        if bool(ended.all()):
            break
        sources = leaving(ended.reshape(-1, plan.rows).all(1)) if call.may_leave else None
        if sources is not None:
            kept = rows_of(sources, plan.rows)
            turn.ids, turn.at, turn.done, here = turn.ids[kept], turn.at[kept], turn.done[kept], here[kept]
            call.scorer.reorder(kept, same_sources=False)
            drafter.keep(kept)
        draft = drafter.draft(turn.ids, turn.at, ~turn.done)
        accepted = turn.take(draft)
        drafter.learn(draft.there.sum(1), accepted)
    for name, columns in turn.columns.items():
        call.scorer.seen[name] = columns
    return {"sequences": final[:, : int(at.max())]}


class _Turn:
    """The rows as they stand: ids (r, n), how many are there (r, 1), which rows have ended (r,)."""

    def __init__(self, call: Call, ids: Tensor, at: Tensor) -> None:
        self.call, self.ids, self.at, self.stop = call, ids, at, call.stop
        self.done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        self.columns: dict[str, list[Tensor]] = {name: [] for name in call.scorer.seen}

    def take(self, draft: Draft) -> Tensor:
        """Check a draft in one pass; each row takes what is right of it and one token more. Tells how much was."""
        call, xp, at = self.call, self.call.xp, self.at
        width = draft.tokens.shape[1]
        there = draft.there & (at + torch.arange(width, device=at.device) < call.plan.max_length - 1)
        there = there & ~self.done[:, None]
        ids = self.ids.clone() if width else self.ids
        for j in range(width):
            place = (at + j).clamp(max=ids.shape[1] - 1)
            ids.scatter_(1, place, torch.where(there[:, j : j + 1], draft.tokens[:, j : j + 1], ids.gather(1, place)))
        logits, begins = call.scorer.runner.drafted(ids, at, torch.where(self.done, -1, there.sum(1)))
        right = torch.zeros(len(ids), dtype=torch.long, device=at.device)
        active = ~self.done
        for j in range(int(there.sum(1).max()) + 1 if width else 1):
            here = (at + j).clamp(max=ids.shape[1])  # of rows that are done it may lie beyond
            raw = logits[(begins[: len(ids)] + j).clamp(max=len(logits) - 1)]  # of rows that are done, any
            scores = call.scorer.processed(raw, ids, here)
            check_choice(scores, active, here[:, 0].tolist())
            drafted = draft.tokens[:, j] if j < width else None
            offered = there[:, j] if j < width else torch.zeros_like(active)
            new, same = self._choose(scores, drafted, offered, draft, j)
            self._keep(raw, scores, active, here)
            written = xp.where(torch.arange(ids.shape[1], device=at.device) == here, new[:, None], self.ids)
            self.ids = torch.where(active[:, None], written, self.ids)
            self.at = torch.where(active[:, None], here + 1, self.at)
            self.done = self.done | (active & self.stop(self.ids, new, here + 1))
            right += active & same
            active = active & same & ~self.done
            if not bool(active.any()):
                break
        return right

    def _choose(
        self, scores: Tensor, drafted: Tensor | None, offered: Tensor, draft: Draft, j: int
    ) -> tuple[Tensor, Tensor]:
        """Each row's token, and whether it is the drafted one."""
        call = self.call
        if not call.plan.sample:
            new = scores.argmax(-1)
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
    """Drafts from the source (r, s) and from what was written; a row with wrong drafts or none pauses."""

    def __init__(self, xp: TorchArrays, source: Tensor | None, rows: int, size: int, count: int) -> None:
        self.xp, self.source, self.size, self.count = xp, source, size, count
        self.room = torch.full((rows,), count, device=xp.device)  # how many tokens a row's next draft may have
        self.pause = torch.zeros_like(self.room)  # how many passes until then
        self.wait = torch.ones_like(self.room)  # how long the next pause is
        self.asked = torch.zeros(rows, dtype=torch.bool, device=xp.device)  # which rows were looked up this time

    def draft(self, ids: Tensor, at: Tensor, live: Tensor) -> Draft:
        self.asked = allowed = live & (self.pause == 0)
        if not bool(allowed.any()):
            return Draft(ids[:, :0], ids[:, :0].bool())
        tokens, there = drafts.look_up(self.xp, self.source, ids, at, self.size, self.count)
        there = there & (torch.arange(self.count, device=ids.device) < self.room[:, None]) & allowed[:, None]
        width = int(there.sum(1).max())  # mostly far less than asked for, and each column has its cost
        return Draft(tokens[:, :width], there[:, :width])

    def learn(self, tried: Tensor, accepted: Tensor) -> None:
        wrong, right = self.asked & (accepted == 0), accepted > 0  # to find nothing is to be wrong
        self.pause = torch.where(wrong, self.wait, (self.pause - 1).clamp(min=0))
        self.wait = torch.where(wrong, (2 * self.wait).clamp(max=16), torch.where(right, 1, self.wait))
        grown = torch.where(right & (accepted >= tried), 4 * self.room, accepted + 1)
        self.room = torch.where(tried > 0, grown.clamp(1, self.count), self.room)

    def keep(self, rows: Tensor) -> None:
        self.source = None if self.source is None else self.source[rows]
        self.room, self.pause, self.wait = self.room[rows], self.pause[rows], self.wait[rows]


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
