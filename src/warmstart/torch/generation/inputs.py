"""What `generate` is given: its arguments checked, and the decoder's prompt.

Shapes: b sources, s source length, p prompt length.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from warmstart.decoding.inputs import (
    check_alone,
    check_ids,
    check_prompt,
    check_starts,
    check_vectors,
    first_token,
    padding_of,
    refuse_prompt_mask,
    refuse_right_padding,
    source_name,
)
from warmstart.decoding.settings import start_ids
from warmstart.generation_config import GenerationConfig
from warmstart.outputs import as_encoded
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
        refuse_prompt_mask()
    _check_left_padded(mask)
    if prompt is not None:
        _check_ids(prompt, "decoder_input_ids")
        check_prompt(len(prompt), sources)
        if config.decoder_start_token_id is None and config.bos_token_id is None:
            return prompt, mask
    start = torch.tensor(start_ids(config), device=device)
    if start.ndim:
        check_starts(len(start), sources)
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
    others = ("encoder_outputs", "inputs_embeds", "decoder_input_ids", "decoder_attention_mask")
    check_alone(arguments, (*others, *ENCODER_ARGUMENTS))
    ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    if ids is None:
        return torch.tensor([[first_token(config)]], device=model.device), None
    _check_ids(ids, "input_ids")
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)} and input_ids {tuple(ids.shape)}; they must be the same"
        )
    pad = padding_of(config)
    if mask is None and pad is not None:
        mask = (ids != pad).long()
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
        refuse_right_padding()


def _count_sources(arguments: dict[str, Any]) -> int:
    name = source_name(arguments)
    given = arguments[name]
    if name == "encoder_outputs":
        return len(as_encoded(given).last_hidden_state)
    if name == "inputs_embeds":
        check_vectors(tuple(given.shape))
    else:
        _check_ids(given, name)
    return len(given)


def _check_ids(ids: Any, name: str) -> None:
    if not isinstance(ids, Tensor):
        raise ValueError(f"{name} is a {type(ids).__name__}; it must be a tensor (batch, length)")
    check_ids(name, tuple(ids.shape), ids.dtype, not (ids.is_floating_point() or ids.dtype is torch.bool))


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse the arguments of `generate` that it does not know, and those that it cannot honour."""
    for name, value in arguments.items():
        if name in _REFUSED and value is not None and value is not False:
            raise ValueError(f"generate() does not support {name!r}: {_REFUSED[name]}")
        if name not in (*_ARGUMENTS, *_HELPERS, *_REFUSED, *_WITHOUT_EFFECT):
            near = difflib.get_close_matches(name, [*GenerationConfig.DEFAULTS, *_ARGUMENTS, *_HELPERS], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"generate() knows no argument {name!r}{hint}")


def listed(name: str, functions: Any) -> list[Any]:
    """One function, several, or None, as a list."""
    if functions is None:
        return []
    found = list(functions) if isinstance(functions, Iterable) else [functions]
    for function in found:
        if not callable(function):
            raise ValueError(f"{name} holds {function!r}, which is no function")
    return found
