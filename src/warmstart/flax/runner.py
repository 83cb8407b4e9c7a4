"""The model as a search reads it: the source and the prompt once, then the newest token of each row.

Shapes: b sources, k beams, r rows (b * k, or b * m sequences asked for), t new tokens, n heads, p prompt length,
s source length, l places, h hidden size, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from warmstart.flax.cache import KeyValueCache, new_cache
from warmstart.flax.stack import States
from warmstart.spec import BESIDE

OF_ENCODER = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "inputs_embeds")


class Runner:
    """A module with its variables, a source or none, and the prompt's mask; a cache is handed in and out.

    `shared` rows of a source go on from one another: they share their buffers of keys and values. `wants` names what
    is to be seen of each pass: "attentions", "hidden_states".
    """

    def __init__(
        self, module: Any, variables: dict[str, Any], rows: int, shared: int, room: int, wants: tuple[str, ...] = ()
    ) -> None:
        self.module, self.variables = module, variables
        self.rows, self.shared, self.room = rows, shared, room
        self.is_pair = hasattr(module, "decoder_spec")
        self.spec = module.decoder_spec if self.is_pair else module.spec
        self.wants = {"want_attentions": "attentions" in wants, "want_hidden": "hidden_states" in wants}
        self.mask: Array | None = None
        self.source_mask: Array | None = None
        self.encoded: States | None = None

    def started(
        self, prompt: Array, mask: Array | None, source: dict[str, Array | None] | None
    ) -> tuple[KeyValueCache, States | None]:
        """The cache with the source's keys and values and all tokens of the prompt (b, p) but the last; and what was
        seen of these.
        """
        if mask is not None:  # what comes after the prompt is real
            room = jnp.ones((mask.shape[0], self.room), mask.dtype)
            mask = jnp.concatenate([mask, room], 1)[:, : self.room]
        self.mask, sources = mask, prompt.shape[0]
        # The rows that share their buffers hold one prompt: it is read once.
        spread, states = self.rows // self.shared, None
        cache = new_cache(self.spec, sources * spread, self.room, self.module.dtype)
        if source is not None:
            cache = self.apply("with_source", cache, self.read_source(source))
        if prompt.shape[1] > 1:
            states = self.read(jnp.repeat(prompt[:, :-1], spread, 0), cache, want_logits=False)
            assert states.cache is not None
            cache, states = states.cache, states._replace(cache=None)
        return cache.shared_by(self.shared), states

    def read_source(self, source: dict[str, Array | None]) -> Array:
        """The encoder's last states (b, s, h), or those that were given."""
        self.source_mask = source.get("attention_mask")
        states = source.get("encoder_states")
        if states is None:
            beside = {table: source[name] for table, name in BESIDE.items() if source.get(name) is not None}
            self.encoded = self.apply("encode", *(source.get(name) for name in OF_ENCODER), beside, **self.wants)
            states = self.encoded.last
        return states

    def read(self, ids: Array, cache: KeyValueCache, want_logits: bool = True) -> States:
        """Read new tokens (r, t): the states, with float32 logits (r, t, v)."""
        mask = None if self.mask is None else jnp.repeat(self.mask, len(ids) // len(self.mask), 0)
        options = {"cache": cache, "want_logits": want_logits, **self.wants}
        if self.is_pair:
            states = self.apply("decode", ids, None, self.source_mask, mask, **options)
        else:
            states = self.apply("__call__", ids, mask, **options)
        logits = None if states.logits is None else states.logits.astype(jnp.float32)
        if states.attentions is not None and cache.origins is not None:
            states = states._replace(attentions=tuple(self._of_places(x) for x in states.attentions))
        result: States = states._replace(logits=logits)
        return result

    def _of_places(self, weights: Array) -> Array:
        """Attention over the places of a sequence (r, n, t, l) from that over those of all shared buffers."""
        return weights.reshape(*weights.shape[:-1], -1, self.shared).sum(-1)

    def apply(self, method: str, *arguments: Any, **named: Any) -> Any:
        """A method of the module."""
        return self.module.apply(self.variables, *arguments, **named, method=method)
