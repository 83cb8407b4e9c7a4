"""Logits processors: what changes the scores of the next token before it is chosen.

A processor is a pure function of the scores (r, v), the rows' tokens (r, n), and how many of them there are so far,
`at`. Tokens from `at` on are not looked at, so `ids` may be the whole buffer or only its filled part.

Shapes: r rows, n length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from warmstart.decoding.arrays import Array, Arrays, Position
from warmstart.decoding.settings import Plan, token_ids
from warmstart.generation_config import GenerationConfig

NEVER = float("-inf")
"""The score of a token that must not come."""


class Processor(NamedTuple):
    """One change of the scores, made while ``first <= at < last``."""

    name: str
    apply: Callable[[Array, Array, Position], Array]
    first: int = 0
    last: float = float("inf")


def process(xp: Arrays, processors: Iterable[Processor], scores: Array, ids: Array, at: Position) -> Array:
    """Apply the processors in order; those that cannot act at this position cost nothing where `at` is a Python int."""
    for processor in processors:
        if isinstance(at, int):
            if processor.first <= at < processor.last:
                scores = processor.apply(scores, ids, at)
        elif processor.first <= 0 and processor.last == float("inf"):
            scores = processor.apply(scores, ids, at)
        else:
            last = min(processor.last, 2**31 - 1)
            acts = (at >= processor.first) & (at < int(last))
            scores = xp.where(acts, processor.apply(scores, ids, at), scores)
    return scores


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

    Raises:
        ValueError: a token id is outside the vocabulary, or a value makes no sense.
    """
    chain: list[Processor] = []
    if config.repetition_penalty != 1.0:
        chain.append(repetition_penalty(xp, config.repetition_penalty))
    if config.no_repeat_ngram_size > 0:
        chain.append(no_repeat_ngram(xp, config.no_repeat_ngram_size))
    if config.bad_words_ids is not None:
        words = [word for word in config.bad_words_ids if not (len(word) == 1 and word[0] in plan.eos)]
        chain += bad_words(xp, words, vocabulary)
    if plan.min_length > 0 and plan.eos:
        chain.append(only(forbid(xp, plan.eos, vocabulary, "eos_token_id"), 0, plan.min_length))
    if prefix is not None:
        chain.append(prefix)
    if config.forced_bos_token_id is not None:
        forced = token_ids(config.forced_bos_token_id, "forced_bos_token_id")
        chain.append(only(force(xp, forced, vocabulary, "forced_bos_token_id"), 1, 2))
    if config.forced_eos_token_id is not None:
        forced = token_ids(config.forced_eos_token_id, "forced_eos_token_id")
        last = plan.max_length - 1
        chain.append(only(force(xp, forced, vocabulary, "forced_eos_token_id"), last, last + 1))
    if config.suppress_tokens is not None:
        chain.append(forbid(xp, config.suppress_tokens, vocabulary, "suppress_tokens"))
    if config.begin_suppress_tokens is not None:
        # a forced first token moves the beginning behind it
        begin = plan.prompt_length + (plan.prompt_length == 1 and config.forced_bos_token_id is not None)
        suppress = forbid(xp, config.begin_suppress_tokens, vocabulary, "begin_suppress_tokens")
        chain.append(only(suppress, begin, begin + 1))
    chain += custom
    if plan.sample:
        chain += _warpers(xp, config, keep=len(plan.eos or (0,)) + 1 if plan.beams > 1 else 1)
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
        chain.append(temperature(xp, config.temperature))
    if config.top_k > 0:
        chain.append(top_k(xp, config.top_k, keep))
    if config.top_p < 1.0:
        chain.append(top_p(xp, config.top_p, keep))
    if config.min_p is not None:
        chain.append(min_p(xp, config.min_p, keep))
    return chain


def only(processor: Processor, first: int = 0, last: float = float("inf")) -> Processor:
    """The same processor, acting while ``first <= at < last``."""
    return processor._replace(first=first, last=last)


def forbid(xp: Arrays, tokens: Iterable[int], vocabulary: int, name: str = "suppress_tokens") -> Processor:
    """These tokens must not come."""
    forbidden = _members(xp, tokens, vocabulary, name)
    return Processor(name, lambda scores, ids, at: xp.where(forbidden, NEVER, scores))


def force(xp: Arrays, tokens: Iterable[int], vocabulary: int, name: str) -> Processor:
    """One of these tokens must come; each gets the score 0."""
    forced = _members(xp, tokens, vocabulary, name)
    return Processor(name, lambda scores, ids, at: xp.where(forced, 0.0, xp.full(tuple(scores.shape), NEVER)))


def repetition_penalty(xp: Arrays, penalty: float) -> Processor:
    """Make the tokens that are there already less likely: a score is divided by the penalty, or multiplied if negative.

    Keskar et al. 2019, "CTRL", section 4.1, with the sign taken into account.
    """

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        held = xp.arange(ids.shape[1])[None, :] < at
        seen = xp.mark(ids, held, scores.shape[-1])
        return xp.where(seen, xp.where(scores < 0, scores * penalty, scores / penalty), scores)

    return Processor("repetition_penalty", apply)


