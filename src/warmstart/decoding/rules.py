"""The caller's rules that are read on the host: strings that end a text, and functions that say what may follow.

What they look at is text or Python, so every framework hands them its ids as lists, from its loop or out of a compiled
one (`jax.pure_callback`, `tf.numpy_function`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Rows = Sequence[Sequence[int]]


def completed(strings: str | Sequence[str], tokenizer: Any) -> Callable[[Rows, Sequence[int]], list[bool]]:
    """A function (rows of ids, how many of each count) -> which rows complete one of the strings with their last token.

    Raises:
        ValueError: there is no tokenizer to read the rows with.
    """
    if tokenizer is None:
        raise ValueError("stop_strings are looked for in text: pass the decoder's tokenizer, tokenizer=...")
    wanted = [strings] if isinstance(strings, str) else list(strings)
    # a token gives a letter at least, but for special ones and parts of one letter: so some more are read
    reach = max(map(len, wanted)) + 8

    def ends(tokens: Sequence[int]) -> bool:
        before, text = (tokenizer.decode(part, skip_special_tokens=False) for part in (tokens[:-1], tokens))
        return any(text.count(string) > before.count(string) for string in wanted)

    def rule(rows: Rows, held: Sequence[int]) -> list[bool]:
        return [ends(row[max(0, count - reach) : count]) for row, count in zip(rows, held, strict=True)]

    return rule


def check_allowed(allowed: Any, vocabulary: int, source: int, held: int) -> list[int]:
    """What a `prefix_allowed_tokens_fn` gave, as a list.

    Raises:
        ValueError: it allows no token, or one that the vocabulary does not have.
    """
    if not hasattr(allowed, "__iter__"):
        raise ValueError(f"prefix_allowed_tokens_fn returned {allowed!r} for source {source}; it must be token ids")
    tokens = [int(token) for token in allowed]
    if not tokens:
        raise ValueError(f"prefix_allowed_tokens_fn allows no token for source {source} at {held}")
    outside = [token for token in tokens if not 0 <= token < vocabulary]
    if outside:
        raise ValueError(
            f"prefix_allowed_tokens_fn gives token ids outside the vocabulary of {vocabulary}: {outside[:8]}"
        )
    return tokens


def check_constraints(constraints: Sequence[Any], eos: Sequence[int], vocabulary: int) -> None:
    """Refuse constraints that no sequence can meet.

    Raises:
        ValueError: they hold ids outside the vocabulary, or an end token.
    """
    tokens = {token for constraint in constraints for words in constraint.alternatives for token in words}
    outside = sorted(token for token in tokens if token >= vocabulary)
    if outside:
        raise ValueError(f"the constraints have token ids outside the vocabulary of {vocabulary}: {outside[:8]}")
    if tokens & set(eos):
        raise ValueError(f"the constraints hold an end token, {sorted(tokens & set(eos))}: nothing follows it")
