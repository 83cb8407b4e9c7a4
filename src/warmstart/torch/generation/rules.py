"""The caller's part in `generate`: processors and stopping rules of one's own, a prefix function, time, stop strings,
and guidance by a second source.

Shapes: b sources, r decoder rows, n length so far, v vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from warmstart.decoding.arrays import Position, is_column
from warmstart.decoding.inputs import check_negative_rows
from warmstart.decoding.processors import Processor
from warmstart.decoding.rules import check_allowed, completed
from warmstart.decoding.settings import Plan
from warmstart.decoding.stopping import Stop
from warmstart.decoding.warpers import guided
from warmstart.torch.arrays import TorchArrays
from warmstart.torch.runner import ModuleRunner, encode_source


def own_processor(function: Callable[[Tensor, Tensor], Tensor], plan: Plan) -> Processor:
    """The caller's processor, `(ids (r, n), scores (r, v)) -> scores`, its result checked."""
    compared = plan.sample or plan.beams > 1  # greedy search alone can do with infinity
    name = getattr(function, "__name__", type(function).__name__)

    def apply(scores: Tensor, ids: Tensor, at: Position) -> Tensor:
        if is_column(at):  # rows of different age, one by one
            return torch.cat([apply(scores[i : i + 1], ids[i : i + 1], int(n)) for i, n in enumerate(at[:, 0])])
        new = function(ids[:, :at], scores)
        if not isinstance(new, Tensor) or new.shape != scores.shape:
            got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(f"the logits processor {name} must return scores {tuple(scores.shape)}; it returned {got}")
        if bool(new.isnan().any()):
            row = int(new.isnan().any(1).int().argmax())
            raise ValueError(f"the logits processor {name} returned scores that are no numbers (NaN), in row {row}")
        if compared and bool(new.isposinf().any()):
            row = int(new.isposinf().any(1).int().argmax())
            raise ValueError(
                f"the logits processor {name} returned an infinite score in row {row}, which has no probability: give "
                "the tokens that must not come -inf in its place"
            )
        return new

    return Processor(name, apply)


def prefix_processor(function: Callable[[int, Tensor], list[int]], plan: Plan) -> Processor:
    """Only the tokens that the caller allows may follow: `(source, ids (n,)) -> token ids`."""
    rows = plan.rows // plan.groups  # groups of beams are asked one after another

    def apply(scores: Tensor, ids: Tensor, at: Position) -> Tensor:
        kept = torch.full_like(scores, float("-inf"))
        for row, tokens in enumerate(ids):
            held = int(at[row, 0]) if is_column(at) else at
            allowed = function(row // rows, tokens[:held])
            allowed = check_allowed(allowed, scores.shape[1], row // rows, held)
            kept[row, allowed] = scores[row, allowed]
        return kept

    return Processor("prefix_allowed_tokens_fn", apply)


def own_rule(function: Callable[..., Any], scores: list[Tensor] | None) -> Stop:
    """The caller's rule for stopping, its result checked; `scores` is the list that the driver fills, if scores are
    wanted.
    """
    name = getattr(function, "__name__", type(function).__name__)

    def ask(ids: Tensor) -> Tensor:
        given = function(ids, None if scores is None else tuple(scores))
        ended = torch.as_tensor(given, device=ids.device) if isinstance(given, (bool, Tensor)) else None
        if ended is None or ended.dtype is not torch.bool or ended.shape not in ((), (len(ids),)):
            got = repr(given) if ended is None else f"{tuple(ended.shape)} of {ended.dtype}"
            raise ValueError(
                f"the stopping rule {name} must return a boolean, or a tensor of {len(ids)}, one for each row; it "
                f"returned {got}"
            )
        return ended.expand(len(ids))

    def rule(ids: Tensor, new: Tensor, at: Position) -> Tensor:
        if is_column(at):
            return torch.cat([ask(ids[i : i + 1, : int(n)]) for i, n in enumerate(at[:, 0])])
        return ask(ids[:, :at])

    return rule


def time_rule(seconds: float) -> Stop:
    """All rows end once so much time has gone by since now."""
    start = time.monotonic()
    return lambda ids, new, at: time.monotonic() - start > seconds


def string_rule(strings: str | Sequence[str], tokenizer: Any) -> Stop:
    """A row ends with the token that completes one of the strings.

    Raises:
        ValueError: there is no tokenizer to read the rows with.
    """
    completes = completed(strings, tokenizer)

    def rule(ids: Tensor, new: Tensor, at: Position) -> Tensor:
        held = at[:, 0].tolist() if is_column(at) else [at] * len(ids)
        return torch.tensor(completes(ids.tolist(), held), device=ids.device)

    return rule


def guidance(
    model: Any, scale: float, arguments: dict[str, Any], plan: Plan, prompt: Tensor, prompt_mask: Tensor | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Away from what the model would write without this source, see `guided`. What it would write is asked with
    `negative_prompt_ids`: another source, or for a model without an encoder another prompt. Without them it is the
    decoder alone, without cross-attention; for a model without an encoder, the last token of the prompt. `prompt_mask`
    (b, n) tells which tokens are real, as long as sequences may become.
    """
    negative, mask = arguments.get("negative_prompt_ids"), arguments.get("negative_prompt_attention_mask")
    if negative is not None:
        check_negative_rows(len(negative), len(prompt))
        negative = negative.expand(len(prompt), -1)
        mask = None if mask is None else mask.expand(len(prompt), -1)
    before: Tensor | None = None
    if hasattr(model, "encode"):
        source = {} if negative is None else encode_source(model, {"input_ids": negative, "attention_mask": mask}, ())
        decoder = model if source else model.decoder
        runner = ModuleRunner(decoder, source, rows=plan.rows, mask=prompt_mask, use_cache=plan.beams == 1)
    else:
        before = prompt[:, -1:] if negative is None else negative
        whole = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), plan.max_length)], 1)
        runner = ModuleRunner(model, {}, rows=plan.rows, mask=whole, use_cache=plan.beams == 1)
        before = before.repeat_interleave(plan.rows, 0)

    def apply(scores: Tensor, ids: Tensor) -> Tensor:
        held = ids if before is None else torch.cat([before, ids[:, plan.prompt_length :]], 1)
        return guided(TorchArrays(ids.device), scores, runner.logits(held)[:, -1], scale)

    return apply
