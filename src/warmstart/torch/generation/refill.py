"""A batch that is refilled: sources join and leave it between two steps, each with its own age.

Shapes: b sources at work, k rows for each, r = b * k rows, n length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warmstart.decoding import beams, sampling
from warmstart.decoding.arrays import repeat
from warmstart.decoding.processors import acting, process, processors_for
from warmstart.decoding.settings import Plan, lay_over, resolve, start_ids
from warmstart.decoding.stopping import stopping
from warmstart.generation_config import GenerationConfig
from warmstart.torch.arrays import TorchArrays
from warmstart.torch.generation.inputs import check_arguments
from warmstart.torch.generation.scores import check_choice
from warmstart.torch.runner import can_refill_rows, encode_source, rows_for


def can_refill(model: Any, settings: dict[str, Any]) -> bool:
    """Whether the engine runs this model, and the settings ask for nothing but greedy search, sampling or beams."""
    config, arguments = lay_over(model.generation_config, None, settings)
    if arguments or not config.use_cache or not can_refill_rows(model):
        return False
    start = config.decoder_start_token_id
    if hasattr(start, "__len__") or config.max_time is not None or config.stop_strings is not None:
        return False
    names = "penalty_alpha", "force_words_ids", "constraints", "prompt_lookup_num_tokens", "guidance_scale"
    if any(getattr(config, name) is not None for name in names) or config.num_beam_groups != 1:
        return False
    return config.encoder_repetition_penalty in (None, 1.0) and not config.encoder_no_repeat_ngram_size


class Refilled:
    """The sources at work. `add` and `step` give requests that are done, with their sequences or an error."""

    def __init__(self, model: Any, settings: dict[str, Any], generator: torch.Generator | None, most: int):
        self.model, self.generator, self.xp = model, generator, TorchArrays(model.device)
        self.config: GenerationConfig = lay_over(model.generation_config, None, settings)[0]
        check_arguments({})
        positions = model.decoder.spec.positions
        self.plan: Plan = resolve(
            self.config,
            settings,
            prompt_length=1,
            encoder_decoder=True,
            positions=positions,
            exact_positions=positions is not None,
        )
        self.start = torch.tensor([[start_ids(self.config)]], device=model.device)
        self.stop = stopping(self.xp, self.plan.eos, self.plan.max_length)
        self.processors = processors_for(
            self.xp,
            self.config,
            self.plan,
            model.decoder.spec.embedding.vocabulary,
            prefix=None,
            custom=[],
        )
        self.most = most  # sources at work at once
        self.rows = rows_for(model, self.most, self.plan.rows, self.plan.max_length)
        self.requests: list[Any] = []
        self.state: Any = None
        self.settings = beams.BeamSettings(
            beams=self.plan.beams,
            prompt_length=1,
            max_length=self.plan.max_length,
            candidates=max(2, 1 + len(self.plan.eos)) * self.plan.beams,
            pad=self.plan.pad,
            length_penalty=self.config.length_penalty,
            early_stopping=self.config.early_stopping,
        )

    @property
    def room(self) -> int:
        """How many sources may join."""
        return self.most - len(self.requests)

    @property
    def tokens(self) -> int:
        """Tokens of the sources at work."""
        return sum(len(request.ids) for request in self.requests)

    def add(self, requests: list[Any]) -> Iterator[tuple[Any, Any]]:
        """Let sources join; gives those that cannot, with the error."""
        if not requests:
            return
        try:
            source = encode_source(self.model, padded(requests, self.model), ())
            self.rows.join(source, [len(request.ids) for request in requests])
        except Exception as error:
            if len(requests) == 1:
                yield requests[0], error
                return
            for request in requests:
                yield from self.add([request])
            return
        self.requests += requests
        prompt = self.start.expand(len(requests), 1)
        if self.plan.beams > 1:
            new: Any = beams.start(self.xp, prompt, self.settings)
        else:
            rows = prompt.repeat_interleave(self.plan.rows, 0)
            new = sampling.start(self.xp, rows, self.plan.max_length, self.plan.pad)
        new = new._replace(at=torch.ones(len(new[1]), 1, dtype=torch.long, device=prompt.device))
        self.state = new if self.state is None else _joined(self.state, new)

    def step(self) -> Iterator[tuple[Any, Any]]:
        """One token for every row; gives the requests that it finishes."""
        if not self.requests:
            return
        plan, state = self.plan, self.state
        ids = state.ids.flatten(0, -2)
        at = repeat(self.xp, state.at, len(ids) // len(state.at))
        shortest, longest = torch.stack(at.aminmax()).tolist()
        logits = self.rows.logits(ids.gather(1, at - 1), longest)
        scores = torch.log_softmax(logits, -1) if plan.beams > 1 else logits
        processors = acting(self.processors, shortest, longest)
        scores = process(self.xp, processors, scores, ids[:, :longest], at)
        failed = self._failed(scores, at)
        if plan.beams > 1:
            self.state = state = beams.step(self.xp, state, scores, self.settings, self._select, self.stop)
            self.rows.take(state.rows)
            done = state.done[:, 0]
        else:
            choose = self._draw if plan.sample else self.xp.argmax
            self.state = state = sampling.step(self.xp, state, scores, choose, self.stop, plan.pad)
            done = state.done.reshape(-1, plan.rows).all(1)
        for place in failed:
            done = done | (self.xp.arange(len(done)) == place)
        if not bool(done.any()):
            return
        for place in done.nonzero()[:, 0].tolist():
            yield self.requests[place], failed.get(place) or self._sequences(place)
        self._leave(~done)

    def _failed(self, scores: Tensor, at: Tensor) -> dict[int, Exception]:
        """The sources with no token to choose from, each with its error."""
        done = self.xp.full((len(scores),), False) if self.plan.beams > 1 else self.state.done
        try:
            check_choice(scores, ~done, int(at.max()))
        except ValueError:
            errors: dict[int, Exception] = {}
            each = self.plan.rows
            for place in range(len(self.requests)):
                own = slice(place * each, (place + 1) * each)
                try:
                    check_choice(scores[own], ~done[own], int(at[place * each]))
                except ValueError as error:
                    errors[place] = error
                    scores[own] = 0.0  # it leaves after this step
            return errors
        return {}

    def _draw(self, scores: Tensor) -> Tensor:
        return torch.multinomial(torch.softmax(scores, -1), 1, generator=self.generator)[:, 0]

    def _select(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        if not self.plan.sample:
            return self.xp.top_k(scores, count)
        index = torch.multinomial(torch.softmax(scores, -1), count, generator=self.generator)
        return torch.gather(scores, 1, index), index

    def _sequences(self, place: int) -> list[Tensor]:
        """What one source has found, padding left out."""
        if self.plan.beams > 1:
            alone = _picked(self.state, self.xp.array([place]), self.plan.beams)
            ids, _, origins, _ = beams.finish(self.xp, alone, self.plan.sequences)
            lengths = (origins >= 0).sum(1) + 1
            return [row[:length].clone().cpu() for row, length in zip(ids, lengths.tolist(), strict=True)]
        own = slice(place * self.plan.rows, (place + 1) * self.plan.rows)
        rows = zip(self.state.ids[own], self.state.at[own, 0].tolist(), strict=True)
        return [trimmed(row[:held], self.plan.eos).clone().cpu() for row, held in rows]

    def _leave(self, going: Tensor) -> None:
        kept = going.nonzero()[:, 0]
        rows = (kept[:, None] * self.plan.rows + self.xp.arange(self.plan.rows)).flatten()
        self.rows.take(rows, kept)
        self.requests = [self.requests[place] for place in kept.tolist()]
        self.state = _picked(self.state, kept if self.plan.beams > 1 else rows, self.plan.beams)
        if not self.requests:
            self.state = None


def _picked(state: Any, kept: Tensor, beams_each: int) -> Any:
    """The state of some sources (of some rows, where there are no beams)."""
    fields = {name: x[kept] for name, x in state._asdict().items() if name not in ("rows", "going")}
    if hasattr(state, "rows"):
        fields["rows"] = torch.arange(len(kept) * beams_each, device=kept.device)
    return state._replace(**fields)


def _joined(state: Any, new: Any) -> Any:
    """Two states as one, the new behind the old."""
    fields = {
        name: torch.cat([x, getattr(new, name)]) for name, x in state._asdict().items() if name not in ("rows", "going")
    }
    if hasattr(state, "rows"):
        fields["rows"] = torch.arange(len(state.rows) + len(new.rows), device=state.rows.device)
    return state._replace(**fields)


def trimmed(row: Tensor, ends: Any, held: int = 1) -> Tensor:
    """A row (n,) up to its end token; the first `held` tokens are the prompt, whatever they are."""
    ends = [] if ends is None else torch.as_tensor(ends).reshape(-1).tolist()
    found = torch.isin(row[held:], torch.tensor(ends, dtype=row.dtype, device=row.device)).nonzero()
    return row[: int(found[0]) + held + 1] if len(found) else row


def padded(requests: list[Any], model: Any) -> dict[str, Tensor]:
    """What the encoder reads of some requests (b, s), padded behind, where the model is: ids, mask, ids beside them."""
    names = dict.fromkeys(name for request in requests for name in request.beside)
    pad = model.config.encoder.pad_token_id or 0
    rows = {
        "input_ids": _filled([request.ids for request in requests], pad),
        "attention_mask": _filled([[1] * len(request.ids) for request in requests], 0),
        **{name: _filled([request.beside.get(name, []) for request in requests], 0) for name in names},
    }
    longest = rows["input_ids"].shape[1]
    return {name: F.pad(x, (0, longest - x.shape[1])).to(model.device) for name, x in rows.items()}


def _filled(rows: list[list[int]], value: int) -> Tensor:
    """Rows of different lengths as one tensor, with a value behind the shorter ones."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
