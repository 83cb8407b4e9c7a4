"""The loops of `generate` in JAX: the decoding algorithms in a `lax.while_loop`, a token at each turn.

Shapes: b sources, k beams, m sequences asked for, r rows (b * k, or b * m), p prompt length, n longest length, s source
length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from warmstart.decoding import beams, choice, constrained_arrays, contrastive, groups, sampling
from warmstart.decoding.settings import Plan
from warmstart.decoding.stopping import stopping
from warmstart.flax.generation.call import XP, Caches, Call, looped
from warmstart.flax.stack import States


def _counted(state: Any) -> Any:
    return state._replace(at=jnp.asarray(state.at, jnp.int32))


def _reordered(caches: Caches, rows: Array) -> Caches:
    cache, other = caches
    return cache.reordered(rows), None if other is None else other.reordered(rows)


def one_by_one(call: Call, caches: Caches) -> dict[str, Any]:
    """Greedy search and sampling."""
    plan, stop = call.plan, call.stop
    state = _counted(sampling.start(XP, jnp.repeat(call.prompt, plan.rows, 0), plan.max_length, plan.pad))

    def turn(carried: Any) -> Any:
        state, caches, trouble, key = carried
        states, scores, caches = call.read(state.ids, state.at, caches)
        scores = call.processed(scores, state.ids, state.at)
        key, now = jax.random.split(key)
        choose = partial(jax.random.categorical, now) if plan.sample else XP.argmax
        state, trouble = _watched(state, scores, trouble)
        state = sampling.step(XP, state, scores, choose, stop, plan.pad)
        return (state, caches, trouble, key), call.seen(states, scores)

    first = (state, caches, choice.no_trouble(XP), call.key)
    (state, caches, trouble, _), kept = looped(call, partial(_not_all_done, plan), turn, first)
    return _rows(call, state, kept, caches, trouble)


def _not_all_done(plan: Plan, carried: Any) -> Array:
    return (carried[0].at < plan.max_length) & ~jnp.all(carried[0].done)


def _watched(state: sampling.Rows, scores: Array, trouble: Array) -> tuple[sampling.Rows, Array]:
    """A row that has no token to choose from ends there, and is remembered."""
    trouble, stuck = choice.watch(XP, trouble, scores, state.at, ~state.done)
    return state._replace(done=state.done | stuck), trouble


def _watched_beams(state: Any, scores: Array, trouble: Array) -> Array:
    """Beams may run out of tokens, but scores that are no numbers are remembered."""
    return choice.watch(XP, trouble, scores, state.at, jnp.ones(len(scores), bool), may_die=True)[0]


def _rows(call: Call, state: Any, kept: dict[str, Any], caches: Caches, trouble: Array) -> dict[str, Any]:
    steps = state.at - call.plan.prompt_length
    return {"sequences": state.ids, "steps": steps, "new": steps, "kept": kept, "cache": caches[0], "trouble": trouble}


def beam_search(call: Call, caches: Caches) -> dict[str, Any]:
    """Beam search and beam sampling."""
    plan, settings, stop = call.plan, beams.settings_of(call.plan, call.config, call.plan.beams), call.stop

    def draw(key: Array, scores: Array, count: int) -> tuple[Array, Array]:
        # the largest of scores with Gumbel noise are a draw without replacement (Kool et al. 2019)
        index = lax.top_k(scores + jax.random.gumbel(key, scores.shape), count)[1]
        return jnp.take_along_axis(scores, index, 1), index

    def turn(carried: Any) -> Any:
        state, caches, trouble, key = carried
        ids = state.ids.reshape(-1, plan.max_length)
        states, scores, caches = call.read(ids, state.at, caches)
        scores = call.processed(scores, ids, state.at)
        key, now = jax.random.split(key)
        select = partial(draw, now) if plan.sample else XP.top_k
        trouble = _watched_beams(state, scores, trouble)
        state = beams.step(XP, state, scores, settings, select, stop)
        return (state, _reordered(caches, state.rows), trouble, key), call.seen(states, scores)

    first = (_counted(beams.start(XP, call.prompt, settings)), caches, choice.no_trouble(XP), call.key)
    (state, caches, trouble, _), kept = looped(call, lambda carried: carried[0].going, turn, first)
    return _found(call, state, beams.finish(XP, state, plan.sequences), kept, caches, trouble)


def _found(
    call: Call, state: Any, result: Sequence[Any], kept: dict[str, Any], caches: Caches, trouble: Array
) -> dict[str, Any]:
    sequences, scores, origins, new = result
    return {
        "sequences": sequences,
        "sequences_scores": scores,
        "beam_indices": origins,
        "steps": state.at - call.plan.prompt_length,
        "new": new,
        "kept": kept,
        "cache": caches[0],
        "trouble": trouble,
    }


def group_search(call: Call, caches: Caches) -> dict[str, Any]:
    """Beam search in groups that differ from one another."""
    plan, count = call.plan, call.plan.beams // call.plan.groups
    settings, sources = beams.settings_of(plan, call.config, count), len(call.prompt)
    ends = stopping(XP, plan.eos, 2**30)  # the length is no end of a sequence here

    def turn(carried: Any) -> Any:
        state, caches, trouble, _ = carried
        ids, parts = groups.ids_of(XP, state), []

        def score(log: Array, ids: Array, rows: Array, chosen: Array | None) -> Array:
            scores = call.processed(log, ids, state.at, rows, chosen)
            parts.append(scores.reshape(sources, count, -1))
            return scores

        states, scores, caches = call.read(ids, state.at, caches)
        new = groups.step(XP, state, scores, settings, score, ends)
        scores = jnp.concatenate(parts, 1).reshape(scores.shape)
        trouble = _watched_beams(state, scores, trouble)
        ended = _ruled(call, groups.ids_of(XP, new), new.at)
        return (new, _reordered(caches, new.rows), trouble, ended), call.seen(states, scores)

    def goes_on(carried: Any) -> Array:
        return carried[0].going & (carried[0].at < plan.max_length) & ~carried[-1]

    state = _counted(groups.start(XP, call.prompt, settings, plan.groups))
    first = (state, caches, choice.no_trouble(XP), jnp.bool_(False))
    (state, caches, trouble, _), kept = looped(call, goes_on, turn, first)
    return _found(call, state, groups.finish(XP, state, settings, plan.sequences), kept, caches, trouble)


def _ruled(call: Call, ids: Array, at: Array) -> Array:
    """Whether the caller's rules end all rows."""
    if not call.rules:
        return jnp.bool_(False)
    newest = lax.dynamic_slice_in_dim(ids, at - 1, 1, 1)[:, 0]
    return jnp.all(stopping(XP, (), 2**30, call.rules)(ids, newest, at))