def no_repeat_ngram(xp: Arrays, size: int) -> Processor:
    """No `size` tokens in a row come twice (Paulus et al. 2017, section 2.5)."""

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        windows = ids.shape[1] - size + 1
        if windows < 1:
            return scores
        match = xp.arange(windows)[None, :] < at - size + 1
        tail = _tail(xp, ids, at, size - 1)
        for i in range(size - 1):
            match = match & (ids[:, i : i + windows] == tail[:, i : i + 1])
        return xp.where(xp.mark(ids[:, size - 1 :], match, scores.shape[-1]), NEVER, scores)

    return Processor("no_repeat_ngram_size", apply, first=size)


def bad_words(xp: Arrays, words: Sequence[Sequence[int]], vocabulary: int) -> list[Processor]:
    """None of these token sequences may come: the last token of each is forbidden where the others stand before it.

    A sequence of n > 1 tokens is watched for once a row holds n tokens, as in `transformers`.
    """
    processors = []
    singles = [word[0] for word in words if len(word) == 1]
    if singles:
        processors.append(forbid(xp, singles, vocabulary, "bad_words_ids"))
    for length in sorted({len(word) for word in words if len(word) > 1}):
        group = [list(word) for word in words if len(word) == length]
        _check_ids((token for word in group for token in word), vocabulary, "bad_words_ids")
        processors.append(_bad_words_of(xp, group, length))
    return processors


def _bad_words_of(xp: Arrays, words: list[list[int]], length: int) -> Processor:
    before = xp.array([[word[:-1] for word in words]])
    last = xp.array([[word[-1] for word in words]])

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        match = xp.all(_tail(xp, ids, at, length - 1)[:, None, :] == before, 2)
        banned = xp.mark(last + xp.full((scores.shape[0], 1), 0), match, scores.shape[-1])
        return xp.where(banned, NEVER, scores)

    return Processor("bad_words_ids", apply, first=length)


def temperature(xp: Arrays, value: float) -> Processor:
    """Divide the scores: below 1 sharpens the distribution, above 1 flattens it."""
    return Processor("temperature", lambda scores, ids, at: scores / value)


def top_k(xp: Arrays, k: int, keep: int = 1) -> Processor:
    """Keep the k likeliest tokens (Fan et al. 2018, section 5.4), at least `keep`; equals of the last one stay too."""

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        return xp.where(scores < _kth(xp, scores, max(k, keep)), NEVER, scores)

    return Processor("top_k", apply)


def top_p(xp: Arrays, p: float, keep: int = 1) -> Processor:
    """Keep the fewest likeliest tokens whose probabilities sum to p or more (Holtzman et al. 2020), at least `keep`.

    Equals of the last one stay too.
    """

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        vocabulary = scores.shape[-1]
        ascending = xp.sort(scores)
        unlikely = xp.cumsum(xp.softmax(ascending)) <= 1 - p
        unlikely = unlikely & (xp.arange(vocabulary) < vocabulary - keep)
        # what is unlikely comes first, so their number is where the rest begins
        least = xp.take(ascending, xp.sum(unlikely, 1, keepdims=True))
        return xp.where(scores < least, NEVER, scores)

    return Processor("top_p", apply)


def min_p(xp: Arrays, p: float, keep: int = 1) -> Processor:
    """Keep the tokens whose probability is at least p times that of the likeliest, and at least `keep`."""

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        probabilities = xp.softmax(scores)
        unlikely = probabilities < p * xp.max(probabilities, 1, keepdims=True)
        return xp.where(unlikely & (scores < _kth(xp, scores, keep)), NEVER, scores)

    return Processor("min_p", apply)


def _kth(xp: Arrays, scores: Array, k: int) -> Array:
    """The k-th largest score of each row (r, 1), or the smallest where there are fewer."""
    return xp.top_k(scores, min(k, scores.shape[-1]))[0][:, -1:]


def _tail(xp: Arrays, ids: Array, at: Position, count: int) -> Array:
    """The last `count` tokens before `at`, (r, count); what they are where there are fewer is not defined."""
    if count == 0:
        return ids[:, :0]
    index = xp.arange(count)[None, :] + (at - count)
    index = xp.where(index < 0, 0, index)
    return xp.take(ids, index + xp.full((ids.shape[0], 1), 0))


def _members(xp: Arrays, tokens: Iterable[int], vocabulary: int, name: str) -> Array:
    """Booleans (1, v): which tokens of the vocabulary are among these."""
    tokens = [int(token) for token in tokens]
    _check_ids(tokens, vocabulary, name)
    if not tokens:
        return xp.full((1, vocabulary), False)
    return xp.mark(xp.array([tokens]), xp.full((1, len(tokens)), True), vocabulary)


def _check_ids(tokens: Iterable[int], vocabulary: int, name: str) -> None:
    outside = [token for token in tokens if not 0 <= token < vocabulary]
    if outside:
        raise ValueError(
            f"{name} has token ids outside the vocabulary: {outside[:8]}; they go from 0 to {vocabulary - 1}"
        )
