"""The caller's part in `generate`: processors and stopping rules of one's own, a prefix function, time, stop strings.

Processors and stopping rules are traced, as JAX functions. What looks at text, the clock or lists is asked on the host,
out of the compiled loop (`jax.pure_callback`), which waits for it at each step.

Shapes: r rows, n longest length, v vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from warmstart.decoding.processors import Processor
from warmstart.decoding.rules import check_allowed, completed
from warmstart.decoding.scores import NEVER
from warmstart.decoding.settings import Plan
from warmstart.decoding.stopping import Stop

_TURN = 2**31  # what the milliseconds of a clock are counted within


def own_processor(function: Callable[..., Any]) -> Processor:
    """The caller's processor, `(ids (r, n), scores (r, v), tokens so far) -> scores`, its result's shape checked."""
    name = getattr(function, "__name__", type(function).__name__)

    def apply(scores: Array, ids: Array, at: Any) -> Array:
        new = function(ids, scores, at)
        if getattr(new, "shape", None) != scores.shape:
            raise ValueError(f"the logits processor {name} must return scores {tuple(scores.shape)}")
        return jnp.asarray(new, scores.dtype)

    return Processor(name, apply)


def own_rule(function: Callable[..., Any]) -> Stop:
    """The caller's rule for stopping, `(ids (r, n), tokens so far) -> ended`, booleans (r,) or one."""
    name = getattr(function, "__name__", type(function).__name__)

    def rule(ids: Array, new: Array, at: Any) -> Array:
        ended = jnp.asarray(function(ids, at))
        if ended.dtype != bool or ended.shape not in ((), new.shape):
            raise ValueError(
                f"the stopping rule {name} must return booleans, one or {tuple(new.shape)}; it returned "
                f"{ended.dtype} {tuple(ended.shape)}"
            )
        return ended

    return rule


def prefix_processor(function: Callable[[int, Any], Any], plan: Plan) -> Processor:
    """Only the tokens that the caller allows may follow: `(source, ids (n,) of numpy) -> token ids`."""
    rows = plan.rows // plan.groups  # groups of beams are asked one after another

    def allowed(ids: Any, at: Any, like: Any) -> Any:
        kept = np.zeros((len(ids), len(like)), bool)
        for row, tokens in enumerate(np.asarray(ids)[:, : int(at)]):
            given = function(row // rows, tokens)
            kept[row, check_allowed(given, len(like), row // rows, len(tokens))] = True
        return kept

    def apply(scores: Array, ids: Array, at: Any) -> Array:
        like = jnp.zeros(scores.shape[1], jnp.int8)
        kept = jax.pure_callback(allowed, jax.ShapeDtypeStruct(scores.shape, bool), ids, at, like)
        return jnp.where(kept, scores, NEVER)

    return Processor("prefix_allowed_tokens_fn", apply)


def now() -> Any:
    """The time as `time_rule` wants it: milliseconds of a clock that turns."""
    return np.int32(time.monotonic_ns() // 10**6 % _TURN)


def time_rule(seconds: float, started: Array) -> Stop:
    """All rows end once so much time has gone by since `started`."""

    def is_over(started: Any, _: Any) -> Any:
        return np.bool_((int(now()) - int(started)) % _TURN > 1000 * seconds)

    return lambda ids, new, at: jax.pure_callback(is_over, jax.ShapeDtypeStruct((), bool), started, at)


@dataclass(frozen=True)
class Strings:
    """Strings that end a row with the token that completes one of them, and the tokenizer that reads it."""

    strings: tuple[str, ...]
    tokenizer: Any

    @classmethod
    def of(cls, strings: str | Sequence[str], tokenizer: Any) -> Strings:
        """Raises ValueError where there is no tokenizer."""
        completed(strings, tokenizer)
        return cls((strings,) if isinstance(strings, str) else tuple(strings), tokenizer)

    def rule(self, ids: Array, new: Array, at: Any) -> Array:
        """The rule for stopping."""
        completes = completed(self.strings, self.tokenizer)

        def ended(ids: Any, at: Any) -> Any:
            return np.array(completes(np.asarray(ids).tolist(), [int(at)] * len(ids)), bool)

        return jax.pure_callback(ended, jax.ShapeDtypeStruct(new.shape, bool), ids, at)
