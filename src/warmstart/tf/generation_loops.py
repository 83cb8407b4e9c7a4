"""The loops of `generate` as TensorFlow traces them: the encoder once, then a `tf.while_loop` over tokens.

Shapes: b sources, k decoder rows for each (beams, or sequences asked for), r = b * k rows, p prompt length, n length, c
places in the cache, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from warmstart.decoding import beams, groups, sampling
from warmstart.decoding.processors import Processor, process, processors_for
from warmstart.decoding.settings import Plan
from warmstart.decoding.stopping import stopping
from warmstart.generation_config import GenerationConfig
from warmstart.tf.arrays import Array, TensorFlowArrays
from warmstart.tf.cache import KeyValueCache
from warmstart.tf.layers import turned
from warmstart.tf.stack import flat_source

XP = TensorFlowArrays()


class Turn(NamedTuple):
    """What one turn of the loop hands to the next: the search's state, the cache's tensors, what is to be returned."""

    state: Any
    cache: list[tuple[Any, Any]]
    kept: dict[str, Any]


class Search:
    """One way to generate, worked out; `__call__` is what is traced, over tensors whose batch may be of any size."""

    def __init__(
        self,
        model: Any,
        config: GenerationConfig,
        plan: Plan,
        custom: Sequence[Callable[..., Any]] = (),
        compiled: bool = False,
    ) -> None:
        self.model, self.config, self.plan, self.custom = model, config, plan, custom
        self.compiled = compiled  # by XLA
        self.decoder = getattr(model, "decoder", model)
        wanted = ("scores", "logits") if config.return_dict_in_generate else ()
        self.wanted = [name for name in wanted if getattr(config, f"output_{name}")]
        self.places = max(plan.max_length - 1, 1)  # the last token is not read

    def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
        """From the prompt (b, p), its mask, the source and a seed (2,) to sequences and what belongs to them."""
        prompt, plan = given["prompt"], self.plan
        source, source_mask = self._source(given)
        cache = self.decoder.new_cache(self.places, shared=plan.rows)
        if source is not None:
            read = flat_source(source)
            for block, layer in zip(self.decoder.blocks, cache.layers, strict=True):
                block.cross_attention.source_pair(read, layer)
        mask = given.get("prompt_mask")
        if mask is not None:  # what comes after the prompt is real
            mask = tf.pad(tf.cast(mask, tf.int32), [[0, 0], [0, self.places - plan.prompt_length]], constant_values=1)
        cache = self._with_prompt(prompt, mask, cache, source_mask)
        if mask is not None:
            mask = tf.repeat(mask, plan.rows, 0)

        def logits(ids: Any, at: Any, held: KeyValueCache) -> tuple[Any, KeyValueCache]:
            last = tf.slice(ids, [0, at - 1], [-1, 1])
            states = self.decoder.states(last, mask, source_attention_mask=source_mask, cache=held)
            return tf.cast(self.decoder.head(states.last), tf.float32)[:, 0], states.cache

        loops = {"rows": self._rows, "beams": self._beams, "groups": self._groups}
        with turned(self.decoder.blocks if self.compiled else ()):
            return loops[plan.strategy](given, cache, logits)

    # The model --------------------------------------------------------------------------------------------------

    def _source(self, given: dict[str, Any]) -> tuple[Any, Any]:
        """The states that cross-attention reads (b, s, h), and their mask (b, s)."""
        if self.decoder is self.model:
            return None, None
        states, mask = given.get("states"), given.get("attention_mask")
        if states is None:
            names = ("input_ids", "inputs_embeds", "token_type_ids", "position_ids")
            more = {name: given[name] for name in names if name in given}
            states = self.model.encoder(**more, attention_mask=mask, use_cache=False).last_hidden_state
        return self.model.source(states), mask

    def _with_prompt(self, prompt: Any, mask: Any, cache: KeyValueCache, source_mask: Any) -> KeyValueCache:
        """The cache (r rows) with all of the prompt in it but its last token, which the loop begins with."""
        rows, length = self.plan.rows, self.plan.prompt_length - 1
        if length == 0:
            return _emptied(cache, tf.shape(prompt)[0] * rows, self.decoder)
        alone = cache.copied()
        for layer in alone.layers:
            layer.shared = 1
        # while the prompt is read, the places behind it stay hidden: causal attention sees to that
        states = self.decoder.states(prompt[:, :length], mask, source_attention_mask=source_mask, cache=alone)
        own = [(tf.repeat(keys, rows, 0), tf.repeat(values, rows, 0)) for keys, values in states.cache.own()]
        return cache.with_own(own, length)

    # The searches -----------------------------------------------------------------------------------------------

    def _rows(self, given: dict[str, Any], cache: KeyValueCache, logits: Any) -> dict[str, Any]:
        """Greedy search and sampling."""
        plan = self.plan
        stop = stopping(XP, plan.eos, plan.max_length)
        prompt = Array(tf.repeat(given["prompt"], plan.rows, 0))
        state = sampling.start(XP, prompt, plan.max_length, plan.pad)
        processed = self._processed(given)

        def turn(state: Any, raw: Any, kept: dict[str, Any]) -> tuple[Any, Any]:
            scores = processed(Array(raw), state.ids, state.at)
            choose = self._draw_one(given["seed"], state.at) if plan.sample else XP.argmax
            kept = self._keep(kept, state.at, logits=raw, scores=scores.value)
            return sampling.step(XP, state, scores, choose, stop, plan.pad), kept

        def goes_on(state: Any) -> Any:
            return tf.logical_not(tf.reduce_all(state.done.value))

        state, kept = self._loop(state, cache, logits, lambda state: state.ids.value, turn, goes_on)
        return {"sequences": state.ids.value, "length": state.at.value, **kept}

    def _beams(self, given: dict[str, Any], cache: KeyValueCache, logits: Any) -> dict[str, Any]:
        """Beam search and beam sampling."""
        plan, settings = self.plan, self._beam_settings(self.plan.beams)
        stop = stopping(XP, plan.eos, plan.max_length)
        state = beams.start(XP, Array(given["prompt"]), settings)
        processed = self._processed(given)

        def turn(state: Any, raw: Any, kept: dict[str, Any]) -> tuple[Any, Any]:
            scores = processed(XP.log_softmax(Array(raw)), _flat(state.ids), state.at)
            select = self._draw_some(given["seed"], state.at) if plan.sample else XP.top_k
            kept = self._keep(kept, state.at, logits=raw, scores=scores.value)
            return beams.step(XP, state, scores, settings, select, stop), kept

        state, kept = self._loop(
            state, cache, logits, lambda state: _flat(state.ids).value, turn, lambda state: state.going.value
        )
        return self._found(beams.finish(XP, state, plan.sequences), kept)

    def _groups(self, given: dict[str, Any], cache: KeyValueCache, logits: Any) -> dict[str, Any]:
        """Diverse beam search."""
        plan = self.plan
        count = plan.beams // plan.groups
        settings = self._beam_settings(count)
        ends = stopping(XP, plan.eos, plan.max_length + 1)
        state = groups.start(XP, Array(given["prompt"]), settings, plan.groups)
        processed = self._processed(given)

        def turn(state: Any, raw: Any, kept: dict[str, Any]) -> tuple[Any, Any]:
            parts: list[Any] = []

            def score(log: Array, ids: Array, rows: Array, chosen: Array | None) -> Array:
                scores = processed(log, ids, state.at, rows, chosen)
                parts.append(tf.reshape(scores.value, [-1, count, raw.shape[-1]]))
                return scores

            new = groups.step(XP, state, XP.log_softmax(Array(raw)), settings, score, ends)
            of_all = tf.reshape(tf.concat(parts, 1), [-1, raw.shape[-1]])
            return new, self._keep(kept, state.at, logits=raw, scores=of_all)

        def goes_on(state: Any) -> Any:
            return tf.logical_and(state.going.value, state.at.value < plan.max_length)

        def ids(state: Any) -> Any:
            return groups.ids_of(XP, state).value

        state, kept = self._loop(state, cache, logits, ids, turn, goes_on)
        return self._found(groups.finish(XP, state, settings, plan.sequences), kept)

    def _beam_settings(self, count: int) -> beams.BeamSettings:
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

    def _found(self, result: tuple[Array, Array, Array, Array], kept: dict[str, Any]) -> dict[str, Any]:
        ids, scores, origins, longest = (part.value for part in result)
        length = longest + self.plan.prompt_length
        return {"sequences": ids, "sequences_scores": scores, "beam_indices": origins, "length": length, **kept}

    # The loop ---------------------------------------------------------------------------------------------------

    def _loop(
        self, state: Any, cache: KeyValueCache, logits: Any, ids_of: Any, turn: Any, goes_on: Any
    ) -> tuple[Any, Any]:
        """Run `turn` until `goes_on` says no; beams take their keys and values along."""
        plan = self.plan
        steps = plan.max_length - plan.prompt_length
        reorders = plan.strategy != "rows"
        size = self.decoder.spec.embedding.vocabulary
        arrays = {
            name: tf.TensorArray(tf.float32, steps, element_shape=[None, size], clear_after_read=False)
            for name in self.wanted
        }
        state = state._replace(at=Array(tf.constant(state.at)))
        shapes = tf.nest.map_structure(lambda x: x.value.shape, state)
        first = Turn(tf.nest.map_structure(lambda x: x.value, state), cache.own(), arrays)

        def body(was: Turn) -> tuple[Turn]:
            state = tf.nest.map_structure(Array, was.state)
            at = state.at.value
            raw, new_cache = logits(ids_of(state), at, cache.with_own(was.cache, at - 1))
            state, kept = turn(state, raw, was.kept)
            if reorders:
                new_cache = new_cache.reordered(state.rows.value)
            values = tf.nest.map_structure(lambda x, shape: tf.ensure_shape(x.value, shape), state, shapes)
            own = [
                tuple(tf.ensure_shape(x, y.shape) for x, y in zip(pair, before, strict=True))
                for pair, before in zip(new_cache.own(), was.cache, strict=True)
            ]
            return (Turn(values, own, kept),)

        def condition(was: Turn) -> Any:
            return goes_on(tf.nest.map_structure(Array, was.state))

        (last,) = tf.while_loop(condition, body, (first,), maximum_iterations=steps)
        kept = {name: array.stack() for name, array in last.kept.items()}
        return tf.nest.map_structure(Array, last.state), kept

    def _keep(self, kept: dict[str, Any], at: Array, **values: Any) -> dict[str, Any]:
        return {name: array.write(at.value - self.plan.prompt_length, values[name]) for name, array in kept.items()}

    def _processed(self, given: dict[str, Any]) -> Callable[..., Array]:
        """The function that puts scores (r, v) through the processors that the settings ask for."""
        vocabulary = self.decoder.spec.embedding.vocabulary
        custom = [_own(function) for function in self.custom]
        chain = processors_for(XP, self.config, self.plan, vocabulary, custom=custom)
        source = self._source_ids(given, {processor.name for processor in chain if processor.reads == "source"})

        def processed(
            scores: Array, ids: Array, at: Array, rows: Array | None = None, chosen: Array | None = None
        ) -> Array:
            own = source if source is None or rows is None else Array(tf.gather(source.value, rows.value))
            return process(XP, chain, scores, ids, at, own, chosen)

        return processed

    def _source_ids(self, given: dict[str, Any], names: set[str]) -> Array | None:
        """The source's ids for each row (r, s), -1 where there is padding, if a processor looks at them."""
        if not names:
            return None
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if self.decoder is self.model:
            ids, mask = given["prompt"], given.get("prompt_mask")
        if ids is None:
            raise ValueError(f"{min(names)} looks at the source's ids: give input_ids")
        ids = ids if mask is None else tf.where(tf.cast(mask, tf.bool), ids, -1)
        return Array(tf.repeat(ids, self.plan.rows, 0))

    # Chance -----------------------------------------------------------------------------------------------------

    def _draw_one(self, seed: Any, at: Array) -> Callable[[Array], Array]:
        """A function that draws the token of each row: (r, v) to (r,)."""
        return lambda scores: XP.argmax(Array(scores.value + _gumbel(scores.value, seed, at.value)))

    def _draw_some(self, seed: Any, at: Array) -> Callable[[Array, int], tuple[Array, Array]]:
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


def _own(function: Callable[..., Any]) -> Processor:
    """The caller's processor, `(ids (r, n), scores (r, v), cur_len) -> scores`, its result checked."""
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


def _emptied(cache: KeyValueCache, rows: Any, decoder: Any) -> KeyValueCache:
    """The cache with room for so many rows and nothing in it."""
    attention, places = decoder.spec.attention, cache.capacity
    own = []
    for layer in range(decoder.spec.layers):
        _, heads = attention.heads_of(layer)
        room = tf.zeros([rows, heads, places, attention.head_size], decoder.compute_dtype)
        room = tf.ensure_shape(room, [None, heads, places, attention.head_size])
        own.append((room, room))
    return cache.with_own(own, 0)
