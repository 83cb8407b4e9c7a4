"""What `generate` is given: the source padded to a length that is compiled for, and what the decoder begins with.

Shapes: b sources, s source length, p prompt length.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from warmstart.decoding.inputs import (
    check_alone,
    check_guided,
    check_ids,
    check_multiple,
    check_negative_rows,
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
    check_multiple(multiple)
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
    check_guided(config)
    _check_ids(ids, "negative_prompt_ids")
    check_negative_rows(len(ids), rows)
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
        refuse_prompt_mask()
    if prompt is not None:
        _check_ids(prompt, "decoder_input_ids")
        _check_left_padded(mask)
        check_prompt(len(prompt), sources)
        if config.decoder_start_token_id is None and config.bos_token_id is None:
            return prompt, mask
    start = np.asarray(start_ids(config), np.int32)
    if start.ndim:
        check_starts(len(start), sources)
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
    check_alone(arguments, (name for name in arguments if name not in read))
    ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    if ids is None:
        return np.array([[first_token(config)]], np.int32), None
    _check_ids(ids, "input_ids")
    check_input(model.spec, ids, None, mask)
    pad = padding_of(config)
    if mask is None and pad is not None:
        mask = ids != pad
    _check_left_padded(mask)
    if mask is not None and not isinstance(mask, jax.core.Tracer) and np.asarray(mask).all():
        mask = None
    return ids, mask


def _check_left_padded(mask: Any) -> None:
    if mask is not None and not isinstance(mask, jax.core.Tracer) and not np.asarray(mask)[:, -1].all():
        refuse_right_padding()


def _count_sources(arguments: dict[str, Any]) -> int:
    name = source_name(arguments)
    given = arguments[name]
    if name == "encoder_outputs":
        return len(given[0])
    if name == "inputs_embeds":
        check_vectors(tuple(given.shape))
    else:
        _check_ids(given, name)
    return len(given)


def _check_ids(ids: Any, name: str) -> None:
    if not isinstance(ids, (np.ndarray, jax.Array)):
        raise ValueError(f"{name} is a {type(ids).__name__}; it must be an array (batch, length)")
    check_ids(name, tuple(ids.shape), ids.dtype, ids.dtype.kind in "iu")
