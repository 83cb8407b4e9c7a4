"""The compiled search: the encoder, then the decoding algorithms in a `lax.while_loop`, a token at each turn.

Shapes: b sources, k beams, m sequences asked for, r rows (b * k, or b * m), p prompt length, n longest length, s source
length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from warmstart.decoding import beams, groups, sampling
from warmstart.decoding.processors import Processor, process, processors_for
from warmstart.decoding.settings import Plan
from warmstart.decoding.stopping import stopping
from warmstart.flax.arrays import JaxArrays
from warmstart.flax.cache import KeyValueCache, new_cache
from warmstart.generation_config import GenerationConfig


@dataclass(frozen=True)
class Search:
    """What is compiled, beside the shapes: the module, the plan, the settings as text, the caller's own processors."""

    module: Any
    plan: Plan
    settings: str
    custom: tuple[Callable[..., Any], ...] = ()
    config: GenerationConfig = field(default_factory=GenerationConfig, compare=False)

    @property
    def spec(self) -> Any:
        """What the decoder is made of."""
        return getattr(self.module, "decoder_spec", None) or self.module.spec


@partial(jax.jit, static_argnums=0)
def search(wanted: Search, params: Any, arrays: dict[str, Array | None], key: Array) -> tuple[Array, Array | None]:
    """Sequences (b * m, n), and with beams their scores (b * m,)."""
    plan, xp = wanted.plan, JaxArrays()
    decoder = _Decoder(wanted, params, arrays)
    prompt = arrays["prompt"]
    assert prompt is not None
    cache = decoder.started(prompt)
    if jax.default_backend() == "cpu":
        decoder.variables["turned"] = turned(params)
    scored = _Scores(xp, wanted, decoder.source_ids())
    stop = stopping(xp, plan.eos, plan.max_length)
    if plan.strategy == "groups":
        return _groups(xp, decoder, scored, cache, prompt, stop)
    if plan.beams > 1:
        return _beams(xp, decoder, scored, cache, prompt, stop, key)
    return _rows(xp, decoder, scored, cache, prompt, stop, key), None


def turned(params: Any) -> dict[str, Any]:
    """The matrices of a tree, turned before the loop, not in it; see `layers.Linear`.

    >>> turned({"up": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}})["up"]["kernel"].shape
    (3, 2)
    """
    found = {
        name: turned(x) if isinstance(x, dict) else lax.optimization_barrier(x.T)
        for name, x in params.items()
        if _holds(name, x)
    }
    return {name: x for name, x in found.items() if not isinstance(x, dict) or x}


def _holds(name: str, value: Any) -> bool:
    return isinstance(value, dict) or name == "kernel"


