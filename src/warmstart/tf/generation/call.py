"""One call of `generate` as it is traced in TensorFlow: scores of the next tokens, and the loop that searches run in.

Shapes: b sources, r rows (b times beams, or times sequences asked for), p prompt length, n longest length, s source
length, h hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from warmstart.decoding.processors import Processor, process
from warmstart.decoding.settings import Plan
from warmstart.decoding.stopping import Stop, stopping
from warmstart.decoding.warpers import guided
from warmstart.generation_config import GenerationConfig
from warmstart.tf.arrays import Array, TensorFlowArrays
from warmstart.tf.cache import KeyValueCache, Own
from warmstart.tf.runner import Runner
from warmstart.tf.stack import States

XP = TensorFlowArrays()
Caches = Sequence[KeyValueCache]
"""The cache of the model, and that of what it would write without its source, where it is guided."""
Turn = Callable[[Any, Caches, Any], tuple[Any, Caches, Any, dict[str, Any]]]


class Carried(NamedTuple):
    """What one turn hands to the next: the search's state, the caches' tensors, what else a search carries, and what is
    to be returned of each step.
    """

    state: Any
    own: list[Own]
    more: Any
    kept: dict[str, Any]


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
    prompt: Any  # (b, p)
    of_prompt: States | None  # what was seen of its tokens but the last
    before: Any  # (b, 1) what the model without its source begins with, if not with the prompt's last token
    source: Any  # (r, s) the source's ids, -1 where there is padding
    seed: Any  # (2,) what random numbers follow from

    @property
    def stop(self) -> Stop:
        """When rows end."""
        return stopping(XP, self.plan.eos, self.plan.max_length, self.rules)

    def read(self, ids: Any, at: Any, caches: Caches) -> tuple[States, Any, Caches]:
        """What follows the first `at` of `ids` (r, n): the states, the scores (r, v) before processing, the caches."""
        newest = tf.slice(ids, [0, at - 1], [-1, 1])
        states, logits = self.runner.read(newest, caches[0], at - 1)
        states.logits = logits
        scores = XP.log_softmax(Array(logits)) if self.plan.beams > 1 else Array(logits)
        if self.unguided is None:
            return states, scores.value, [states.cache]
        if self.before is not None:
            newest = tf.where(at == self.plan.prompt_length, tf.repeat(self.before, self.runner.rows, 0), newest)
        without, its_logits = self.unguided.read(newest, caches[1], at - 1)
        scores = guided(XP, scores, Array(its_logits), self.config.guidance_scale)
        return states, scores.value, [states.cache, without.cache]

    def processed(
        self, scores: Array, ids: Array, at: Array, rows: Array | None = None, chosen: Array | None = None
    ) -> Array:
        """Scores (r, v) after the processors; `rows` are those that `scores` are of, if not all."""
        source = self.source
        if source is not None:
            source = Array(source if rows is None else tf.gather(source, rows.value))
        return process(XP, self.processors, scores, ids, at, source, chosen)

    def seen(self, states: States, scores: Any) -> dict[str, Any]:
        """What is to be returned of a step."""
        all_of = {"logits": states.logits, "scores": scores, "attentions": states.attentions}
        all_of |= {"cross_attentions": states.cross_attentions, "hidden_states": states.hidden}
        return {name: all_of[name] for name in self.rooms()}

    def rooms(self) -> dict[str, Any]:
        """The shape of what is to be returned of a step, by its name."""
        spec, room = self.runner.decoder.spec, self.runner.room
        vocabulary, layers = [None, spec.embedding.vocabulary], range(spec.layers)
        shapes: dict[str, Any] = {
            "scores": vocabulary,
            "logits": vocabulary,
            "attentions": tuple([None, spec.attention.heads_of(i)[0], 1, room] for i in layers),
            "hidden_states": tuple([None, 1, spec.hidden_size] for _ in range(spec.layers + 1)),
        }
        found = {name: shapes[name] for name in self.wants}
        if "attentions" in found and spec.cross_attention is not None:
            found["cross_attentions"] = tuple([None, spec.cross_attention.heads, 1, None] for _ in layers)
        return found


def looped(
    call: Call, turn: Turn, goes_on: Callable[[Any, Any], Any], state: Any, caches: Caches, more: Any = ()
) -> tuple[Any, Caches, Any, dict[str, Any]]:
    """Run `turn` until `goes_on` says no: the last of what is carried, and what was seen, a step on each first axis."""
    begin, steps = call.plan.prompt_length, call.plan.max_length - call.plan.prompt_length
    kept = {name: _arrays(shape, call, name, steps) for name, shape in call.rooms().items()}
    state = state._replace(at=Array(tf.constant(state.at)))
    first = Carried(tf.nest.map_structure(value_of, state), [cache.own() for cache in caches], more, kept)
    shapes = tf.nest.map_structure(lambda x: x.shape, tuple(first[:3]))

    def body(was: Carried) -> tuple[Carried]:
        state = tf.nest.map_structure(Array, was.state)
        held: Caches = [cache.with_own(own, 0) for cache, own in zip(caches, was.own, strict=True)]
        at = was.state.at - begin
        state, held, more, seen = turn(state, held, was.more)
        kept = {
            name: tf.nest.map_structure(lambda array, x: array.write(at, x), was.kept[name], seen[name])
            for name in was.kept
        }
        now = tf.nest.map_structure(value_of, state), [cache.own() for cache in held], more
        values, own, more = tf.nest.map_structure(tf.ensure_shape, now, shapes)
        return (Carried(values, own, more, kept),)

    def condition(was: Carried) -> Any:
        return goes_on(tf.nest.map_structure(Array, was.state), was.more)

    (last,) = tf.while_loop(condition, body, (first,), maximum_iterations=steps)
    kept = tf.nest.map_structure(lambda array: array.stack(), last.kept)
    held = [cache.with_own(own, last.state.at - 1) for cache, own in zip(caches, last.own, strict=True)]
    return tf.nest.map_structure(Array, last.state), held, last.more, kept


def _arrays(shape: Any, call: Call, name: str, steps: int) -> Any:
    """Room for what is seen of so many steps."""
    if isinstance(shape, tuple):
        return tuple(_arrays(of_layer, call, name, steps) for of_layer in shape)
    dtype = tf.float32 if name in ("scores", "logits") else call.runner.decoder.compute_dtype
    return tf.TensorArray(dtype, steps, element_shape=shape, clear_after_read=False)


def value_of(x: Any) -> Any:
    """The tensor of an `Array`; what is none stays as it is."""
    return x.value if isinstance(x, Array) else x
