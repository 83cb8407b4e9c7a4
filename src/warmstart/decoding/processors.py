"""The processors that the settings ask for, in the order of `transformers`.

Shapes: b sources, r rows, v vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from warmstart.decoding import tokens, warpers
from warmstart.decoding.arrays import Arrays
from warmstart.decoding.scores import Processor, acting, only, process
from warmstart.decoding.settings import Plan, token_ids
from warmstart.generation_config import GenerationConfig

__all__ = ["Processor", "acting", "process", "processors_for"]


def processors_for(
    xp: Arrays,
    config: GenerationConfig,
    plan: Plan,
    vocabulary: int,
    *,
    prefix: Processor | None = None,
    custom: Sequence[Processor] = (),
) -> list[Processor]:
    """The processors that the settings ask for, in the order of `transformers`.

    `prefix` restricts the tokens that may follow, `custom` are the caller's own; they stand where they do there.
    Guidance by another source comes before all of them, so it is no part of the chain. Where no end token is in the
    vocabulary, it warns.

    Raises:
        ValueError: a token id is outside the vocabulary, or a value makes no sense.
    """
    _warn_of_endless(plan, vocabulary)
    chain: list[Processor] = []
    if config.sequence_bias is not None:
        chain += tokens.sequence_bias(xp, config.sequence_bias, vocabulary)
    if plan.groups > 1:
        chain.append(tokens.diversity(xp, config.diversity_penalty))
    if config.encoder_repetition_penalty != 1.0:
        chain.append(tokens.encoder_repetition_penalty(xp, config.encoder_repetition_penalty))
    if config.repetition_penalty != 1.0:
        chain.append(tokens.repetition_penalty(xp, config.repetition_penalty))
    if config.no_repeat_ngram_size > 0:
        chain.append(tokens.no_repeat_ngram(xp, config.no_repeat_ngram_size))
    if config.encoder_no_repeat_ngram_size > 0:
        chain.append(tokens.encoder_no_repeat_ngram(xp, config.encoder_no_repeat_ngram_size))
    if config.bad_words_ids is not None:
        words = [word for word in config.bad_words_ids if not (len(word) == 1 and word[0] in plan.eos)]
        chain += tokens.bad_words(xp, words, vocabulary)
    if plan.min_length > 0 and plan.eos:
        chain.append(only(tokens.forbid(xp, plan.eos, vocabulary, "eos_token_id"), 0, plan.min_length))
    if prefix is not None:
        chain.append(prefix)
    chain += _forced(xp, config, plan, vocabulary)
    if config.remove_invalid_values:
        chain.append(warpers.remove_invalid(xp))
    if config.exponential_decay_length_penalty is not None and plan.eos:
        start, factor = config.exponential_decay_length_penalty
        chain.append(tokens.length_decay(xp, start, factor, plan.eos, vocabulary, plan.prompt_length))
    chain += _suppressed(xp, config, plan, vocabulary)
    chain += custom
    if plan.sample:
        chain += _warpers(xp, config, keep=len(plan.eos or (0,)) + 1 if plan.beams > 1 else 1)
    if config.renormalize_logits:
        chain.append(warpers.renormalise(xp))
    return chain


def _warn_of_endless(plan: Plan, vocabulary: int) -> None:
    """Warn of end tokens that can never come: files name such ones, and `transformers` writes on without a word."""
    if plan.eos and min(plan.eos) >= vocabulary:
        warnings.warn(
            f"eos_token_id={list(plan.eos)}: the decoder has tokens 0 to {vocabulary - 1}, so that rows end at "
            f"max_length={plan.max_length}; set eos_token_id to one of them, or resize the decoder's embeddings",
            UserWarning,
            stacklevel=1,  # one place, and so one warning, though a call may build its processors twice
        )


def _forced(xp: Arrays, config: GenerationConfig, plan: Plan, vocabulary: int) -> list[Processor]:
    chain = []
    for name, first in (("forced_bos_token_id", 1), ("forced_eos_token_id", plan.max_length - 1)):
        if getattr(config, name) is not None:
            forced = tokens.force(xp, token_ids(getattr(config, name), name), vocabulary, name)
            chain.append(only(forced, first, first + 1))
    return chain


def _suppressed(xp: Arrays, config: GenerationConfig, plan: Plan, vocabulary: int) -> list[Processor]:
    chain = []
    if config.suppress_tokens is not None:
        chain.append(tokens.forbid(xp, config.suppress_tokens, vocabulary, "suppress_tokens"))
    if config.begin_suppress_tokens is not None:
        # a forced first token moves the beginning behind it
        begin = plan.prompt_length + (plan.prompt_length == 1 and config.forced_bos_token_id is not None)
        suppress = tokens.forbid(xp, config.begin_suppress_tokens, vocabulary, "begin_suppress_tokens")
        chain.append(only(suppress, begin, begin + 1))
    return chain


def _warpers(xp: Arrays, config: GenerationConfig, keep: int) -> list[Processor]:
    """What shapes the distribution that is drawn from; beams keep enough tokens to go on with."""
    if config.temperature <= 0:
        raise ValueError(
            f"temperature={config.temperature} with do_sample=True: it must be above 0; for the likeliest token each "
            "time, set do_sample=False"
        )
    if config.top_k < 0:
        raise ValueError(f"top_k={config.top_k}: it must be a whole number, 0 for all")
    chain = []
    if config.temperature != 1.0:
        chain.append(warpers.temperature(xp, config.temperature))
    if config.top_k > 0:
        chain.append(warpers.top_k(xp, config.top_k, keep))
    if config.top_p < 1.0:
        chain.append(warpers.top_p(xp, config.top_p, keep))
    if config.min_p is not None:
        chain.append(warpers.min_p(xp, config.min_p, keep))
    if config.typical_p < 1.0:
        chain.append(warpers.typical_p(xp, config.typical_p, keep))
    if 0.0 < config.epsilon_cutoff < 1.0:
        chain.append(warpers.epsilon_cutoff(xp, config.epsilon_cutoff, keep))
    if 0.0 < config.eta_cutoff < 1.0:
        chain.append(warpers.eta_cutoff(xp, config.eta_cutoff, keep))
    return chain
