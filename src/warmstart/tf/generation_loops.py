"""The loops of `generate` in TensorFlow: the decoding algorithms in a `tf.while_loop`, a token at each turn.

Shapes: b sources, k beams, m sequences asked for, r rows (b * k, or b * m), p prompt length, n longest length, s source
length, h hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from warmstart.decoding import beams, choice, constrained_arrays, contrastive, groups, sampling
from warmstart.decoding.processors import Processor, process
from warmstart.decoding.settings import Plan
from warmstart.decoding.stopping import Stop, stopping
from warmstart.decoding.warpers import guided
from warmstart.generation_config import GenerationConfig
from warmstart.tf.arrays import Array, TensorFlowArrays
from warmstart.tf.cache import KeyValueCache
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
    own: list[list[tuple[Any, Any]]]
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

    def settings(self, count: int) -> beams.BeamSettings:
        """What stays the same through a search with `count` beams."""
        return beams.BeamSettings(
            beams=count,
            prompt_length=self.plan.prompt_length,
            max_length=self.plan.max_length,
            # so many that k unfinished ones remain if each beam's likeliest tokens are all end tokens
            candidates=max(2, 1 + len(self.plan.eos)) * count,
            pad=self.plan.pad,
            length_penalty=self.config.length_penalty,
            early_stopping=self.config.early_stopping,
        )


def looped(
    call: Call, turn: Turn, goes_on: Callable[[Any, Any], Any], state: Any, caches: Caches, more: Any = ()
) -> tuple[Any, Caches, Any, dict[str, Any]]:
    """Run `turn` until `goes_on` says no: the last of what is carried, and what was seen, a step on each first axis."""
    begin, steps = call.plan.prompt_length, call.plan.max_length - call.plan.prompt_length
    kept = {name: _arrays(shape, call, name, steps) for name, shape in call.rooms().items()}
    state = state._replace(at=Array(tf.constant(state.at)))
    first = Carried(tf.nest.map_structure(_value, state), [cache.own() for cache in caches], more, kept)
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
        now = tf.nest.map_structure(_value, state), [cache.own() for cache in held], more
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


def one_by_one(call: Call, caches: Caches) -> dict[str, Any]:
    """Greedy search and sampling."""
    plan, stop = call.plan, call.stop
    first = sampling.start(XP, Array(tf.repeat(call.prompt, plan.rows, 0)), plan.max_length, plan.pad)

    def turn(state: Any, caches: Caches, trouble: Any) -> Any:
        states, raw, caches = call.read(state.ids.value, state.at.value, caches)
        scores = call.processed(Array(raw), state.ids, state.at)
        choose = _draw_one(call.seed, state.at) if plan.sample else XP.argmax
        state, trouble = _watched(state, scores, trouble)
        state = sampling.step(XP, state, scores, choose, stop, plan.pad)
        return state, caches, trouble, call.seen(states, scores.value)

    state, caches, trouble, kept = looped(call, turn, _not_all_done, first, caches, _no_trouble())
    return _rows(state, kept, caches, trouble)


def _not_all_done(state: Any, more: Any) -> Any:
    return tf.logical_not(tf.reduce_all(state.done.value))


def _no_trouble() -> Any:
    return choice.no_trouble(XP).value


def _watched(state: sampling.Rows, scores: Array, trouble: Any) -> tuple[sampling.Rows, Any]:
    """A row that has no token to choose from ends there, and is remembered."""
    found, stuck = choice.watch(XP, Array(trouble), scores, state.at, ~state.done)
    return state._replace(done=state.done | stuck), found.value


def _watched_beams(state: Any, scores: Array, trouble: Any) -> Any:
    """Beams may run out of tokens, but scores that are no numbers are remembered."""
    going = XP.full(scores.shape[:1], True)
    return choice.watch(XP, Array(trouble), scores, state.at, going, may_die=True)[0].value


def _rows(state: Any, kept: dict[str, Any], caches: Caches, trouble: Any) -> dict[str, Any]:
    return {
        "sequences": state.ids.value,
        "length": state.at.value,
        "held": state.at.value,
        "kept": kept,
        "cache": caches[0].own(),
        "trouble": trouble,
    }


def beam_search(call: Call, caches: Caches) -> dict[str, Any]:
    """Beam search and beam sampling."""
    plan, settings, stop = call.plan, call.settings(call.plan.beams), call.stop

    def turn(state: Any, caches: Caches, trouble: Any) -> Any:
        ids = _flat(state.ids)
        states, raw, caches = call.read(ids.value, state.at.value, caches)
        scores = call.processed(Array(raw), ids, state.at)
        select = _draw_some(call.seed, state.at) if plan.sample else XP.top_k
        trouble = _watched_beams(state, scores, trouble)
        state = beams.step(XP, state, scores, settings, select, stop)
        return state, _reordered(caches, state.rows), trouble, call.seen(states, scores.value)

    first = beams.start(XP, Array(call.prompt), settings)
    state, caches, trouble, kept = looped(call, turn, lambda state, _: state.going.value, first, caches, _no_trouble())
    return _found(call, state, beams.finish(XP, state, plan.sequences), kept, caches, trouble)


def _found(
    call: Call, state: Any, result: Sequence[Any], kept: dict[str, Any], caches: Caches, trouble: Any
) -> dict[str, Any]:
    ids, scores, origins, longest = (_value(part) for part in result)
    return {
        "sequences": ids,
        "sequences_scores": scores,
        "beam_indices": origins,
        "length": longest + call.plan.prompt_length,
        "held": state.at.value,
        "kept": kept,
        "cache": caches[0].own(),
        "trouble": trouble,
    }


def group_search(call: Call, caches: Caches) -> dict[str, Any]:
    """Beam search in groups that differ from one another."""
    plan, count = call.plan, call.plan.beams // call.plan.groups
    settings = call.settings(count)
    ends = stopping(XP, plan.eos, plan.max_length + 1)  # the length is no end of a sequence here

    def turn(state: Any, caches: Caches, more: Any) -> Any:
        parts: list[Any] = []
        states, raw, caches = call.read(groups.ids_of(XP, state).value, state.at.value, caches)

        def score(log: Array, ids: Array, rows: Array, chosen: Array | None) -> Array:
            scores = call.processed(log, ids, state.at, rows, chosen)
            parts.append(tf.reshape(scores.value, [-1, count, raw.shape[-1]]))
            return scores

        new = groups.step(XP, state, Array(raw), settings, score, ends)
        of_all = tf.reshape(tf.concat(parts, 1), [-1, raw.shape[-1]])
        more = _watched_beams(state, Array(of_all), more[0]), _ruled(call, groups.ids_of(XP, new), new.at)
        return new, _reordered(caches, new.rows), more, call.seen(states, of_all)

    def goes_on(state: Any, more: Any) -> Any:
        return state.going.value & (state.at.value < plan.max_length) & tf.logical_not(more[1])

    first, more = groups.start(XP, Array(call.prompt), settings, plan.groups), (_no_trouble(), tf.constant(False))
    state, caches, more, kept = looped(call, turn, goes_on, first, caches, more)
    return _found(call, state, groups.finish(XP, state, settings, plan.sequences), kept, caches, more[0])


def _ruled(call: Call, ids: Array, at: Array) -> Any:
    """Whether the caller's rules end all rows."""
    if not call.rules:
        return tf.constant(False)
    newest = tf.slice(ids.value, [0, at.value - 1], [-1, 1])[:, 0]
    return tf.reduce_all(stopping(XP, (), 2**30, call.rules)(ids, Array(newest), at).value)


