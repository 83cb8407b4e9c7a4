"""One call of `generate` as it is traced in JAX: scores of the next tokens, and the loop that searches run in.

Shapes: b sources, r rows (b times beams, or times sequences asked for), p prompt length, n longest length, s source
length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from warmstart.decoding.processors import Processor, process
from warmstart.decoding.settings import Plan
from warmstart.decoding.stopping import Stop, stopping
from warmstart.decoding.warpers import guided
from warmstart.flax.arrays import JaxArrays
from warmstart.flax.cache import KeyValueCache
from warmstart.flax.runner import Runner
from warmstart.flax.stack import States
from warmstart.generation_config import GenerationConfig

XP = JaxArrays()
Caches = tuple[KeyValueCache, "KeyValueCache | None"]
"""The cache of the model, and that of what it would write without its source, where it is guided."""


@dataclass
class Call:
    """One call of `generate`, as it is traced."""

    plan: Plan
    config: GenerationConfig
    runner: Runner
    unguided: Runner | None
    processors: list[Processor]
    rules: Sequence[Stop]  # what may end a row beside an end token and the length
    constraints: Sequence[Any]
    wants: tuple[str, ...]
    prompt: Array  # (b, p)
    of_prompt: States | None  # what was seen of its tokens but the last
    before: Array | None  # (b, 1) what the model without its source begins with, if not with the prompt's last token
    source: Array | None  # (r, s) the source's ids, -1 where there is padding
    key: Array

    @property
    def stop(self) -> Stop:
        """When rows end."""
        return stopping(XP, self.plan.eos, self.plan.max_length, self.rules)

    def read(self, ids: Array, at: Array, caches: Caches) -> tuple[States, Array, Caches]:
        """What follows the first `at` of `ids` (r, n): the states, the scores (r, v) before processing, the caches."""
        newest = lax.dynamic_slice_in_dim(ids, at - 1, 1, 1)
        states = self.runner.read(newest, caches[0])
        assert states.logits is not None and states.cache is not None
        logits, other = states.logits[:, -1], caches[1]
        scores = XP.log_softmax(logits) if self.plan.beams > 1 else logits
        if self.unguided is not None:
            if self.before is not None:
                begins = jnp.repeat(self.before, len(ids) // len(self.before), 0)
                newest = jnp.where(at == self.plan.prompt_length, begins, newest)
            without = self.unguided.read(newest, other)  # type: ignore[arg-type]
            scores, other = guided(XP, scores, without.logits[:, -1], self.config.guidance_scale), without.cache  # type: ignore[index]
        return states, scores, (states.cache, other)

    def processed(
        self, scores: Array, ids: Array, at: Array, rows: Array | None = None, chosen: Array | None = None
    ) -> Array:
        """Scores (r, v) after the processors; `rows` are those that `scores` are of, if not all."""
        source = self.source if rows is None or self.source is None else self.source[rows]
        return process(XP, self.processors, scores, ids, at, source, chosen)

    def seen(self, states: States, scores: Array) -> dict[str, Any]:
        """What is to be returned of a step."""
        assert states.logits is not None
        all_of = {
            "logits": states.logits[:, -1],
            "scores": scores,
            "attentions": states.attentions,
            "cross_attentions": states.cross_attentions,
            "hidden_states": states.hidden,
        }
        wanted = (*self.wants, "cross_attentions") if "attentions" in self.wants else self.wants
        return {name: all_of[name] for name in wanted if all_of[name] is not None}


def looped(
    call: Call, goes_on: Callable[[Any], Array], turn: Callable[[Any], tuple[Any, dict[str, Any]]], first: Any
) -> tuple[Any, dict[str, Any]]:
    """Run `turn` until `goes_on` says no: the last of what is carried, and what was seen, a step on each first axis."""
    if not call.wants:
        return lax.while_loop(goes_on, lambda carried: turn(carried)[0], first), {}
    steps = call.plan.max_length - call.plan.prompt_length
    shapes = jax.eval_shape(turn, first)[1]
    kept = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), shapes)

    def body(carried: Any) -> Any:
        step, kept, inner = carried
        inner, seen = turn(inner)
        put = partial(lax.dynamic_update_index_in_dim, index=step, axis=0)
        return step + 1, jax.tree.map(put, kept, seen), inner

    _, kept, last = lax.while_loop(lambda carried: goes_on(carried[2]), body, (jnp.int32(0), kept, first))
    return last, kept
