"""`generate` in JAX: works out what a call asks for, and runs a search compiled once for its shapes and settings.

Shapes: b sources, m sequences asked for of each, p prompt length, n longest length, s source length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from warmstart.decoding.arguments import check_arguments, listed
from warmstart.decoding.arguments import wanted as wanted_of
from warmstart.decoding.choice import check_choice, check_found
from warmstart.decoding.constraints import constraints_of
from warmstart.decoding.outputs import output_of, transition_scores
from warmstart.decoding.settings import Plan, lay_over, resolve
from warmstart.flax.arrays import JaxArrays
from warmstart.flax.generation.inputs import decoder_prompt, negative_arrays, prompt_only, source_arrays
from warmstart.flax.generation.rules import Strings, now
from warmstart.flax.generation.search import Search, search
from warmstart.generation_config import GenerationConfig
from warmstart.outputs import FlaxGenerateOutput

_REFUSED = {
    "streamer": "a compiled search gives its tokens when it is done",
    "generator": "random numbers come from seed=, or from a key of jax.random in prng_key=",
}


def generate(
    model: Any,
    input_ids: Any = None,
    generation_config: GenerationConfig | None = None,
    prng_key: Any = None,
    params: Any = None,
    logits_processor: Sequence[Callable[..., Any]] | None = None,
    stopping_criteria: Sequence[Callable[..., Any]] | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Any], Any] | None = None,
    seed: int | None = None,
    pad_to_multiple_of: int | None = None,
    **kwargs: Any,
) -> Any:
    """Generate token ids by the search that the settings ask for.

    Greedy search; sampling (`do_sample`); beam search and beam sampling (`num_beams`); diverse beam search
    (`num_beam_groups`, `diversity_penalty`); contrastive search (`penalty_alpha`, `top_k`); constrained beam search
    (`force_words_ids`, `constraints`).

    The search, encoder and loop together, is one compiled function, kept for the next call of the same shapes and
    settings. Without an end token it goes on to the longest length.

    Args:
        model: an encoder-decoder, or a causal language model.
        input_ids: source ids `(batch, source_length)`, or without an encoder the prompt, padded on the left.
        generation_config: settings for this call.
        prng_key: the random numbers of sampling; `jax.random.key(0)` if None.
        params: parameters in place of the model's own: replaced ones, or sharded over a mesh.
        logits_processor: functions `(ids (rows, length), scores (rows, vocabulary), tokens so far) -> scores`, traced.
        stopping_criteria: functions `(ids (rows, length), tokens so far) -> ended`, booleans `(rows,)` or one, traced.
        prefix_allowed_tokens_fn: `(source, ids (length,)) -> the token ids that may follow`, in Python: asked out of
            the compiled loop at every step, as are `stop_strings` and `max_time`.
        seed: a number in place of a `prng_key`.
        pad_to_multiple_of: pad sources to a multiple of so many tokens, so that varied lengths compile few times.
        kwargs: settings; `attention_mask` (derived from the pad id if left out), `inputs_embeds`, `encoder_outputs`,
            `token_type_ids`; `decoder_input_ids` and `decoder_attention_mask`, a prompt for the decoder, padded on the
            left; `negative_prompt_ids` and their mask for `guidance_scale`; `tokenizer` (the decoder's) for
            `stop_strings`.

    Returns:
        An object with `sequences` `(batch * num_return_sequences, max_length)`, prompt included, filled with the pad id
        up to the longest length that was asked for; and with beams their `scores`. With `return_dict_in_generate=True`
        one of the classes of `warmstart.decoding.outputs`; outside of `jit` its sequences end with the longest, and
        there are as many steps as were made.

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
    check_arguments(config, arguments, "JAX", _REFUSED)
    if seed is not None and prng_key is not None:
        raise ValueError("prng_key and seed both say where random numbers come from; give one of them")
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
    arrays: dict[str, Any] = {"prompt": prompt, "prompt_mask": prompt_mask}
    if encoder_decoder:
        arrays |= source_arrays(model, arguments, pad_to_multiple_of)
    arrays |= negative_arrays(model, config, arguments, len(prompt), encoder_decoder)
    if config.max_time is not None:
        if isinstance(jnp.zeros(()), jax.core.Tracer):
            raise ValueError("max_time is counted from a call, and inside jit there is none: leave it out there")
        arrays["started"] = now()
    spec = model.module.decoder_spec if encoder_decoder else model.module.spec
    if spec.positions is not None and plan.max_length > spec.positions:
        raise ValueError(
            f"results of {plan.max_length} tokens are more than the {spec.positions} positions of the {spec.family} "
            "stack; lower max_length or max_new_tokens"
        )
    wants = wanted_of(config)
    if plan.strategy == "contrastive" and {"attentions", "hidden_states"} & set(wants):
        raise ValueError(
            "output_attentions and output_hidden_states: a step of contrastive search reads all candidates; for the "
            "states of what was chosen, call the model on it: model(input_ids, decoder_input_ids=sequences)"
        )
    constraints = constraints_of(config.constraints, config.force_words_ids)
    wanted = Search(
        module=model.module,
        plan=plan,
        settings=_as_text(config),
        custom=listed(logits_processor),
        config=config,
        wants=wants,
        rules=listed(stopping_criteria),
        prefix=prefix_allowed_tokens_fn,
        strings=None if config.stop_strings is None else Strings.of(config.stop_strings, arguments.get("tokenizer")),
        constraints=tuple(x.alternatives for x in constraints),
        with_cache=bool(config.return_dict_in_generate),
    )
    key = jax.random.key(seed or 0) if prng_key is None else prng_key
    arrays = {name: None if value is None else jnp.asarray(value) for name, value in arrays.items()}
    found = search(wanted, model.params if params is None else params, arrays, key)
    _check_result(found, plan, config)
    if not config.return_dict_in_generate:
        return FlaxGenerateOutput(sequences=found["sequences"], scores=found.get("sequences_scores"))
    return _output(found, plan, config, arguments if encoder_decoder else None)


def compute_transition_scores(
    model: Any,
    sequences: Array,
    scores: Sequence[Array],
    beam_indices: Array | None = None,
    normalize_logits: bool = False,
) -> Array:
    """The score of each generated token: (b * m, new tokens), 0 behind the end of a beam.

    Args:
        model: not used; this is a method of models.
        sequences: what `generate` returned with `return_dict_in_generate=True`, (b * m, n).
        scores: its `scores`, (r, v) for each step.
        beam_indices: its `beam_indices` (b * m, new tokens), with beams.
        normalize_logits: make log-probabilities of the scores first.

    Raises:
        ValueError: there are more steps than tokens, or no scores.
    """
    return transition_scores(JaxArrays(), sequences, scores, beam_indices, normalize_logits)


def _as_text(config: GenerationConfig) -> str:
    """The settings as text, by which compiled searches are told apart; constraints are told apart by themselves."""
    plain = GenerationConfig(**{name: x for name, x in config.explicit().items() if name != "constraints"})
    return plain.to_json_string(use_diff=False)


def _check_result(found: dict[str, Any], plan: Plan, config: GenerationConfig) -> None:
    """What a compiled search could not raise; while it is traced, and over many processes, it stays unsaid."""
    trouble = found.pop("trouble")
    if isinstance(trouble, jax.core.Tracer) or not trouble.is_fully_addressable:
        return
    check_choice(*trouble[0].tolist())
    if plan.beams > 1:
        best = found["sequences_scores"].reshape(-1, plan.sequences)[:, 0]
        check_found(best.tolist(), int(found["new"]), config.length_penalty)


def _output(found: dict[str, Any], plan: Plan, config: GenerationConfig, source: dict[str, Any] | None) -> Any:
    """What was found as one of the output classes; while it is traced, of all steps that there are room for."""
    steps = new = plan.max_length - plan.prompt_length
    if not isinstance(found["steps"], jax.core.Tracer):
        steps, new = int(found["steps"]), int(found["new"])
    return output_of(found, plan, config, new, steps, source, _joined)


def _joined(before: Array, after: Array) -> Array:
    return jnp.concatenate([jnp.repeat(before, len(after) // len(before), 0), after], -2)
