"""What `generate` is given: its arguments checked, the decoder's prompt, the caller's own processors and rules.

Shapes: b sources, r decoder rows, p prompt length, n length so far, v vocabulary.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from warmstart.decoding.arrays import Position
from warmstart.decoding.processors import Processor
from warmstart.decoding.settings import Plan, start_ids
from warmstart.decoding.stopping import Stop
from warmstart.generation_config import GenerationConfig

ENCODER_ARGUMENTS = ("token_type_ids", "position_ids")
_ARGUMENTS = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "encoder_outputs",
    "decoder_input_ids",
    "decoder_attention_mask",
    *ENCODER_ARGUMENTS,
)
_WITHOUT_EFFECT = (
    "labels",
    "return_dict",
    "use_model_defaults",
    "tokenizer",
)  # as a batch or an older call may hold them
_UNSUPPORTED = (
    "assistant_model",
    "assistant_tokenizer",
    "synced_gpus",
    "custom_generate",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "past_key_values",
    "decoder_inputs_embeds",
)


def decoder_prompt(model: Any, config: GenerationConfig, arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """What the decoder begins with (b, p), and its mask: a start token, before `decoder_input_ids` if those lack it."""
    sources, device = _count_sources(arguments), model.device
    prompt, mask = arguments.get("decoder_input_ids"), arguments.get("decoder_attention_mask")
    if mask is not None and (prompt is None or mask.shape != prompt.shape):
        raise ValueError("decoder_attention_mask belongs to decoder_input_ids of the same shape; give both, or neither")
    _check_left_padded(mask)
    if prompt is not None:
        _check_ids(prompt, "decoder_input_ids")
        if len(prompt) != sources:
            raise ValueError(
                f"decoder_input_ids has {len(prompt)} rows and the source {sources}; they must be the same"
            )
        if config.decoder_start_token_id is None and config.bos_token_id is None:
            return prompt, mask
    start = torch.tensor(start_ids(config), device=device)
    if start.ndim and len(start) not in (1, sources):
        raise ValueError(
            f"decoder_start_token_id has {len(start)} ids for {sources} sources; give one, or one for each"
        )
    start = start.reshape(-1, 1).expand(sources, 1)
    if prompt is None:
        return start, None
    real = torch.ones_like(prompt) if mask is None else mask.long()
    first = real.argmax(1, keepdim=True)  # where a row's prompt begins, behind its padding
    if bool((prompt.gather(1, first) == start).any()):
        return prompt, mask
    starts = torch.arange(prompt.shape[1] + 1, device=device) == first
    prompt = torch.where(starts, start, torch.cat([prompt[:, :1], prompt], 1))
    return prompt, torch.cat([torch.zeros_like(real[:, :1]), real], 1) | starts


def prompt_only(model: Any, config: GenerationConfig, arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """The prompt of a model without an encoder (b, p), and its mask."""
    for name in (
        "encoder_outputs",
        "inputs_embeds",
        "decoder_input_ids",
        "decoder_attention_mask",
        *ENCODER_ARGUMENTS,
    ):
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is not supported by generate() of a model without an encoder; give input_ids")
    ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    if ids is None:
        if config.bos_token_id is None:
            raise ValueError("there is nothing to begin with: give input_ids, or set model.config.bos_token_id")
        return torch.tensor([[config.bos_token_id]], device=model.device), None
    _check_ids(ids, "input_ids")
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)} and input_ids {tuple(ids.shape)}; they must be the same"
        )
    ends = config.eos_token_id if isinstance(config.eos_token_id, (list, tuple)) else [config.eos_token_id]
    if mask is None and config.pad_token_id is not None and config.pad_token_id not in ends:
        mask = (ids != config.pad_token_id).long()
    _check_left_padded(mask)
    return ids, mask


def _check_left_padded(mask: Tensor | None) -> None:
    if mask is not None and not bool(mask[:, -1].all()):
        raise ValueError(
            "the prompt ends in padding, and generation goes on from its last position: pad it on the left "
            "(tokenizer.padding_side = 'left')"
        )


def _count_sources(arguments: dict[str, Any]) -> int:
    ids, embeds, outputs = (arguments.get(name) for name in ("input_ids", "inputs_embeds", "encoder_outputs"))
    if outputs is not None:
        return len(outputs[0] if isinstance(outputs, (tuple, list)) else outputs.last_hidden_state)
    if (ids is None) == (embeds is None):
        given = "neither" if ids is None else "both"
        raise ValueError(f"generate() needs either input_ids or inputs_embeds for the encoder; it got {given}")
    if embeds is not None:
        if embeds.ndim != 3 or 0 in embeds.shape:
            raise ValueError(f"inputs_embeds is {tuple(embeds.shape)}; it must be (batch, source_length, hidden)")
        return len(embeds)
    _check_ids(ids, "input_ids")
    assert ids is not None
    return len(ids)


def _check_ids(ids: Any, name: str) -> None:
    if not isinstance(ids, Tensor):
        raise ValueError(f"{name} is a {type(ids).__name__}; it must be a tensor (batch, length)")
    if ids.ndim != 2 or ids.is_floating_point() or ids.dtype is torch.bool:
        raise ValueError(f"{name} is {tuple(ids.shape)} of {ids.dtype}; it must be whole numbers (batch, length)")
    if 0 in ids.shape:
        raise ValueError(f"{name} is empty, {tuple(ids.shape)}; give at least one row with at least one token")


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse the arguments of `generate` that it does not know, and those that it cannot honour yet."""
    for name, value in arguments.items():
        if name in _UNSUPPORTED and value is not None and value is not False:
            raise ValueError(f"generate() does not support {name!r} yet")
        if name not in _ARGUMENTS + _UNSUPPORTED + _WITHOUT_EFFECT:
            near = difflib.get_close_matches(name, [*GenerationConfig.DEFAULTS, *_ARGUMENTS], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"generate() knows no argument {name!r}{hint}")


