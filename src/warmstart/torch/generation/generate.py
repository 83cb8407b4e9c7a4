"""`generate` in torch: what a call asks for, worked out, and the search that does it.

Shapes: b sources, k decoder rows for each (beams, or sequences asked for), r = b * k rows, p prompt length, n length,
s source length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from warmstart.decoding.inputs import check_guided
from warmstart.decoding.outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
    transition_scores,
)
from warmstart.decoding.settings import Plan, lay_over, resolve
from warmstart.decoding.stopping import Stop
from warmstart.generation_config import GenerationConfig
from warmstart.torch.arrays import TorchArrays
from warmstart.torch.generation.contrastive import contrastive_search
from warmstart.torch.generation.drafters import drafter_for
from warmstart.torch.generation.drafts import drafted
from warmstart.torch.generation.inputs import check_arguments, decoder_prompt, listed, prompt_only, source_ids
from warmstart.torch.generation.loops import Call, beam_search, constrained_search, group_search, one_by_one
from warmstart.torch.generation.rules import (
    guidance,
    own_processor,
    own_rule,
    prefix_processor,
    string_rule,
    time_rule,
)
from warmstart.torch.generation.scores import Scorer
from warmstart.torch.generation.streamers import Stream
from warmstart.torch.runner import ModuleRunner, encode_source, runner_for, wanted_states

_SEARCHES = {
    "rows": one_by_one,
    "beams": beam_search,
    "groups": group_search,
    "constrained": constrained_search,
    "contrastive": contrastive_search,
}


@torch.no_grad()
def generate(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] | None = None,
    stopping_criteria: Sequence[Callable[..., Any]] | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
    streamer: Any = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """Generate token ids by the search that the settings ask for.

    The settings are the model's `generation_config`, under those of the `generation_config` given here, under the
    keyword arguments. The encoder runs once; its states are shared by all sequences of a source. The searches: greedy;
    sampling (`do_sample`); beam search and beam sampling (`num_beams`); diverse beam search (`num_beam_groups`,
    `diversity_penalty`); contrastive search (`penalty_alpha`, `top_k`); constrained beam search (`force_words_ids`,
    `constraints`); greedy search and sampling with drafts, which change no result: from a smaller `assistant_model`,
    or looked up in the source and in what was written (`prompt_lookup_num_tokens`, `max_matching_ngram_size`).

    Args:
        model: an encoder-decoder, or a causal language model.
        inputs: source ids `(batch, source_length)`, or for a model without an encoder the prompt, padded on the left;
            the same as `input_ids`.
        generation_config: settings for this call.
        logits_processor: functions `(ids (rows, length), scores (rows, vocabulary)) -> scores`, applied after those of
            the settings and before temperature, top_k and the like.
        stopping_criteria: functions `(ids (rows, length), scores so far or None) -> ended`, booleans `(rows,)` or one.
            With groups of beams and constraints, these and `stop_strings` end a search once they end all rows.
        prefix_allowed_tokens_fn: `(source, ids (length,)) -> the token ids that may follow`.
        streamer: has `put(ids)` and `end()`; gets the prompt and then each new token, see `TextStreamer`. Not with
            beams.
        generator: the random numbers of sampling; torch's global generator if None.
        seed: a generator for this call alone, begun with this number.
        kwargs: settings; `attention_mask` (derived from the pad id if left out), `inputs_embeds`, `encoder_outputs`,
            `token_type_ids`; `decoder_input_ids` and `decoder_attention_mask`, a prompt for the decoder, padded on the
            left; `assistant_model`; `negative_prompt_ids` and their mask for `guidance_scale`; `tokenizer` (the
            decoder's) for `stop_strings`, and with `encoder_tokenizer` for drafts from a source in another vocabulary.

    Returns:
        Token ids `(batch * num_return_sequences, length)`, prompt included, rows that ended early filled with the pad
        id; or with `return_dict_in_generate=True` one of the classes of `warmstart.decoding.outputs`.

    Raises:
        ValueError: an argument is unknown or not supported, settings contradict each other or the model's positions, a
            special token's id is missing, inputs have a wrong shape, or all tokens are forbidden; the message names it
            and says what to do.

    >>> from warmstart import BertConfig, EncoderDecoderConfig, EncoderDecoderModel
    >>> size = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**size), BertConfig(**size))
    >>> model = EncoderDecoderModel(config).eval()
    >>> source = torch.tensor([[4, 5, 6], [7, 8, 0]])
    >>> ids = generate(model, source, decoder_start_token_id=1, eos_token_id=2, min_length=4, max_length=4, num_beams=3)
    >>> ids.shape, ids[:, 0]
    (torch.Size([2, 4]), tensor([1, 1]))
    """
    stream = Stream(streamer)
    own = {"prefix": prefix_allowed_tokens_fn, "processors": logits_processor, "criteria": stopping_criteria}
    try:
        return _generated(model, inputs, generation_config, kwargs, own, generator_of(model, generator, seed), stream)
    except BaseException as error:
        stream.fail(error)
        raise


def generator_of(model: Any, generator: torch.Generator | None, seed: Any) -> torch.Generator | None:
    """Where a call's random numbers come from: a `generator`, a `seed`, or None for the global one.

    Raises:
        ValueError: both are given, or the seed is no whole number.
    """
    if seed is None:
        return generator
    if generator is not None:
        raise ValueError("generator and seed both say where random numbers come from; give one of them")
    if not hasattr(seed, "__index__"):
        raise ValueError(f"seed={seed!r}: it must be a whole number")
    return torch.Generator(model.device).manual_seed(seed.__index__())


def _generated(
    model: Any,
    inputs: Tensor | None,
    given: GenerationConfig | None,
    kwargs: dict[str, Any],
    functions: dict[str, Any],
    generator: torch.Generator | None,
    stream: Stream,
) -> Any:
    """What `generate` returns; `functions` are the caller's `prefix`, `processors` and `criteria`."""
    config, arguments = lay_over(model.generation_config, given, kwargs)
    check_arguments(arguments)
    if arguments.get("negative_prompt_ids") is not None:
        check_guided(config)
    encoder_decoder = hasattr(model, "encode")  # a BART's decoder alone says is_encoder_decoder in its config
    if inputs is not None:
        if arguments.get("input_ids") is not None:
            raise ValueError("the source was given twice, as `inputs` and as `input_ids`; give one of them")
        arguments["input_ids"] = inputs
    arguments = {
        name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in arguments.items()
    }
    prompt, prompt_mask = (decoder_prompt if encoder_decoder else prompt_only)(model, config, arguments)
    plan = plan_of(model, config, kwargs, prompt.shape[1], encoder_decoder)
    if stream.streamer is not None and plan.beams > 1:
        raise ValueError(f"a streamer with num_beams={plan.beams}: beams are not final until the end; use num_beams=1")
    xp = TorchArrays(prompt.device)
    # searches whose passes are no steps have these computed afterwards, over what they found
    stepwise = plan.strategy not in ("contrastive", "drafted")
    source = encode_source(model, arguments, wanted_states(config)) if encoder_decoder else {}
    mask = _whole_mask(prompt_mask, plan)
    if plan.strategy == "contrastive":
        runner: Any = ModuleRunner(model, source, rows=1, mask=mask, wants=["hidden_states"])
    else:
        passes = config if stepwise else GenerationConfig(use_cache=True)
        runner = runner_for(model, source, passes, rows=plan.rows, length=plan.max_length, mask=mask)
    own: dict[str, Any] = {
        "prefix": None if functions["prefix"] is None else prefix_processor(functions["prefix"], plan),
        "custom": [own_processor(function, plan) for function in listed("logits_processor", functions["processors"])],
        "guidance": None,
    }
    if config.guidance_scale is not None and config.guidance_scale != 1:
        own["guidance"] = guidance(model, config.guidance_scale, arguments, plan, prompt, mask)
    ids = source_ids(arguments, source.get("attention_mask") if encoder_decoder else prompt_mask)
    scorer = Scorer(xp, runner, config, plan, ids, **own)
    criteria = listed("stopping_criteria", functions["criteria"])
    rules = _rules(config, arguments, criteria, scorer)
    call = Call(
        xp,
        config,
        plan,
        scorer,
        prompt,
        rules,
        generator,
        stream,
        may_leave=not (criteria or any(own.values()) or config.return_dict_in_generate),
    )
    if plan.strategy == "drafted":
        result = drafted(call, drafter_for(call, model, arguments, prompt_mask))
    else:
        result = _SEARCHES[plan.strategy](call)
    stream.end()
    if not config.return_dict_in_generate:
        return result["sequences"]
    states = dict(getattr(runner, "seen", {})) if stepwise else _states_of(model, source, result, config, plan, mask)
    return _output(call, result, source, states)