class _Decoder:
    """The model with its source: the newest token of each row in, the logits of the next out."""

    def __init__(self, wanted: Search, params: Any, arrays: dict[str, Array | None]) -> None:
        self.wanted, self.arrays, self.variables = wanted, arrays, {"params": params}
        self.is_pair = hasattr(wanted.module, "decoder_spec")
        self.capacity = max(wanted.plan.max_length - 1, 1)  # the last token is never read
        self.source_mask = arrays.get("attention_mask") if self.is_pair else None
        mask = arrays["prompt_mask"]
        if mask is not None:
            room = jnp.ones((mask.shape[0], self.capacity), mask.dtype)
            mask = jnp.concatenate([mask, room], 1)[:, : self.capacity]
        self.mask = mask

    def started(self, prompt: Array) -> KeyValueCache:
        """The cache with the source's keys and values and all tokens of the prompt but the last."""
        plan, sources = self.wanted.plan, prompt.shape[0]
        rows, dtype = sources * plan.rows, self.wanted.module.dtype
        cache = new_cache(self.wanted.spec, rows, self.capacity, dtype, plan.beams)
        if self.is_pair:
            states = self.arrays.get("encoder_states")
            if states is None:
                names = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "inputs_embeds")
                states = self._apply("encode", *(self.arrays[name] for name in names)).last
            cache = self._apply("with_source", cache, states)
        if prompt.shape[1] == 1:
            return cache
        # The beams of a source hold one prompt: it is read once, into the first one's buffer.
        spread = 1 if plan.beams > 1 else plan.rows
        own = cache.origins
        if own is not None:
            cache = cache._replace(origins=jnp.zeros((sources, self.capacity), jnp.int32))
        ids = jnp.repeat(prompt[:, :-1], spread, 0)
        cache = self._read(ids, cache, None if self.mask is None else jnp.repeat(self.mask, spread, 0), False)[1]
        if own is not None:
            own = jnp.where(jnp.arange(self.capacity) < prompt.shape[1] - 1, 0, own)
        return cache._replace(origins=own)

    def logits(self, ids: Array, at: Array, cache: KeyValueCache) -> tuple[Array, KeyValueCache]:
        """The float32 logits (r, v) of what follows the first `at` of `ids` (r, n)."""
        mask = None if self.mask is None else jnp.repeat(self.mask, len(ids) // len(self.mask), 0)
        logits, cache = self._read(lax.dynamic_slice_in_dim(ids, at - 1, 1, 1), cache, mask, True)
        return logits[:, -1].astype(jnp.float32), cache

    def source_ids(self) -> Array | None:
        """The source's ids (r, s), -1 where there is padding."""
        ids, mask = self.arrays.get("input_ids"), self.source_mask
        if ids is None:
            return None
        ids = ids if mask is None else jnp.where(mask > 0, ids, -1)
        return jnp.repeat(ids, self.wanted.plan.rows, 0)

    def _read(self, ids: Array, cache: KeyValueCache, mask: Array | None, logits: bool) -> tuple[Any, KeyValueCache]:
        if self.is_pair:
            states = self._apply("decode", ids, None, self.source_mask, mask, cache=cache, want_logits=logits)
        else:
            states = self._apply("__call__", ids, mask, cache=cache, want_logits=logits)
        return states.logits, states.cache

    def _apply(self, method: str, *arguments: Any, **named: Any) -> Any:
        return self.wanted.module.apply(self.variables, *arguments, **named, method=method)


class _Scores:
    """The scores of the next tokens: logits, or with beams log-probabilities, processed as the settings say."""

    def __init__(self, xp: JaxArrays, wanted: Search, source: Array | None) -> None:
        custom = [Processor(_name(f), partial(_own, f)) for f in wanted.custom]
        vocabulary = wanted.spec.embedding.vocabulary
        self.processors = processors_for(xp, wanted.config, wanted.plan, vocabulary, custom=custom)
        if source is None and (wanting := [x.name for x in self.processors if x.reads == "source"]):
            raise ValueError(f"{', '.join(wanting)} looks at the source's tokens: give input_ids")
        self.xp, self.source, self.is_log = xp, source, wanted.plan.beams > 1

    def of(self, logits: Array, ids: Array, at: Array) -> Array:
        scores = self.xp.log_softmax(logits) if self.is_log else logits
        return process(self.xp, self.processors, scores, ids, at, self.source)

    def of_group(self, log: Array, ids: Array, rows: Array, chosen: Array | None, at: Array) -> Array:
        source = None if self.source is None else self.source[rows]
        return process(self.xp, self.processors, log, ids, at, source, chosen)


def _own(function: Callable[..., Any], scores: Array, ids: Array, at: Array) -> Array:
    new = function(ids, scores, at)
    if getattr(new, "shape", None) != scores.shape:
        raise ValueError(f"the logits processor {_name(function)} must return scores {tuple(scores.shape)}")
    return new


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _rows(
    xp: JaxArrays, decoder: _Decoder, scored: _Scores, cache: KeyValueCache, prompt: Array, stop: Any, key: Array
) -> Array:
    """Greedy search and sampling."""
    plan = decoder.wanted.plan
    state = sampling.start(xp, jnp.repeat(prompt, plan.rows, 0), plan.max_length, plan.pad)

    def goes_on(carried: Any) -> Array:
        return (carried[0].at < plan.max_length) & ~jnp.all(carried[0].done)

    def turn(carried: Any) -> Any:
        state, cache, key = carried
        logits, cache = decoder.logits(state.ids, state.at, cache)
        scores = scored.of(logits, state.ids, state.at)
        key, now = jax.random.split(key)
        choose = partial(jax.random.categorical, now) if plan.sample else xp.argmax
        return sampling.step(xp, state, scores, choose, stop, plan.pad), cache, key

    state = state._replace(at=jnp.asarray(state.at, jnp.int32))
    return lax.while_loop(goes_on, turn, (state, cache, key))[0].ids


def _settings(plan: Plan, config: GenerationConfig) -> beams.BeamSettings:
    one = plan.beams // plan.groups
    return beams.BeamSettings(
        beams=one,
        prompt_length=plan.prompt_length,
        max_length=plan.max_length,
        # so many that k unfinished ones remain if each beam's likeliest tokens are all end tokens
        candidates=max(2, 1 + len(plan.eos)) * one,
        pad=plan.pad,
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
    )


def _beams(
    xp: JaxArrays, decoder: _Decoder, scored: _Scores, cache: KeyValueCache, prompt: Array, stop: Any, key: Array
) -> tuple[Array, Array]:
    """Beam search and beam sampling."""
    plan = decoder.wanted.plan
    settings = _settings(plan, decoder.wanted.config)

    def draw(key: Array, scores: Array, count: int) -> tuple[Array, Array]:
        # the largest of scores with Gumbel noise are a draw without replacement (Kool et al. 2019)
        index = lax.top_k(scores + jax.random.gumbel(key, scores.shape), count)[1]
        return jnp.take_along_axis(scores, index, 1), index

    def turn(carried: Any) -> Any:
        state, cache, key = carried
        ids = state.ids.reshape(-1, plan.max_length)
        logits, cache = decoder.logits(ids, state.at, cache)
        key, now = jax.random.split(key)
        select = partial(draw, now) if plan.sample else xp.top_k
        state = beams.step(xp, state, scored.of(logits, ids, state.at), settings, select, stop)
        return state, cache.reordered(state.rows), key

    state = beams.start(xp, prompt, settings)
    state = state._replace(at=jnp.asarray(state.at, jnp.int32))
    state = lax.while_loop(lambda carried: carried[0].going, turn, (state, cache, key))[0]
    return beams.finish(xp, state, plan.sequences)[:2]


def _groups(
    xp: JaxArrays, decoder: _Decoder, scored: _Scores, cache: KeyValueCache, prompt: Array, stop: Any
) -> tuple[Array, Array]:
    """Beam search in groups that differ from one another."""
    plan = decoder.wanted.plan
    settings = _settings(plan, decoder.wanted.config)

    def turn(carried: Any) -> Any:
        state, cache = carried
        logits, cache = decoder.logits(groups.ids_of(xp, state), state.at, cache)
        score = partial(scored.of_group, at=state.at)
        state = groups.step(xp, state, xp.log_softmax(logits), settings, score, ends)
        return state, cache.reordered(state.rows)

    ends = stopping(xp, plan.eos, 2**30)  # the length is no end of a sequence here
    state = groups.start(xp, prompt, settings, plan.groups)
    state = state._replace(at=jnp.asarray(state.at, jnp.int32))

    def goes_on(carried: Any) -> Array:
        return carried[0].going & (carried[0].at < plan.max_length)

    state = lax.while_loop(goes_on, turn, (state, cache))[0]
    return groups.finish(xp, state, settings, plan.sequences)[:2]
