"""The loops of `generate` in TensorFlow: the decoding algorithms in a `tf.while_loop`, a token at each turn.

Shapes: b sources, k beams, m sequences asked for, r rows (b * k, or b * m), p prompt length, n longest length, s source
length, h hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from warmstart.decoding import beams, choice, constrained_arrays, contrastive, groups, sampling
from warmstart.decoding.stopping import stopping
from warmstart.tf.arrays import Array
from warmstart.tf.generation.call import XP, Caches, Call, looped, value_of
from warmstart.tf.stack import States


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
    plan, settings, stop = call.plan, beams.settings_of(call.plan, call.config, call.plan.beams), call.stop

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
    ids, scores, origins, longest = (value_of(part) for part in result)
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
    settings = beams.settings_of(plan, call.config, count)
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
    plan, settings = call.plan, beams.settings_of(call.plan, call.config, call.plan.beams)
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
        given = [*tf.nest.map_structure(value_of, state), best, index, tf.gather(total, words, axis=2)]
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
    found = tf.numpy_function(finished, [value_of(x) for x in state], [tf.int32, tf.float32, tf.int32])
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


def _reordered(caches: Caches, rows: Array) -> Caches:
    return [cache.reordered(rows.value) for cache in caches]
