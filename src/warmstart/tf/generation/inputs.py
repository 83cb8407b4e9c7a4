"""What `generate` is given: its arguments checked, the decoder's prompt, lengths rounded up to buckets.

Shapes: b sources, s source length, p prompt length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

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
from warmstart.generation_config import GenerationConfig
from warmstart.inputs import check_length
from warmstart.spec import BESIDE
from warmstart.tf.inputs import as_ids, as_tensor, check_vocabulary, eager
from warmstart.tf.masks import with_global

ENCODER_ARGUMENTS = ("token_type_ids", "position_ids", *BESIDE.values())
REFUSED = {
    "streamer": "a graph gives its tokens when it is done",
    "generator": "random numbers come from seed=",
}
# What is asked out of the loop, as long as it is not compiled.
_ASKED = ("prefix_allowed_tokens_fn", "stop_strings", "constraints", "force_words_ids", "max_time")


def check_settings(config: GenerationConfig, prefix: Any, compiled: bool, needs: str = "jit_compile=False") -> None:
    """Refuse the settings that a graph of fixed shapes cannot honour.

    Raises:
        ValueError: names the setting, the reason and what does it.
    """
    asked = [name for name in _ASKED if (prefix if name.startswith("prefix") else getattr(config, name)) is not None]
    if compiled and asked:
        raise ValueError(f"{asked[0]} asks Python, or the clock, at each step, which needs {needs}")
    wants = [name for name in ("output_attentions", "output_hidden_states") if getattr(config, name)]
    if config.penalty_alpha and wants and config.return_dict_in_generate:
        raise ValueError(
            f"{wants[0]}: a step of contrastive search reads all candidates; for the states of what was chosen, call "
            "the model on it: model(input_ids, decoder_input_ids=sequences)"
        )


def negative_tensors(
    model: Any, config: GenerationConfig, arguments: Mapping[str, Any], prompt: Any, encoder_decoder: bool
) -> dict[str, Any]:
    """What `guidance_scale` leads away from: another source, or without an encoder another prompt; for each row."""
    if arguments.get("negative_prompt_ids") is None:
        return {}
    check_guided(config)
    ids = checked_ids(arguments["negative_prompt_ids"], "negative_prompt_ids")
    mask = as_tensor(arguments.get("negative_prompt_attention_mask"), "negative_prompt_attention_mask")
    rows = prompt.shape[0]
    if rows is not None and ids.shape[0] is not None:
        check_negative_rows(ids.shape[0], rows)
    spec = model.encoder.spec if encoder_decoder else model.spec
    check_vocabulary(ids, spec.embedding.vocabulary, spec.family)
    mask = model.encoder_attention_mask(ids, mask)
    if not encoder_decoder:
        check_left_padded(mask)
    sizes = [tf.shape(prompt)[0], ids.shape[1]]
    found = {"negative_ids": ids} | ({} if mask is None else {"negative_mask": tf.cast(mask, tf.int32)})
    return {name: tf.broadcast_to(x, sizes) for name, x in found.items()}


def source_tensors(model: Any, arguments: dict[str, Any], multiple: int | None) -> dict[str, Any]:
    """The source as tensors, by their names, its length rounded up to a multiple: (b, s) ids and mask, and the like."""
    given: dict[str, Any] = {}
    name = source_name(arguments)
    source = arguments[name]
    mask = as_tensor(arguments.get("attention_mask"), "attention_mask")
    if name == "encoder_outputs":
        states = source if not isinstance(source, (tuple, list)) and not hasattr(source, "keys") else source[0]
        given["states"] = as_tensor(states, name)
    elif name == "inputs_embeds":
        given[name] = as_tensor(source, name)
        check_vectors(tuple(given[name].shape))
    else:
        given[name] = ids = checked_ids(source, name)
        check_vocabulary(ids, model.encoder.spec.embedding.vocabulary, model.encoder.spec.family)
        mask = model.encoder_attention_mask(ids, mask)
    mask = with_global(mask, arguments.get("global_attention_mask"), model.encoder.spec)
    given |= {name: as_ids(arguments[name], name) for name in ENCODER_ARGUMENTS if arguments.get(name) is not None}
    if mask is not None:
        given["attention_mask"] = tf.cast(mask, tf.int32)
    first = next(iter(given.values()))
    if first.shape[1] is not None:
        check_length(model.encoder.spec, first.shape[1])
    return given if multiple is None else _rounded_up(given, first, multiple, model.encoder.spec.positions)


def encoder_inputs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the tensors that the encoder reads."""
    return {
        name: x
        for name, x in given.items()
        if name in ("input_ids", "inputs_embeds", "attention_mask", *ENCODER_ARGUMENTS)
    }


