"""`model.export`: a SavedModel with the model's forward pass and its generation, for processes without this library.

Shapes: b batch, s source length, t target length, n length of the results, v vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

from warmstart.decoding.settings import lay_over, resolve, start_ids
from warmstart.tf.generation.inputs import check_settings
from warmstart.tf.generation.search import Search


def export(model: Any, folder: str | Path, *, verbose: bool = False, **settings: Any) -> None:
    """Write a SavedModel with two signatures, for batches and lengths of any size; all ids are int32.

    `serving_default`: `input_ids`, `attention_mask` (b, s) and, for an encoder-decoder, `decoder_input_ids` (b, t) to
    `logits` (b, t, v). `generate`: `input_ids`, `attention_mask` (b, s) to `sequences` (b * m, n), cut at the longest.
    For a model without an encoder the prompts of `generate` are of the length `prompt_length` (1 if left out).
    `settings` are those of `generate` (`num_beams`, `max_new_tokens` ...), over the model's own.

    Raises:
        ValueError: a setting is not known, not supported or contradicts another, or a token id is missing.
        OSError: the folder cannot be written.
    """
    prompt_length = settings.pop("prompt_length", 1)
    config, unknown = lay_over(model.generation_config, None, {**settings, "return_dict_in_generate": False})
    if unknown:
        raise ValueError(f"export() knows no settings {sorted(unknown)}")
    check_settings(config, None, compiled=True, needs="a process with this library: call generate() there")
    pair = hasattr(model, "encode")
    plan = resolve(
        config,
        settings,
        prompt_length=1 if pair else prompt_length,
        encoder_decoder=pair,
        positions=getattr(model, "decoder", model).spec.positions,
        exact_positions=getattr(model, "decoder", model).spec.positions is not None,
    )
    search = Search(model, config, plan)
    start = start_ids(config) if pair else None
    if pair and not isinstance(start, int):
        raise ValueError("decoder_start_token_id is a list, one for each source; export needs one for all")

    def ids(name: str, length: int | None = None) -> tf.TensorSpec:
        return tf.TensorSpec([None, length], tf.int32, name=name)

    def generate(input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        if pair:
            prompt = tf.fill([tf.shape(input_ids)[0], 1], start)
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "prompt": prompt}
        else:
            given = {"prompt": input_ids, "prompt_mask": attention_mask}
        if plan.sample:
            given["seed"] = tf.random.uniform([2], minval=0, maxval=2**31 - 1, dtype=tf.int32)
        result = search(given)
        return {"sequences": result["sequences"][:, : result["length"]]}

    def logits(input_ids: Any, attention_mask: Any, decoder_input_ids: Any = None) -> dict[str, Any]:
        more = {} if decoder_input_ids is None else {"decoder_input_ids": decoder_input_ids}
        return {"logits": model(input_ids, attention_mask=attention_mask, use_cache=False, **more).logits}

    length = None if pair else plan.prompt_length
    source = [ids("input_ids"), ids("attention_mask")]
    module = tf.Module()
    module.variables_of_model = [variable.value for variable in model.variables]
    module.logits = tf.function(
        logits, input_signature=[*source, *([ids("decoder_input_ids")] if pair else [])], autograph=False
    )
    module.generate = tf.function(
        generate, input_signature=[ids("input_ids", length), ids("attention_mask", length)], autograph=False
    )
    signatures = {"serving_default": module.logits, "generate": module.generate}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    if verbose:
        for name, function in signatures.items():
            tf.print(name, function.get_concrete_function().structured_input_signature)
