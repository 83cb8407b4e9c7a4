"""What `generate` is given: its arguments checked, and the decoder's prompt.

Shapes: b sources, s source length, p prompt length.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from warmstart.decoding.settings import start_ids
from warmstart.generation_config import GenerationConfig
from warmstart.spec import BESIDE

ENCODER_ARGUMENTS = ("token_type_ids", "position_ids", "global_attention_mask", *BESIDE.values())
_ARGUMENTS = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "encoder_outputs",
    "decoder_input_ids",
    "decoder_attention_mask",
    *ENCODER_ARGUMENTS,
)
_HELPERS = (
    "tokenizer",
    "encoder_tokenizer",
    "assistant_model",
    "assistant_tokenizer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)
_WITHOUT_EFFECT = (
    "labels",
    "return_dict",
    "use_model_defaults",
)  # as a batch or an older call may hold them
_REFUSED = {
    "synced_gpus": "a model whose weights are spread over processes must be gathered before it generates",
    "custom_generate": "no code is loaded from a repository; write a loop of your own around model(...)",
    "past_key_values": "the prompt is computed anew; give what came before as decoder_input_ids",
    "decoder_inputs_embeds": "the decoder's prompt is given as decoder_input_ids",
}


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


def source_ids(arguments: dict[str, Any], mask: Tensor | None) -> Tensor | None:
    """The source's ids (b, s), -1 where there is padding; None where it was given as vectors."""
    ids = arguments.get("input_ids")
    if ids is None:
        return None
    return ids if mask is None or mask.shape != ids.shape else ids.masked_fill(mask == 0, -1)


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
    """Refuse the arguments of `generate` that it does not know, and those that it cannot honour."""
    for name, value in arguments.items():
        if name in _REFUSED and value is not None and value is not False:
            raise ValueError(f"generate() does not support {name!r}: {_REFUSED[name]}")
        if name not in (*_ARGUMENTS, *_HELPERS, *_REFUSED, *_WITHOUT_EFFECT):
            near = difflib.get_close_matches(name, [*GenerationConfig.DEFAULTS, *_ARGUMENTS, *_HELPERS], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"generate() knows no argument {name!r}{hint}")


def listed(functions: Any) -> list[Any]:
    """One function, several, or None, as a list."""
    if functions is None:
        return []
    return list(functions) if isinstance(functions, Iterable) else [functions]