def contrastive_search(call: Call, caches: Caches) -> dict[str, Any]:
    """Contrastive search: each step reads all candidates, each as a row of its own, and keeps one."""
    plan, stop, count = call.plan, call.stop, call.runner.rows
    places = tf.range(plan.max_length)
    sources = tf.shape(call.prompt)[0]
    each = tf.range(sources)[:, None] * count + tf.range(count)
    real = tf.ones([sources, plan.max_length], tf.bool)
    if call.runner.mask is not None:
        real = tf.concat([call.runner.mask[::count] > 0, real], 1)[:, : plan.max_length]

    def last_of(states: States) -> Any:
        return tf.reshape(states.hidden[-1], [-1, count, states.hidden[-1].shape[-1]])

    def turn(state: Any, caches: Caches, more: Any) -> Any:
        trouble, raw, context = more
        scores = call.processed(Array(raw), state.ids, state.at)
        likely, tokens = XP.top_k(XP.softmax(scores), count)
        at = state.at.value
        longer = tf.where(places == at, tf.reshape(tokens.value, [-1, 1]), tf.repeat(state.ids.value, count, 0))
        states, after, caches = call.read(longer, at + 1, caches)
        candidates, seen = last_of(states), Array(real & (places < at))
        alpha = call.config.penalty_alpha
        chosen = contrastive.choose(XP, likely, Array(candidates), Array(context), seen, alpha).value[:, None]
        token = tf.gather(tokens.value, chosen, batch_dims=1)[:, 0]
        picked = tf.gather(each, chosen, batch_dims=1)
        state, trouble = _watched(state, scores, trouble)
        state = sampling.step(XP, state, scores, lambda _: Array(token), stop, plan.pad)
        held = tf.gather(candidates, chosen, batch_dims=1)
        context = tf.where((places == at)[None, :, None], held, context)
        caches = _reordered(caches, Array(tf.reshape(tf.repeat(picked, count, 1), [-1])))
        return state, caches, (trouble, tf.gather(after, picked[:, 0]), context), call.seen(states, scores.value)

    first = sampling.start(XP, Array(call.prompt), plan.max_length, plan.pad)
    at = tf.constant(plan.prompt_length)
    states, scores, caches = call.read(tf.repeat(first.ids.value, count, 0), at, caches)
    context = last_of(states)[:, :1]
    if call.of_prompt is not None:
        context = tf.concat([call.of_prompt.hidden[-1], context], 1)
    room = [[0, 0], [0, plan.max_length - plan.prompt_length], [0, 0]]
    more = _no_trouble(), tf.gather(scores, each[:, 0]), tf.pad(context, room, constant_values=1)
    state, caches, more, kept = looped(call, turn, _not_all_done, first, caches, more)
    return _rows(state, kept, caches, more[0])


