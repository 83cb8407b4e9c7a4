"""What `generate` is given: its arguments checked, the decoder's prompt, lengths rounded up to buckets.

Shapes: b sources, s source length, p prompt length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from warmstart.decoding.settings import start_ids
from warmstart.generation_config import GenerationConfig
from warmstart.spec import BESIDE
from warmstart.tf.inputs import as_ids, as_mask, as_tensor, check_ids, eager
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
    if config.guidance_scale in (None, 1):
        raise ValueError("negative_prompt_ids are what guidance_scale leads away from: set it to a number above 1")
    ids = checked_ids(arguments["negative_prompt_ids"], "negative_prompt_ids")
    mask = as_mask(arguments.get("negative_prompt_attention_mask"), "negative_prompt_attention_mask")
    rows = prompt.shape[0]
    if rows is not None and ids.shape[0] not in (1, rows, None):
        raise ValueError(f"negative_prompt_ids has {ids.shape[0]} rows for {rows} sources; give one, or one each")
    spec = model.encoder.spec if encoder_decoder else model.spec
    check_ids(ids, spec.embedding.vocabulary, spec.family)
    mask = model.encoder_attention_mask(ids, mask)
    if not encoder_decoder:
        check_left_padded(mask)
    sizes = [tf.shape(prompt)[0], ids.shape[1]]
    found = {"negative_ids": ids} | ({} if mask is None else {"negative_mask": tf.cast(mask, tf.int32)})
    return {name: tf.broadcast_to(x, sizes) for name, x in found.items()}


def source_tensors(model: Any, arguments: dict[str, Any], multiple: int | None) -> dict[str, Any]:
    """The source as tensors, by their names, its length rounded up to a multiple: (b, s) ids and mask, and the like."""
    given: dict[str, Any] = {}
    outputs = arguments.get("encoder_outputs")
    mask = as_mask(arguments.get("attention_mask"), "attention_mask")
    if outputs is not None:
        states = outputs if not isinstance(outputs, (tuple, list)) and not hasattr(outputs, "keys") else outputs[0]
        given["states"] = as_tensor(states, "encoder_outputs")
    elif (arguments.get("input_ids") is None) == (arguments.get("inputs_embeds") is None):
        both = "neither" if arguments.get("input_ids") is None else "both"
        raise ValueError(f"generate() needs either input_ids or inputs_embeds for the encoder; it got {both}")
    elif arguments.get("inputs_embeds") is not None:
        given["inputs_embeds"] = as_tensor(arguments["inputs_embeds"], "inputs_embeds")
        if given["inputs_embeds"].shape.rank != 3:
            shape = tuple(given["inputs_embeds"].shape)
            raise ValueError(f"inputs_embeds is {shape}; it must be (batch, source_length, hidden)")
    else:
        given["input_ids"] = ids = checked_ids(arguments["input_ids"], "input_ids")
        check_ids(ids, model.encoder.spec.embedding.vocabulary, model.encoder.spec.family)
        mask = model.encoder_attention_mask(ids, mask)
    mask = with_global(mask, arguments.get("global_attention_mask"), model.encoder.spec)
    given |= {name: as_ids(arguments[name], name) for name in ENCODER_ARGUMENTS if arguments.get(name) is not None}
    if mask is not None:
        given["attention_mask"] = tf.cast(mask, tf.int32)
    first = next(iter(given.values()))
    _check_length(first.shape[1], model.encoder.spec)
    return given if multiple is None else _rounded_up(given, first, multiple, model.encoder.spec.positions)


def _check_length(length: int | None, spec: Any) -> None:
    if length is not None and spec.positions is not None and length > spec.positions:
        raise ValueError(
            f"{length} tokens are more than the {spec.positions} positions of the {spec.family} stack; truncate to "
            f"max_length={spec.positions}, or use a model with more positions"
        )


def _rounded_up(given: dict[str, Any], first: Any, multiple: int, most: int | None) -> dict[str, Any]:
    """The source padded on the right, and masked there, to the next multiple of so many tokens."""
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"pad_to_multiple_of={multiple!r} is not a number of tokens, 1 or more")
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
    prompt, mask = arguments.get("decoder_input_ids"), as_mask(arguments.get("decoder_attention_mask"), "mask")
    if prompt is not None:
        prompt = checked_ids(prompt, "decoder_input_ids")
    if mask is not None and (prompt is None or mask.shape != prompt.shape):
        raise ValueError("decoder_attention_mask belongs to decoder_input_ids of the same shape; give both, or neither")
    check_left_padded(mask)
    if prompt is not None:
        if isinstance(sources, int) and prompt.shape[0] not in (None, sources):
            raise ValueError(
                f"decoder_input_ids has {prompt.shape[0]} rows and the source {sources}; they must be the same"
            )
        if not eager(prompt) or (config.decoder_start_token_id is None and config.bos_token_id is None):
            return prompt, mask
    ids = start_ids(config)
    if not isinstance(ids, int) and isinstance(sources, int) and len(ids) not in (1, sources):
        raise ValueError(f"decoder_start_token_id has {len(ids)} ids for {sources} sources; give one, or one for each")
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
    for name in (*others, *ENCODER_ARGUMENTS, "global_attention_mask"):
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is not supported by generate() of a model without an encoder; give input_ids")
    ids, mask = arguments.get("input_ids"), as_mask(arguments.get("attention_mask"), "attention_mask")
    if ids is None:
        if config.bos_token_id is None:
            raise ValueError("there is nothing to begin with: give input_ids, or set model.config.bos_token_id")
        return tf.constant([[config.bos_token_id]], tf.int32), None
    ids = checked_ids(ids, "input_ids")
    check_ids(ids, model.spec.embedding.vocabulary, model.spec.family)
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)} and input_ids {tuple(ids.shape)}; they must be the same"
        )
    ends = config.eos_token_id if isinstance(config.eos_token_id, (list, tuple)) else [config.eos_token_id]
    if mask is None and config.pad_token_id is not None and config.pad_token_id not in ends:
        mask = tf.cast(ids != config.pad_token_id, tf.int32)
    check_left_padded(mask)
    return ids, mask


def check_left_padded(mask: Any) -> None:
    """Refuse a prompt that ends in padding, where that can be seen."""
    if mask is not None and eager(mask) and not bool(tf.reduce_all(tf.cast(mask[:, -1], tf.bool))):
        raise ValueError(
            "the prompt ends in padding, and generation goes on from its last position: pad it on the left "
            "(tokenizer.padding_side = 'left')"
        )


def checked_ids(value: Any, name: str) -> Any:
    """Ids (batch, length) that are there."""
    ids = as_ids(value, name)
    if 0 in ids.shape.as_list():
        raise ValueError(f"{name} is empty, {tuple(ids.shape)}; give at least one row with at least one token")
    return ids
