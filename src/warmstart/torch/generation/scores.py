"""The scores of the next tokens: what a runner gives, put through the processors; and what is kept of them.

Shapes: b sources, r rows, n length, s source length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from warmstart.decoding import choice
from warmstart.decoding.arrays import Position, is_column
from warmstart.decoding.processors import Processor, acting, process, processors_for
from warmstart.decoding.settings import Plan
from warmstart.generation_config import GenerationConfig
from warmstart.torch.arrays import TorchArrays
from warmstart.torch.runner import Runner


class Scorer:
    """A runner and the processors of one call."""

    def __init__(
        self,
        xp: TorchArrays,
        runner: Runner,
        config: GenerationConfig,
        plan: Plan,
        source: Tensor | None,
        guidance: Callable[[Tensor, Tensor], Tensor] | None = None,
        **own: Any,
    ) -> None:
        """`source` (b, s) are the source's ids, -1 where there is padding; `guidance` changes scores (r, v) of what
        follows ids (r, n), before any processor; `own` are the `prefix` and `custom` processors.
        """
        self.xp, self.runner, self.config, self.plan, self.own = xp, runner, config, plan, own
        self.guidance = guidance
        self.source = None if source is None else source.repeat_interleave(plan.rows, 0)  # (r, s)
        self.processors: list[Processor] | None = None
        wanted = [name for name in ("scores", "logits") if getattr(config, f"output_{name}")]
        self.seen: dict[str, list[Tensor]] = {name: [] for name in wanted if config.return_dict_in_generate}

    def scores(self, ids: Tensor) -> Tensor:
        """The processed scores (r, v) of what follows `ids` (r, n): logits, or with beams log-probabilities."""
        return self.scored(self.raw(ids), ids, ids.shape[1])

    def scored(self, raw: Tensor, ids: Tensor, at: Position) -> Tensor:
        """The same from the logits of what follows the first `at` tokens."""
        ids = ids[:, :at] if isinstance(at, int) else ids
        self.keep("logits", raw)
        scores = self.xp.log_softmax(raw) if self.plan.beams > 1 else raw
        scores = self.processed(self.guided(scores, ids), ids, at)
        self.keep("scores", scores)
        return scores

    def raw(self, ids: Tensor) -> Tensor:
        """The logits (r, v) of what follows `ids` (r, n)."""
        return self.runner.logits(ids)[:, -1]

    def guided(self, scores: Tensor, ids: Tensor) -> Tensor:
        """Scores (r, v) led away from those without the source, if that is asked for."""
        return scores if self.guidance is None else self.guidance(scores, ids)

    def processed(
        self, scores: Tensor, ids: Tensor, at: Position, rows: Tensor | None = None, chosen: Tensor | None = None
    ) -> Tensor:
        """Scores (r, v) after the processors; `rows` are those that `scores` are of, if not all."""
        if self.processors is None:
            self.processors = processors_for(self.xp, self.config, self.plan, scores.shape[-1], **self.own)
            self._check_source(scores.shape[-1])
        source = self.source if rows is None or self.source is None else self.source[rows]
        processors = self.processors
        if is_column(at):
            processors = acting(processors, *torch.stack(at.aminmax()).tolist())
        return process(self.xp, processors, scores, ids, at, source, chosen)

    def _check_source(self, vocabulary: int) -> None:
        names = {processor.name for processor in self.processors or () if processor.reads == "source"}
        if not names:
            return
        name = min(names)
        if self.source is None:
            raise ValueError(f"{name} looks at the source's ids: give input_ids")
        if int(self.source.max()) >= vocabulary:
            raise ValueError(
                f"{name} compares the source's ids with the decoder's, and the source holds {int(self.source.max())}, "
                f"outside the decoder's vocabulary of {vocabulary}: the two sides have vocabularies of their own"
            )

    def keep(self, name: str, scores: Tensor) -> None:
        """Keep the "scores" or "logits" of a step, if they are to be returned."""
        if name in self.seen:
            self.seen[name].append(scores.clone() if name == "logits" else scores)

    def reorder(self, rows: Tensor, same_sources: bool = True) -> None:
        """Row i becomes what row ``rows[i]`` was."""
        self.runner.reorder(rows)
        if self.source is not None and not same_sources:
            self.source = self.source[rows]


def draw_rows(
    scores: Tensor, generator: torch.Generator | None, rows: Tensor | None = None, total: int = 0, count: int = 1
) -> Tensor:
    """Draw `count` different tokens (r, count) for each row of scores (r, v).

    Where `rows` tells which r of `total` rows these are, the random numbers are those of a draw for all of them.
    """
    probabilities = torch.softmax(scores, -1)
    if rows is None:
        return torch.multinomial(probabilities, count, generator=generator)
    everyone = probabilities.new_ones(total, 1).expand(total, probabilities.shape[1]).contiguous()
    everyone[rows] = probabilities
    return torch.multinomial(everyone, count, generator=generator)[rows]


def check_choice(scores: Tensor, rows: Tensor, at: Any) -> None:
    """Refuse a step in which a row that goes on has no token left to choose; `at` is its position, or each row's.

    Raises:
        ValueError: all tokens are forbidden in a row, or the model's logits are no numbers.
    """
    kind, row = trouble(scores, rows).tolist()
    choice.check_choice(kind, row, at[row] if isinstance(at, list) else at)


def trouble(scores: Tensor, rows: Tensor) -> Tensor:
    """The first of the rows (r,) that go on and have no token left to choose, with the kind of its trouble before it
    (2,): see `choice`.
    """
    best = scores.amax(-1)  # no number, if one of them is none
    kinds = torch.where(best.isnan(), choice.UNDEFINED, choice.FORBIDDEN) * (rows & ~(best > float("-inf")))
    row = (kinds > 0).int().argmax(0, keepdim=True)
    return torch.cat((kinds.gather(0, row), row))