def contrastive_search(call: Call, caches: Caches) -> dict[str, Any]:
    """Contrastive search: each step reads all candidates, which share their buffers as beams do, and keeps one."""
    plan, stop, alpha = call.plan, call.stop, call.config.penalty_alpha
    sources, count = len(call.prompt), call.runner.shared
    state = _counted(sampling.start(XP, call.prompt, plan.max_length, plan.pad))
    each = jnp.arange(sources)[:, None] * count + jnp.arange(count)
    real = jnp.ones((sources, plan.max_length), bool)
    if call.runner.mask is not None:
        real = jnp.concatenate([call.runner.mask > 0, real], 1)[:, : plan.max_length]

    def last_of(states: States) -> Array:
        assert states.hidden is not None
        return states.hidden[-1][:, -1].reshape(sources, count, -1)

    def turn(carried: Any) -> Any:
        state, caches, trouble, scores, context = carried
        ids = state.ids
        scores = call.processed(scores, ids, state.at)
        likely, tokens = XP.top_k(XP.softmax(scores), count)
        longer = jnp.where(jnp.arange(plan.max_length) == state.at, tokens.reshape(-1, 1), jnp.repeat(ids, count, 0))
        states, after, caches = call.read(longer, state.at + 1, caches)
        candidates, seen = last_of(states), real & (jnp.arange(plan.max_length) < state.at)
        chosen = contrastive.choose(XP, likely, candidates, context, seen, alpha)[:, None]
        token = jnp.take_along_axis(tokens, chosen, 1)[:, 0]
        picked = jnp.take_along_axis(each, chosen, 1)
        state, trouble = _watched(state, scores, trouble)
        state = sampling.step(XP, state, scores, lambda _: token, stop, plan.pad)
        held = jnp.take_along_axis(candidates, chosen[:, :, None], 1)
        context = lax.dynamic_update_slice_in_dim(context, held, state.at - 1, 1)
        caches = _reordered(caches, jnp.broadcast_to(picked, (sources, count)).reshape(-1))
        return (state, caches, trouble, after[picked[:, 0]], context), call.seen(states, scores)

    states, scores, caches = call.read(jnp.repeat(state.ids, count, 0), state.at, caches)
    newest = last_of(states)[:, :1]
    context = jnp.ones((sources, plan.max_length, newest.shape[-1]), newest.dtype)
    if call.of_prompt is not None and call.of_prompt.hidden is not None:
        newest = jnp.concatenate([call.of_prompt.hidden[-1], newest], 1)
    context = lax.dynamic_update_slice_in_dim(context, newest, 0, 1)
    first = (state, caches, choice.no_trouble(XP), scores[each[:, 0]], context)
    (state, caches, trouble, *_), kept = looped(call, partial(_not_all_done, plan), turn, first)
    return _rows(call, state, kept, caches, trouble)