def plan_of(
    model: Any, config: GenerationConfig, call: dict[str, Any], prompt_length: int, encoder_decoder: bool
) -> Plan:
    """The call worked out, with the decoder's positions: those it has a table of are all that it can read."""
    decoder = model.decoder if encoder_decoder else model
    exact = getattr(getattr(decoder, "spec", None), "positions", None)
    positions = exact
    if exact is None and not encoder_decoder:
        positions = getattr(model.config, "max_position_embeddings", None)
    return resolve(
        config,
        call,
        prompt_length=prompt_length,
        encoder_decoder=encoder_decoder,
        positions=positions,
        exact_positions=exact is not None,
    )


def _whole_mask(mask: Tensor | None, plan: Plan) -> Tensor | None:
    """The prompt's mask (b, p), made as long as sequences may become; None where nothing is masked."""
    if mask is None or bool(mask.all()):
        return None
    return torch.cat([mask, mask.new_ones(len(mask), plan.max_length - plan.prompt_length)], 1)


def _rules(
    config: GenerationConfig, arguments: dict[str, Any], criteria: Sequence[Callable[..., Any]], scorer: Scorer
) -> list[Stop]:
    """What may end a row beside an end token and the length."""
    rules = [own_rule(function, scorer.seen.get("scores")) for function in criteria]
    if config.max_time is not None:
        rules.append(time_rule(config.max_time))
    if config.stop_strings is not None:
        rules.append(string_rule(config.stop_strings, arguments.get("tokenizer")))
    return rules


