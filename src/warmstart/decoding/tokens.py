"""Processors that look at tokens: which may come, which must, and which have come already.

Shapes: r rows, n length, m sequences, s source length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from warmstart.decoding.arrays import Array, Arrays, Position
from warmstart.decoding.scores import NEVER, Processor, check_ids, members, tail


def forbid(xp: Arrays, tokens: Iterable[int], vocabulary: int, name: str = "suppress_tokens") -> Processor:
    """These tokens must not come."""
    forbidden = members(xp, tokens, vocabulary, name)
    return Processor(name, lambda scores, ids, at: xp.where(forbidden, NEVER, scores))


def force(xp: Arrays, tokens: Iterable[int], vocabulary: int, name: str) -> Processor:
    """One of these tokens must come; each gets the score 0."""
    forced = members(xp, tokens, vocabulary, name)
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
        before = tail(xp, ids, at, size - 1)
        for i in range(size - 1):
            match = match & (ids[:, i : i + windows] == before[:, i : i + 1])
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
        check_ids((token for word in group for token in word), vocabulary, "bad_words_ids")
        processors.append(_bad_words_of(xp, group, length))
    return processors


def _bad_words_of(xp: Arrays, words: list[list[int]], length: int) -> Processor:
    before = xp.array([[word[:-1] for word in words]])
    last = xp.array([[word[-1] for word in words]])

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        match = xp.all(tail(xp, ids, at, length - 1)[:, None, :] == before, 2)
        banned = xp.mark(last + xp.full((scores.shape[0], 1), 0), match, scores.shape[-1])
        return xp.where(banned, NEVER, scores)

    return Processor("bad_words_ids", apply, first=length)


def sequence_bias(xp: Arrays, biases: Any, vocabulary: int) -> list[Processor]:
    """Add to the score of each sequence's last token, where the others stand before it: {tokens: bias}, or pairs.

    A sequence of n > 1 tokens counts once a row holds n tokens, as in `transformers`.
    """
    pairs = biases.items() if isinstance(biases, Mapping) else biases
    of_words = {tuple(int(token) for token in words): float(bias) for words, bias in pairs}  # the last of equal ones
    check_ids((token for words in of_words for token in words), vocabulary, "sequence_bias")
    return [_bias_of(xp, list(words), bias) for words, bias in of_words.items()]


def _bias_of(xp: Arrays, words: list[int], bias: float) -> Processor:
    last = words[-1]

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        here = xp.arange(scores.shape[-1])[None, :] == last
        if len(words) > 1:
            before = xp.array([words[:-1]])
            here = here & xp.all(tail(xp, ids, at, len(words) - 1) == before, 1, keepdims=True)
        return xp.where(here, scores + bias, scores)

    return Processor("sequence_bias", apply, first=len(words) if len(words) > 1 else 0)


def encoder_repetition_penalty(xp: Arrays, penalty: float) -> Processor:
    """Make the tokens of the source likelier: a score is multiplied by the penalty, or divided if negative."""

    def apply(scores: Array, ids: Array, at: Position, source: Array) -> Array:
        seen = xp.mark(source, source >= 0, scores.shape[-1])
        return xp.where(seen, xp.where(scores < 0, scores / penalty, scores * penalty), scores)

    return Processor("encoder_repetition_penalty", apply, reads="source")


def encoder_no_repeat_ngram(xp: Arrays, size: int) -> Processor:
    """No `size` tokens in a row come that stand in the source."""

    def apply(scores: Array, ids: Array, at: Position, source: Array) -> Array:
        match = source[:, size - 1 :] >= 0  # of as many windows as there are, and none in a source that is shorter
        before = tail(xp, ids, at, size - 1)
        for i in range(size - 1):
            match = match & (source[:, i : i + 1 - size] == before[:, i : i + 1])
        return xp.where(xp.mark(source[:, size - 1 :], match, scores.shape[-1]), NEVER, scores)

    return Processor("encoder_no_repeat_ngram_size", apply, first=size - 1, reads="source")


def length_decay(
    xp: Arrays, start: int, factor: float, eos: Iterable[int], vocabulary: int, prompt_length: int
) -> Processor:
    """Raise the scores of the end tokens, from `start` new tokens on ever more: by (factor^i - 1) of their size."""
    ends = members(xp, eos, vocabulary, "eos_token_id")
    begin = start + prompt_length

    def apply(scores: Array, ids: Array, at: Position) -> Array:
        size = xp.where(scores < 0, 0.0 - scores, scores)
        size = xp.where(ends & (scores > NEVER), size, 0.0)  # what is forbidden stays so
        return scores + size * (factor ** xp.to_float(at - begin) - 1.0)

    return Processor("exponential_decay_length_penalty", apply, first=begin + 1)


def diversity(xp: Arrays, penalty: float) -> Processor:
    """Take the penalty from a token's score for each time that the groups before have just chosen it.

    Vijayakumar et al. 2016, "Diverse Beam Search", section 5, Hamming diversity.
    """

    def apply(scores: Array, ids: Array, at: Position, chosen: Array | None) -> Array:
        for i in range(0 if chosen is None else chosen.shape[1]):
            here = xp.arange(scores.shape[-1])[None, :] == chosen[:, i : i + 1]  # type: ignore[index]
            scores = xp.where(here, scores - penalty, scores)
        return scores

    return Processor("diversity_penalty", apply, reads="chosen")