def constrained_search(call: Call, caches: Caches) -> dict[str, Any]:
    """Beam search whose sequences must hold what the constraints ask for; which beams go on is worked out in Python."""
    plan, settings = call.plan, beams.settings_of(call.plan, call.config, call.plan.beams)
    sources, vocabulary = len(call.prompt), call.runner.spec.embedding.vocabulary
    words = jnp.asarray(constrained_arrays.words_of(call.constraints))
    first = _counted(constrained_arrays.start(XP, call.prompt, settings))
    types = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), first)

    def on_host(*given: Any) -> Any:
        state, best, index, of_words = jax.tree.map(lambda x: np.asarray(x).tolist(), given)
        new = constrained_arrays.on_host(state, best, index, of_words, vocabulary, settings, call.constraints, plan.eos)
        return type(new)(*(np.asarray(x, like.dtype) for x, like in zip(new, types, strict=True)))

    def turn(carried: Any) -> Any:
        state, caches, trouble, _ = carried
        ids = state.ids.reshape(-1, plan.max_length)
        states, scores, caches = call.read(ids, state.at, caches)
        scores = call.processed(scores, ids, state.at)
        trouble = _watched_beams(state, scores, trouble)
        total = scores.reshape(sources, plan.beams, -1) + state.scores[:, :, None]
        best, index = XP.top_k(total.reshape(sources, -1), settings.candidates)
        state = jax.pure_callback(on_host, types, state, best, index, total[:, :, words])
        ended = _ruled(call, state.ids.reshape(-1, plan.max_length), state.at)
        return (state, _reordered(caches, state.rows), trouble, ended), call.seen(states, scores)

    def goes_on(carried: Any) -> Array:
        return _not_all_done(plan, carried) & ~carried[-1]

    begin = (first, caches, choice.no_trouble(XP), jnp.bool_(False))
    (state, caches, trouble, _), kept = looped(call, goes_on, turn, begin)
    rows = sources * plan.sequences
    shapes = [(rows, plan.max_length), (rows,), (rows, plan.max_length - plan.prompt_length)]
    results = [
        jax.ShapeDtypeStruct(shape, like.dtype)
        for shape, like in zip(shapes, (types.ids, types.scores, types.origins), strict=True)
    ]

    def finished(state: Any) -> Any:
        state = jax.tree.map(lambda x: np.asarray(x).tolist(), state)
        found = constrained_arrays.finish_on_host(state, settings, call.constraints, plan.sequences)
        return [np.asarray(x, like.dtype) for x, like in zip(found, results, strict=True)]

    found = jax.pure_callback(finished, results, state)
    return _found(call, state, (*found, jnp.max(jnp.sum(found[2] >= 0, 1))), kept, caches, trouble)


SEARCHES: dict[str, Callable[[Call, Caches], dict[str, Any]]] = {
    "rows": one_by_one,
    "beams": beam_search,
    "groups": group_search,
    "contrastive": contrastive_search,
    "constrained": constrained_search,
}