def _states_of(
    model: Any,
    source: dict[str, Any],
    result: dict[str, Any],
    config: GenerationConfig,
    plan: Plan,
    mask: Tensor | None,
) -> dict[str, list[Any]]:
    """The attentions and hidden states of finished sequences, split into the prompt and each token after it.

    Rows that took drafts are of different age, so that their keys and values are computed here, too.
    """
    wants, drafted = wanted_states(config), plan.strategy == "drafted"
    if not wants and not drafted:
        return {}
    ids = result["sequences"][:, :-1]
    runner = ModuleRunner(model, source, rows=plan.rows, mask=mask, use_cache=drafted, wants=wants)
    runner.started = True  # the rows of a source differ by now
    runner.logits(ids)
    if drafted:
        result["past_key_values"] = runner.cache
    ends = range(plan.prompt_length, ids.shape[1] + 1)
    seen: dict[str, list[Any]] = {}
    for name, (layers,) in runner.seen.items():
        own = name.endswith("attentions") and not name.startswith("cross")
        steps = []
        for end in ends:
            begin = 0 if end == plan.prompt_length else end - 1
            parts = [layer[..., begin:end, :] for layer in layers]
            steps.append(tuple(part[..., :end] for part in parts) if own else tuple(parts))
        seen[name] = steps
    return seen


def _output(call: Call, result: dict[str, Any], source: dict[str, Any], states: dict[str, list[Any]]) -> Any:
    """The result as one of the output classes."""
    fields: dict[str, Any] = {name: tuple(values) for name, values in {**call.scorer.seen, **states}.items()}
    fields = {name: value for name, value in fields.items() if value}
    fields |= {"past_key_values": getattr(call.scorer.runner, "cache", None)} | result
    if not source:
        return (GenerateBeamDecoderOnlyOutput if call.plan.beams > 1 else GenerateDecoderOnlyOutput)(**fields)
    for name in wanted_states(call.config):
        fields[f"encoder_{name}"] = getattr(source["encoder_outputs"], name, None)
    return (GenerateBeamEncoderDecoderOutput if call.plan.beams > 1 else GenerateEncoderDecoderOutput)(**fields)


def compute_transition_scores(
    model: Any,
    sequences: Tensor,
    scores: Sequence[Tensor],
    beam_indices: Tensor | None = None,
    normalize_logits: bool = False,
) -> Tensor:
    """The score of each generated token: (b * m, new tokens), 0 behind the end of a beam.

    Args:
        model: not used; this is a method of models.
        sequences: what `generate` returned, (b * m, n).
        scores: its `scores`, (r, v) for each step.
        beam_indices: its `beam_indices` (b * m, new tokens), with beams.
        normalize_logits: make log-probabilities of the scores first.

    Raises:
        ValueError: there are more steps than tokens, or no scores.
    """
    return transition_scores(TorchArrays(sequences.device), sequences, scores, beam_indices, normalize_logits)
