"""`generate` in torch: runs the model step by step around the decoding algorithms.

Shapes: b sources, k decoder rows for each (beams, or sequences asked for), r = b * k rows, p prompt length, t new
positions, n length so far, s source length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from warmstart.decoding import beams, sampling
from warmstart.decoding.outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)
from warmstart.decoding.processors import Processor, process, processors_for
from warmstart.decoding.settings import Plan, lay_over, resolve
from warmstart.decoding.stopping import Stop, stopping
from warmstart.generation_config import GenerationConfig
from warmstart.torch.arrays import TorchArrays
from warmstart.torch.generation_inputs import (
    check_arguments,
    decoder_prompt,
    listed,
    own_processor,
    own_rule,
    prefix_processor,
    prompt_only,
    time_rule,
)
from warmstart.torch.runner import Runner, encode_source, runner_for, wanted_states


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
    **kwargs: Any,
) -> Any:
    """Generate token ids: greedy search, sampling, beam search or beam sampling, as the settings say.

    The settings are the model's `generation_config`, under those of the `generation_config` given here, under the
    keyword arguments. The encoder runs once; its states are shared by all sequences of a source.

    Args:
        model: an encoder-decoder, or a causal language model.
        inputs: source ids `(batch, source_length)`, or for a model without an encoder the prompt, padded on the left;
            the same as `input_ids`.
        generation_config: settings for this call.
        logits_processor: functions `(ids (rows, length), scores (rows, vocabulary)) -> scores`, applied after those of
            the settings and before temperature, top_k and the like.
        stopping_criteria: functions `(ids (rows, length), scores so far or None) -> ended`, booleans `(rows,)` or one.
        prefix_allowed_tokens_fn: `(source, ids (length,)) -> the token ids that may follow`.
        streamer: has `put(ids)` and `end()`; gets the prompt and then each new token. Not with beams.
        generator: the random numbers of sampling; torch's global generator if None.
        kwargs: settings; `attention_mask` (derived from the pad id if left out), `inputs_embeds`, `encoder_outputs`,
            `token_type_ids`; `decoder_input_ids` and `decoder_attention_mask`, a prompt for the decoder.

    Returns:
        Token ids `(batch * num_return_sequences, length)`, prompt included, rows that ended early filled with the pad
        id; or with `return_dict_in_generate=True` one of the classes of `warmstart.decoding.outputs`.

    Raises:
        ValueError: an argument is unknown or not supported yet, settings contradict each other, a special token's id is
            missing, or inputs have a wrong shape; the message names it and says what to do.

    >>> from warmstart import BertConfig, EncoderDecoderConfig, EncoderDecoderModel
    >>> size = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**size), BertConfig(**size))
    >>> model = EncoderDecoderModel(config).eval()
    >>> source = torch.tensor([[4, 5, 6], [7, 8, 0]])
    >>> ids = generate(model, source, decoder_start_token_id=1, eos_token_id=2, min_length=4, max_length=4, num_beams=3)
    >>> ids.shape, ids[:, 0]
    (torch.Size([2, 4]), tensor([1, 1]))
    """
    config, arguments = lay_over(model.generation_config, generation_config, kwargs)
    check_arguments(arguments)
    encoder_decoder = hasattr(model, "encode")  # a BART's decoder alone says is_encoder_decoder in its config
    if inputs is not None:
        if arguments.get("input_ids") is not None:
            raise ValueError("the source was given twice, as `inputs` and as `input_ids`; give one of them")
        arguments["input_ids"] = inputs
    arguments = {
        name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in arguments.items()
    }
    prompt, prompt_mask = (decoder_prompt if encoder_decoder else prompt_only)(model, config, arguments)
    plan = resolve(
        config,
        kwargs,
        prompt_length=prompt.shape[1],
        encoder_decoder=encoder_decoder,
        positions=None if encoder_decoder else getattr(model.config, "max_position_embeddings", None),
    )
    if streamer is not None and plan.beams > 1:
        raise ValueError(f"a streamer with num_beams={plan.beams}: beams are not final until the end; use num_beams=1")
    xp = TorchArrays(prompt.device)
    source = encode_source(model, arguments, wanted_states(config)) if encoder_decoder else {}
    mask = None
    if prompt_mask is not None and not bool(prompt_mask.all()):
        rest = prompt_mask.new_ones(prompt_mask.shape[0], plan.max_length - plan.prompt_length)
        mask = torch.cat([prompt_mask, rest], 1)
    runner = runner_for(model, source, config, rows=plan.rows, length=plan.max_length, mask=mask)
    decoder = _Scorer(xp, runner, config, plan)
    custom = [own_processor(function) for function in listed(logits_processor)]
    prefix = None if prefix_allowed_tokens_fn is None else prefix_processor(prefix_allowed_tokens_fn, plan)
    decoder.own_processors = prefix, custom
    rules = [own_rule(function, decoder.seen.get("scores")) for function in listed(stopping_criteria)]
    if config.max_time is not None:
        rules.append(time_rule(config.max_time))
    stop = stopping(xp, plan.eos, plan.max_length, rules)
    may_end_early = bool(plan.eos or rules)
    if plan.beams > 1:
        result = _beam_search(xp, decoder, prompt, plan, config, stop, generator)
    else:
        result = _one_by_one(xp, decoder, prompt, plan, stop, generator, streamer, may_end_early)
    return decoder.output(result, source) if config.return_dict_in_generate else result["sequences"]


def _one_by_one(
    xp: TorchArrays,
    decoder: _Scorer,
    prompt: Tensor,
    plan: Plan,
    stop: Stop,
    generator: torch.Generator | None,
    streamer: Any,
    may_end_early: bool,
) -> dict[str, Any]:
    """Greedy search and sampling."""

    def draw(scores: Tensor) -> Tensor:
        return torch.multinomial(torch.softmax(scores, -1), 1, generator=generator)[:, 0]

    state = sampling.start(xp, prompt.repeat_interleave(plan.rows, 0), plan.max_length, plan.pad)
    if streamer is not None:
        streamer.put(state.ids[:, : state.at].cpu())
    while True:
        scores = decoder.scores(state.ids[:, : state.at])
        state = sampling.step(xp, state, scores, draw if plan.sample else xp.argmax, stop, plan.pad)
        if streamer is not None:
            streamer.put(state.ids[:, state.at - 1].cpu())
        if state.at >= plan.max_length or (may_end_early and bool(state.done.all())):
            break
    if streamer is not None:
        streamer.end()
    return {"sequences": state.ids[:, : state.at]}


def _beam_search(
    xp: TorchArrays,
    decoder: _Scorer,
    prompt: Tensor,
    plan: Plan,
    config: GenerationConfig,
    stop: Stop,
    generator: torch.Generator | None,
) -> dict[str, Any]:
    """Beam search and beam sampling."""

    def draw(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        index = torch.multinomial(torch.softmax(scores, -1), count, generator=generator)
        return torch.gather(scores, 1, index), index

    settings = beams.BeamSettings(
        beams=plan.beams,
        prompt_length=plan.prompt_length,
        max_length=plan.max_length,
        # so many that k unfinished ones remain if each beam's likeliest tokens are all end tokens
        candidates=max(2, 1 + len(plan.eos)) * plan.beams,
        pad=plan.pad,
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
    )
    state = beams.start(xp, prompt, settings)
    while True:
        scores = decoder.scores(state.ids.flatten(0, 1)[:, : state.at])
        state = beams.step(xp, state, scores, settings, draw if plan.sample else xp.top_k, stop)
        if not bool(state.going):
            break
        decoder.runner.reorder(state.rows)
    ids, sums, origins, longest = beams.finish(xp, state, plan.sequences)
    new = int(longest)
    return {
        "sequences": ids[:, : plan.prompt_length + new],
        "sequences_scores": sums if config.output_scores else None,
        "beam_indices": origins[:, :new],
    }


class _Scorer:
    """The scores of the next tokens: the model's logits, processed; and what is to be returned of them."""

    def __init__(self, xp: TorchArrays, runner: Runner, config: GenerationConfig, plan: Plan) -> None:
        self.xp, self.runner, self.config, self.plan = xp, runner, config, plan
        self.own_processors: tuple[Processor | None, list[Processor]] = (None, [])
        self.processors: list[Processor] | None = None
        wanted = [name for name in ("scores", "logits") if getattr(config, f"output_{name}")]
        self.seen: dict[str, list[Tensor]] = {name: [] for name in wanted if config.return_dict_in_generate}

    def scores(self, ids: Tensor) -> Tensor:
        """The processed scores (r, v) of what follows `ids` (r, n): logits, or with beams log-probabilities."""
        logits = self.runner.logits(ids)[:, -1]
        if self.processors is None:
            prefix, custom = self.own_processors
            self.processors = processors_for(
                self.xp, self.config, self.plan, logits.shape[-1], prefix=prefix, custom=custom
            )
        if "logits" in self.seen:
            self.seen["logits"].append(logits.clone())
        scores = self.xp.log_softmax(logits) if self.plan.beams > 1 else logits
        scores = process(self.xp, self.processors, scores, ids, ids.shape[1])
        if "scores" in self.seen:
            self.seen["scores"].append(scores)
        return scores

    def output(self, result: dict[str, Any], source: dict[str, Any]) -> Any:
        """The result as one of the output classes."""
        seen = {**self.seen, **getattr(self.runner, "seen", {})}
        fields: dict[str, Any] = {name: tuple(values) for name, values in seen.items()}
        fields |= result | {"past_key_values": getattr(self.runner, "cache", None)}
        if not source:
            kind = GenerateBeamDecoderOnlyOutput if self.plan.beams > 1 else GenerateDecoderOnlyOutput
            return kind(**fields)
        for name in wanted_states(self.config):
            fields[f"encoder_{name}"] = getattr(source["encoder_outputs"], name, None)
        return (GenerateBeamEncoderDecoderOutput if self.plan.beams > 1 else GenerateEncoderDecoderOutput)(**fields)