def constrained_search(call: Call, caches: Caches) -> dict[str, Any]:
    """Beam search whose sequences must hold what the constraints ask for; which beams go on is worked out in Python."""
    plan, settings = call.plan, call.settings(call.plan.beams)
    vocabulary = call.runner.decoder.spec.embedding.vocabulary
    words = tf.constant(constrained_arrays.words_of(call.constraints), tf.int32)
    first = constrained_arrays.start(XP, Array(call.prompt), settings)
    types = [tf.int32 if isinstance(x, int) else x.value.dtype for x in first]

    def on_host(*given: Any) -> Any:
        *state, best, index, of_words = (x.tolist() for x in given)
        held = type(first)(*state)
        new = constrained_arrays.on_host(held, best, index, of_words, vocabulary, settings, call.constraints, plan.eos)
        return [np.asarray(x, kind.as_numpy_dtype) for x, kind in zip(new, types, strict=True)]

    def turn(state: Any, caches: Caches, more: Any) -> Any:
        ids = _flat(state.ids)
        states, raw, caches = call.read(ids.value, state.at.value, caches)
        scores = call.processed(Array(raw), ids, state.at)
        trouble = _watched_beams(state, scores, more[0])
        total = tf.reshape(scores.value, [-1, plan.beams, vocabulary]) + state.scores.value[:, :, None]
        best, index = tf.math.top_k(tf.reshape(total, [-1, plan.beams * vocabulary]), settings.candidates)
        given = [*tf.nest.map_structure(_value, state), best, index, tf.gather(total, words, axis=2)]
        new = tf.numpy_function(on_host, given, types)
        state = type(first)(*(Array(tf.ensure_shape(x, y.value.shape)) for x, y in zip(new, state, strict=True)))
        more = trouble, _ruled(call, _flat(state.ids), state.at)
        return state, _reordered(caches, state.rows), more, call.seen(states, scores.value)

    def goes_on(state: Any, more: Any) -> Any:
        return (state.at.value < plan.max_length) & tf.logical_not(tf.reduce_all(state.done.value) | more[1])

    def finished(*given: Any) -> Any:
        state = type(first)(*(x.tolist() for x in given))
        found = constrained_arrays.finish_on_host(state, settings, call.constraints, plan.sequences)
        return [np.asarray(x, kind) for x, kind in zip(found, (np.int32, np.float32, np.int32), strict=True)]

    more = _no_trouble(), tf.constant(False)
    state, caches, more, kept = looped(call, turn, goes_on, first, caches, more)
    found = tf.numpy_function(finished, [_value(x) for x in state], [tf.int32, tf.float32, tf.int32])
    longest = tf.reduce_max(tf.reduce_sum(tf.cast(found[2] >= 0, tf.int32), 1))
    return _found(call, state, (*found, longest), kept, caches, more[0])


SEARCHES: dict[str, Callable[[Call, Caches], dict[str, Any]]] = {
    "rows": one_by_one,
    "beams": beam_search,
    "groups": group_search,
    "contrastive": contrastive_search,
    "constrained": constrained_search,
}


# Chance ---------------------------------------------------------------------------------------------------------------


def _draw_one(seed: Any, at: Array) -> Callable[[Array], Array]:
    """A function that draws the token of each row: (r, v) to (r,)."""
    return lambda scores: XP.argmax(Array(scores.value + _gumbel(scores.value, seed, at.value)))


def _draw_some(seed: Any, at: Array) -> Callable[[Array, int], tuple[Array, Array]]:
    """A function that draws so many different candidates of each source (Kool et al. 2019, "Gumbel-top-k")."""

    def draw(scores: Array, count: int) -> tuple[Array, Array]:
        _, index = tf.math.top_k(scores.value + _gumbel(scores.value, seed, at.value), count)
        return Array(tf.gather(scores.value, index, batch_dims=1)), Array(index)

    return draw


def _gumbel(like: Any, seed: Any, at: Any) -> Any:
    """Noise whose addition makes the largest score a draw from the softmax of the scores (Gumbel 1954)."""
    tiny = 1.1754944e-38
    uniform = tf.random.stateless_uniform(
        tf.shape(like), tf.random.experimental.stateless_fold_in(seed, at), minval=tiny, maxval=1.0
    )
    return -tf.math.log(-tf.math.log(uniform))


def _flat(ids: Array) -> Array:
    """(b, k, n) to (b * k, n)."""
    return XP.reshape(ids, (ids.shape[0] * ids.shape[1], ids.shape[2]))


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Array) else x


def _reordered(caches: Caches, rows: Array) -> Caches:
    return [cache.reordered(rows.value) for cache in caches]