def listed(functions: Any) -> list[Any]:
    """One function, several, or None, as a list."""
    if functions is None:
        return []
    return list(functions) if isinstance(functions, Iterable) else [functions]


def own_processor(function: Callable[[Tensor, Tensor], Tensor]) -> Processor:
    """The caller's processor, `(ids (r, n), scores (r, v)) -> scores`, its result checked."""
    name = getattr(function, "__name__", type(function).__name__)

    def apply(scores: Tensor, ids: Tensor, at: Position) -> Tensor:
        new = function(ids, scores)
        if not isinstance(new, Tensor) or new.shape != scores.shape:
            got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(f"the logits processor {name} must return scores {tuple(scores.shape)}; it returned {got}")
        return new

    return Processor(name, apply)


def prefix_processor(function: Callable[[int, Tensor], list[int]], plan: Plan) -> Processor:
    """Only the tokens that the caller allows may follow: `(source, ids (n,)) -> token ids`."""

    def apply(scores: Tensor, ids: Tensor, at: Position) -> Tensor:
        kept = torch.full_like(scores, float("-inf"))
        for row, tokens in enumerate(ids):
            allowed = function(row // plan.rows, tokens)
            if len(allowed) == 0:
                raise ValueError(f"prefix_allowed_tokens_fn allows no token for source {row // plan.rows} at {at}")
            kept[row, allowed] = scores[row, allowed]
        return kept

    return Processor("prefix_allowed_tokens_fn", apply)


def own_rule(function: Callable[..., Any], scores: list[Tensor] | None) -> Stop:
    """The caller's rule for stopping; `scores` is the list that the driver fills, if scores are wanted."""

    def rule(ids: Tensor, new: Tensor, at: Position) -> Any:
        return function(ids[:, :at], None if scores is None else tuple(scores))

    return rule


def time_rule(seconds: float) -> Stop:
    """All rows end once so much time has gone by since now."""
    start = time.monotonic()
    return lambda ids, new, at: time.monotonic() - start > seconds
