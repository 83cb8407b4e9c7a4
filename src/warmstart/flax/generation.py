"""`generate` in JAX: works out what a call asks for, and runs a search compiled once for its shapes and settings.

Shapes: b sources, m sequences asked for of each, p prompt length, n longest length, s source length.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from warmstart.decoding.settings import lay_over, resolve
from warmstart.flax.generation_inputs import decoder_prompt, prompt_only, source_arrays
from warmstart.flax.search import Search, search
from warmstart.generation_config import GenerationConfig
from warmstart.outputs import FlaxGenerateOutput

_ARGUMENTS = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "encoder_outputs",
    "decoder_input_ids",
    "decoder_attention_mask",
    "token_type_ids",
    "position_ids",
)
_WITHOUT_EFFECT = ("labels", "return_dict", "use_model_defaults", "trace")  # as a batch or an older call may hold them
# Settings that need shapes which change, the clock, or text; and what a compiled search does not give.
_NOT_COMPILED = (
    *("stop_strings", "max_time", "force_words_ids", "constraints", "penalty_alpha", "guidance_scale"),
    *("prompt_lookup_num_tokens", "assistant_early_exit", "dola_layers"),
)
_NOT_RETURNED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def generate(
    model: Any,
    input_ids: Any = None,
    generation_config: GenerationConfig | None = None,
    prng_key: Any = None,
    params: Any = None,
    logits_processor: Sequence[Callable[..., Any]] | None = None,
    pad_to_multiple_of: int | None = None,
    **kwargs: Any,
) -> FlaxGenerateOutput:
    """Generate token ids: greedy search, sampling, beam search (in groups too) or beam sampling, as the settings say.

    The search, encoder and loop together, is one compiled function, kept for the next call of the same shapes and
    settings. Without an end token it goes on to the longest length.

    Args:
        model: an encoder-decoder, or a causal language model.
        input_ids: source ids `(batch, source_length)`, or without an encoder the prompt, padded on the left.
        generation_config: settings for this call.
        prng_key: the random numbers of sampling; `jax.random.key(0)` if None.
        params: parameters in place of the model's own: replaced ones, or sharded over a mesh.
        logits_processor: functions `(ids (rows, length), scores (rows, vocabulary), tokens so far) -> scores`, traced.
        pad_to_multiple_of: pad sources to a multiple of so many tokens, so that varied lengths compile few times.
        kwargs: settings; `attention_mask` (derived from the pad id if left out), `inputs_embeds`, `encoder_outputs`,
            `token_type_ids`; `decoder_input_ids` and `decoder_attention_mask`, a prompt for the decoder.

    Returns:
        An object with `sequences` `(batch * num_return_sequences, max_length)`, prompt included, filled with the pad id
        up to the longest length that was asked for; and with beams their `scores`.

    Raises:
        ValueError: an argument is unknown, a setting cannot be compiled, settings contradict each other, a special
            token's id is missing, or inputs have a wrong shape; the message names it and says what to do.

    >>> from warmstart import BertConfig, EncoderDecoderConfig, FlaxEncoderDecoderModel
    >>> size = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**size), BertConfig(**size))
    >>> model = FlaxEncoderDecoderModel(config)
    >>> model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    >>> model.generate(jnp.array([[4, 5, 6], [7, 8, 0]]), num_beams=2, max_length=5).sequences.shape
    (2, 5)
    """
    config, arguments = lay_over(model.generation_config, generation_config, kwargs)
    _check_arguments(arguments)
    _check_settings(config, kwargs)
    call = dict(kwargs)
    if config.eos_token_id is None:  # then it goes on to the end, and nothing is padded
        call.setdefault("eos_token_id", None)
        config.update(pad_token_id=0 if config.pad_token_id is None else config.pad_token_id)
    encoder_decoder = hasattr(model, "encode")
    arguments["input_ids"] = input_ids
    prompt, prompt_mask = (decoder_prompt if encoder_decoder else prompt_only)(model, config, arguments)
    plan = resolve(
        config,
        call,
        prompt_length=prompt.shape[1],
        encoder_decoder=encoder_decoder,
        positions=None if encoder_decoder else getattr(model.config, "max_position_embeddings", None),
    )
    arrays = {"prompt": prompt, "prompt_mask": prompt_mask}
    if encoder_decoder:
        arrays |= source_arrays(model, arguments, pad_to_multiple_of)
    spec = model.module.decoder_spec if encoder_decoder else model.module.spec
    if spec.positions is not None and plan.max_length > spec.positions:
        raise ValueError(
            f"results of {plan.max_length} tokens are more than the {spec.positions} positions of the {spec.family} "
            "stack; lower max_length or max_new_tokens"
        )
    wanted = Search(
        module=model.module,
        plan=plan,
        settings=config.to_json_string(use_diff=False),
        custom=tuple(_listed(logits_processor)),
        config=config,
    )
    key = jax.random.key(0) if prng_key is None else prng_key
    arrays = {name: None if value is None else jnp.asarray(value) for name, value in arrays.items()}
    sequences, scores = search(wanted, model.params if params is None else params, arrays, key)
    return FlaxGenerateOutput(sequences=sequences, scores=scores)


def _listed(functions: Any) -> list[Any]:
    if functions is None:
        return []
    return list(functions) if isinstance(functions, Iterable) else [functions]


def _check_arguments(arguments: dict[str, Any]) -> None:
    for name in arguments:
        if name not in _ARGUMENTS + _WITHOUT_EFFECT:
            near = difflib.get_close_matches(name, [*GenerationConfig.DEFAULTS, *_ARGUMENTS], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"generate() knows no argument {name!r}{hint}")


def _check_settings(config: GenerationConfig, call: dict[str, Any]) -> None:
    for name in _NOT_COMPILED:
        value, default = getattr(config, name), GenerationConfig.DEFAULTS.get(name)
        if value is not None and value != default:
            raise ValueError(
                f"{name}={value!r} cannot be compiled, for shapes and steps must be known beforehand; leave it at its "
                f"default, {default!r}, or use EncoderDecoderModel in PyTorch"
            )
    for name in _NOT_RETURNED:
        if call.get(name):
            raise ValueError(
                f"{name}={call[name]!r}: generate() in JAX returns sequences, and with beams their scores; for more, "
                "call the model on them: model(input_ids, decoder_input_ids=sequences)"
            )
