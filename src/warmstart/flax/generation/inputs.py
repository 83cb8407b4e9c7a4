"""What `generate` is given: the source padded to a length that is compiled for, and what the decoder begins with.

Shapes: b sources, s source length, p prompt length.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from warmstart.decoding.settings import start_ids
from warmstart.flax.masks import with_global
from warmstart.flax.stack import check_input
from warmstart.generation_config import GenerationConfig
from warmstart.spec import BESIDE

Prompt = tuple[Any, Any]


def source_arrays(model: Any, arguments: dict[str, Any], multiple: int | None) -> dict[str, Any]:
    """The arrays of the source, its mask made, its length padded to a multiple."""
    ids, outputs = arguments.get("input_ids"), arguments.get("encoder_outputs")
    mask = model.encoder_attention_mask(ids, arguments.get("attention_mask"))
    mask = with_global(mask, arguments.get("global_attention_mask"), model.module.encoder_spec)
    if outputs is not None:
        return {"encoder_states": outputs[0], "attention_mask": mask}
    names = ("inputs_embeds", "token_type_ids", "position_ids")
    given = {name: arguments.get(name) for name in names}
    spec = model.module.encoder_spec
    beside, positions, kinds = spec.beside(arguments), given["position_ids"], given["token_type_ids"]
    check_input(spec, ids, given["inputs_embeds"], mask, None, positions, kinds, beside)
    given |= {BESIDE[table]: rows for table, rows in beside.items()}
    arrays = {"input_ids": ids, "attention_mask": mask, **given}
    if multiple is None:
        return arrays
    if not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"pad_to_multiple_of={multiple!r}: it must be a whole number, 1 or more")
    if mask is not None and mask.ndim == 3:
        raise ValueError("pad_to_multiple_of needs an attention_mask (batch, source_length)")
    tokens: Any = ids if ids is not None else given["inputs_embeds"]
    rows, length = tokens.shape[:2]
    longer = -(-length // multiple) * multiple
    more = min(longer, spec.positions or longer) - length
    if mask is None:
        arrays["attention_mask"] = np.ones((rows, length), np.int32)
    pad = model.config.encoder.pad_token_id
    fill = {"input_ids": 0 if pad is None or pad < 0 else pad}
    return {name: None if x is None else _longer(x, more, fill.get(name, 0)) for name, x in arrays.items()}


def negative_arrays(
    model: Any, config: GenerationConfig, arguments: dict[str, Any], rows: int, encoder_decoder: bool
) -> dict[str, Any]:
    """What `guidance_scale` leads away from: another source, or without an encoder another prompt; for each row."""
    ids, mask = arguments.get("negative_prompt_ids"), arguments.get("negative_prompt_attention_mask")
    if ids is None:
        return {}
    if config.guidance_scale in (None, 1):
        raise ValueError("negative_prompt_ids are what guidance_scale leads away from: set it to a number above 1")
    _check_ids(ids, "negative_prompt_ids")
    if len(ids) not in (1, rows):
        raise ValueError(f"negative_prompt_ids has {len(ids)} rows for {rows} sources; give one, or one each")
    if encoder_decoder:
        mask = model.encoder_attention_mask(ids, mask)
        check_input(model.module.encoder_spec, ids, None, mask)
    else:
        check_input(model.spec, ids, None, mask)
        _check_left_padded(mask)
    spread = {"negative_ids": ids, "negative_mask": mask}
    return {name: None if x is None else np.broadcast_to(x, (rows, *x.shape[1:])) for name, x in spread.items()}


def _longer(x: Any, more: int, value: int) -> Any:
    numpy = np if isinstance(x, np.ndarray) else jax.numpy
    return numpy.pad(x, ((0, 0), (0, more), *((0, 0) for _ in x.shape[2:])), constant_values=value)


def decoder_prompt(model: Any, config: GenerationConfig, arguments: dict[str, Any]) -> Prompt:
    """What the decoder begins with (b, p), and its mask: a start token, before `decoder_input_ids` if those lack it."""
    sources = _count_sources(arguments)
    prompt, mask = arguments.get("decoder_input_ids"), arguments.get("decoder_attention_mask")
    if mask is not None and (prompt is None or mask.shape != prompt.shape):
        raise ValueError("decoder_attention_mask belongs to decoder_input_ids of the same shape; give both, or neither")
    if prompt is not None:
        _check_ids(prompt, "decoder_input_ids")
        _check_left_padded(mask)
        if len(prompt) != sources:
            raise ValueError(
                f"decoder_input_ids has {len(prompt)} rows and the source {sources}; they must be the same"
            )
        if config.decoder_start_token_id is None and config.bos_token_id is None:
            return prompt, mask
    start = np.asarray(start_ids(config), np.int32)
    if start.ndim and len(start) not in (1, sources):
        raise ValueError(
            f"decoder_start_token_id has {len(start)} ids for {sources} sources; give one, or one for each"
        )
    start = np.broadcast_to(start.reshape(-1, 1), (sources, 1))
    if prompt is None:
        return start, None
    if isinstance(prompt, jax.core.Tracer):  # its values are not known: it is taken as it is
        return prompt, mask
    prompt = np.asarray(prompt)
    real = np.ones_like(prompt) if mask is None else np.asarray(mask)
    first = real.argmax(1)[:, None]  # where a row's prompt begins, behind its padding
    if (np.take_along_axis(prompt, first, 1) == start).any():
        return prompt, mask
    starts = np.arange(prompt.shape[1] + 1) == first
    prompt = np.where(starts, start, np.concatenate([prompt[:, :1], prompt], 1))
    real = np.concatenate([np.zeros_like(real[:, :1]), real], 1) | starts
    return prompt, None if real.all() else real


def prompt_only(model: Any, config: GenerationConfig, arguments: dict[str, Any]) -> Prompt:
    """The prompt of a model without an encoder (b, p), and its mask."""
    read = ("input_ids", "attention_mask", "tokenizer", "negative_prompt_ids", "negative_prompt_attention_mask")
    for name in arguments:
        if name not in read and arguments[name] is not None:
            raise ValueError(f"{name} is not supported by generate() of a model without an encoder; give input_ids")
    ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    if ids is None:
        if config.bos_token_id is None:
            raise ValueError("there is nothing to begin with: give input_ids, or set model.config.bos_token_id")
        return np.array([[config.bos_token_id]], np.int32), None
    _check_ids(ids, "input_ids")
    check_input(model.spec, ids, None, mask)
    ends = config.eos_token_id if isinstance(config.eos_token_id, (list, tuple)) else [config.eos_token_id]
    if mask is None and config.pad_token_id is not None and config.pad_token_id not in ends:
        mask = ids != config.pad_token_id
    _check_left_padded(mask)
    if mask is not None and not isinstance(mask, jax.core.Tracer) and np.asarray(mask).all():
        mask = None
    return ids, mask


def _check_left_padded(mask: Any) -> None:
    if mask is not None and not isinstance(mask, jax.core.Tracer) and not np.asarray(mask)[:, -1].all():
        raise ValueError(
            "the prompt ends in padding, and generation goes on from its last position: pad it on the left "
            "(tokenizer.padding_side = 'left')"
        )


def _count_sources(arguments: dict[str, Any]) -> int:
    ids, embeds, outputs = (arguments.get(name) for name in ("input_ids", "inputs_embeds", "encoder_outputs"))
    if outputs is not None:
        return len(outputs[0])
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
    if not isinstance(ids, (np.ndarray, jax.Array)):
        raise ValueError(f"{name} is a {type(ids).__name__}; it must be an array (batch, length)")
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(f"{name} is {tuple(ids.shape)} of {ids.dtype}; it must be whole numbers (batch, length)")
    if 0 in ids.shape:
        raise ValueError(f"{name} is empty, {tuple(ids.shape)}; give at least one row with at least one token")
