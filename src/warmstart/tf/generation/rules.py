"""The caller's part in `generate`: processors and stopping rules of one's own, a prefix function, time, stop strings.

Processors and stopping rules are traced with the rest. What looks at text or asks Python is called out of the loop
(`tf.numpy_function`), which waits for it at each step; XLA cannot.

Shapes: r rows, n longest length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from warmstart.decoding.processors import Processor
from warmstart.decoding.rules import check_allowed, completed
from warmstart.decoding.scores import NEVER
from warmstart.decoding.settings import Plan
from warmstart.decoding.stopping import Stop
from warmstart.tf.arrays import Array


def own_processor(function: Callable[..., Any]) -> Processor:
    """The caller's processor, `(ids (r, n), scores (r, v), tokens so far) -> scores`, its result's shape checked."""
    name = getattr(function, "__name__", type(function).__name__)

    def apply(scores: Array, ids: Array, at: Array) -> Array:
        new = tf.convert_to_tensor(function(ids.value, scores.value, at.value))
        if not new.shape.is_compatible_with(scores.value.shape):
            raise ValueError(
                f"the logits processor {name} must return scores {tuple(scores.value.shape)}; it returned "
                f"{tuple(new.shape)}"
            )
        return Array(new)

    return Processor(name, apply)


def own_rule(function: Callable[..., Any]) -> Stop:
    """The caller's rule for stopping, `(ids (r, n), tokens so far) -> ended`, booleans (r,) or one."""
    name = getattr(function, "__name__", type(function).__name__)

    def rule(ids: Array, new: Array, at: Array) -> Array:
        ended = tf.convert_to_tensor(function(ids.value, at.value))
        if ended.dtype != tf.bool or ended.shape.rank not in (0, 1):
            raise ValueError(
                f"the stopping rule {name} must return booleans, one or one for each row; it returned "
                f"{ended.dtype.name} {tuple(ended.shape)}"
            )
        return Array(ended)

    return rule


def prefix_processor(function: Callable[[int, Any], Any], plan: Plan) -> Processor:
    """Only the tokens that the caller allows may follow: `(source, ids (n,) of numpy) -> token ids`."""
    rows = plan.rows // plan.groups  # groups of beams are asked one after another

    def allowed(ids: Any, at: Any, vocabulary: Any) -> Any:
        kept = np.zeros((len(ids), int(vocabulary)), bool)
        for row, tokens in enumerate(ids[:, : int(at)]):
            given = function(row // rows, tokens)
            kept[row, check_allowed(given, int(vocabulary), row // rows, len(tokens))] = True
        return kept

    def apply(scores: Array, ids: Array, at: Array) -> Array:
        kept = tf.numpy_function(allowed, [ids.value, at.value, scores.value.shape[1]], tf.bool)
        return Array(tf.where(tf.ensure_shape(kept, scores.value.shape), scores.value, NEVER))

    return Processor("prefix_allowed_tokens_fn", apply)


def time_rule(seconds: float) -> Stop:
    """All rows end once so much time has gone by since the search began."""
    started = tf.timestamp()
    return lambda ids, new, at: Array(tf.timestamp() - started > seconds)


@dataclass(frozen=True, eq=False)
class Strings:
    """Strings that end a row with the token that completes one of them, and the tokenizer that reads it."""

    strings: Any
    tokenizer: Any

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells kinds of calls apart."""
        return repr(self.strings), id(self.tokenizer)

    @property
    def rule(self) -> Stop:
        """The rule for stopping.

        Raises:
            ValueError: there is no tokenizer, or no string to look for.
        """
        completes = completed(self.strings, self.tokenizer)

        def ended(ids: Any, at: Any) -> Any:
            return np.array(completes(ids.tolist(), [int(at)] * len(ids)), bool)

        def rule(ids: Array, new: Array, at: Array) -> Array:
            found = tf.numpy_function(ended, [ids.value, at.value], tf.bool)
            return Array(tf.ensure_shape(found, new.value.shape))

        return rule