def _rounded_up(given: dict[str, Any], first: Any, multiple: int, most: int | None) -> dict[str, Any]:
    """The source padded on the right, and masked there, to the next multiple of so many tokens."""
    check_multiple(multiple)
    length = first.shape[1]
    if length is None:
        raise ValueError("pad_to_multiple_of needs to know the source's length; pad outside of the tf.function")
    more = min(-(-length // multiple) * multiple, most or length + multiple) - length
    if "attention_mask" not in given:
        given = {**given, "attention_mask": tf.ones(tf.shape(first)[:2], tf.int32)}
    return {name: tf.pad(x, [[0, 0], [0, more], *[[0, 0]] * (x.shape.rank - 2)]) for name, x in given.items()}


def decoder_prompt(config: GenerationConfig, arguments: dict[str, Any], sources: Any) -> tuple[Any, Any]:
    """What the decoder begins with (b, p), and its mask: a start token, before `decoder_input_ids` if those lack it.

    Inside a `tf.function` values cannot be looked at: there `decoder_input_ids` are taken as they are.
    """
    prompt, mask = arguments.get("decoder_input_ids"), as_tensor(arguments.get("decoder_attention_mask"), "mask")
    if prompt is not None:
        prompt = checked_ids(prompt, "decoder_input_ids")
    if mask is not None and (prompt is None or mask.shape != prompt.shape):
        refuse_prompt_mask()
    check_left_padded(mask)
    if prompt is not None:
        if isinstance(sources, int) and prompt.shape[0] is not None:
            check_prompt(prompt.shape[0], sources)
        if not eager(prompt) or (config.decoder_start_token_id is None and config.bos_token_id is None):
            return prompt, mask
    ids = start_ids(config)
    if not isinstance(ids, int) and isinstance(sources, int):
        check_starts(len(ids), sources)
    start = tf.broadcast_to(tf.reshape(tf.constant(ids, tf.int32), [-1, 1]), [sources, 1])
    if prompt is None:
        return start, None
    real = tf.ones_like(prompt) if mask is None else tf.cast(mask, tf.int32)
    first = tf.argmax(real, 1, output_type=tf.int32)[:, None]  # where a row's prompt begins, behind its padding
    if bool(tf.reduce_any(tf.gather(prompt, first, batch_dims=1) == start)):
        return prompt, mask
    starts = tf.range(prompt.shape[1] + 1)[None] == first
    prompt = tf.where(starts, start, tf.concat([prompt[:, :1], prompt], 1))
    real = tf.concat([tf.zeros_like(real[:, :1]), real], 1)
    return prompt, tf.cast(tf.cast(real, tf.bool) | starts, tf.int32)


def prompt_only(model: Any, config: GenerationConfig, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """The prompt of a model without an encoder (b, p), and its mask."""
    others = ("encoder_outputs", "inputs_embeds", "decoder_input_ids", "decoder_attention_mask")
    check_alone(arguments, (*others, *ENCODER_ARGUMENTS, "global_attention_mask"))
    ids, mask = arguments.get("input_ids"), as_tensor(arguments.get("attention_mask"), "attention_mask")
    if ids is None:
        return tf.constant([[first_token(config)]], tf.int32), None
    ids = checked_ids(ids, "input_ids")
    check_vocabulary(ids, model.spec.embedding.vocabulary, model.spec.family)
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)} and input_ids {tuple(ids.shape)}; they must be the same"
        )
    pad = padding_of(config)
    if mask is None and pad is not None:
        mask = tf.cast(ids != pad, tf.int32)
    check_left_padded(mask)
    return ids, mask


def check_left_padded(mask: Any) -> None:
    """Refuse a prompt that ends in padding, where that can be seen."""
    if mask is not None and eager(mask) and not bool(tf.reduce_all(tf.cast(mask[:, -1], tf.bool))):
        refuse_right_padding()


def checked_ids(value: Any, name: str) -> Any:
    """Ids (batch, length) that are there."""
    ids = as_tensor(value, name)
    check_ids(name, tuple(ids.shape), ids.dtype.name, ids.dtype.is_integer)
    return tf.cast(ids, tf.int32)
