"""What is traced of `generate`: the encoder, the prompt and the loop, in one graph for each kind of call.

Shapes: b sources, r rows, p prompt length, s source length, h hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from warmstart.decoding.arguments import wanted
from warmstart.decoding.constraints import constraints_of
from warmstart.decoding.processors import processors_for
from warmstart.decoding.rules import check_constraints
from warmstart.decoding.settings import Plan
from warmstart.generation_config import GenerationConfig
from warmstart.tf.cache import KeyValueCache
from warmstart.tf.elements import turned
from warmstart.tf.generation.call import XP, Call
from warmstart.tf.generation.inputs import encoder_inputs
from warmstart.tf.generation.loops import SEARCHES
from warmstart.tf.generation.rules import Strings, own_processor, own_rule, prefix_processor, time_rule
from warmstart.tf.runner import Runner


@dataclass(eq=False)
class Search:
    """One way to generate, worked out; `__call__` is what is traced, over tensors whose batch may be of any size."""

    model: Any
    config: GenerationConfig
    plan: Plan
    custom: Sequence[Callable[..., Any]] = ()
    rules: Sequence[Callable[..., Any]] = ()
    prefix: Callable[..., Any] | None = None
    strings: Strings | None = None
    compiled: bool = False  # by XLA

    def __post_init__(self) -> None:
        config = self.config
        self.decoder = getattr(self.model, "decoder", self.model)
        self.is_pair = self.decoder is not self.model
        self.wants = wanted(config)
        self.constraints = constraints_of(config.constraints, config.force_words_ids)
        check_constraints(self.constraints, self.plan.eos, self.vocabulary)

    @property
    def vocabulary(self) -> int:
        """How many tokens the decoder knows."""
        size: int = self.decoder.spec.embedding.vocabulary
        return size

    def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
        """From the prompt (b, p), its mask, the source and a seed (2,) to sequences and what belongs to them."""
        plan, prompt, mask = self.plan, given["prompt"], given.get("prompt_mask")
        looks_ahead = plan.strategy == "contrastive"
        shared = min(self.config.top_k, self.vocabulary) if looks_ahead else plan.beams
        rows = shared if looks_ahead else plan.rows
        # the last token is not read, but by a search that looks at candidates before it chooses
        room = max(plan.max_length - (not looks_ahead), 1)
        states, source_mask, of_encoder = self._source(given)
        wants = (*self.wants, "hidden_states") if looks_ahead else self.wants
        runner = Runner(self.decoder, rows, shared, room, wants)
        cache, of_prompt = runner.started(prompt, mask, states, source_mask)
        unguided, its_cache, before = self._unguided(given, rows, shared, room)
        call = Call(
            plan=plan,
            config=self.config,
            runner=runner,
            unguided=unguided,
            processors=[],
            rules=self._rules(),
            constraints=self.constraints,
            wants=self.wants,
            prompt=prompt,
            of_prompt=of_prompt,
            before=before,
            source=None,
            seed=given.get("seed"),
        )
        call.processors, call.source = self._processors(given)
        with turned((*self.decoder.blocks, self.decoder.head) if self.compiled else ()):
            found = SEARCHES[plan.strategy](call, [cache] if its_cache is None else [cache, its_cache])
        sources = [layer.source for layer in cache.layers if layer.source is not None]
        return found | {
            "of_prompt": _states(self.wants, of_prompt),
            "encoder": of_encoder,
            "source_cache": sources,
        }

    def _source(self, given: dict[str, Any]) -> tuple[Any, Any, Any]:
        """The states that cross-attention reads (b, s, h), their mask (b, s), and what is to be returned of the
        encoder.
        """
        if not self.is_pair:
            return None, None, {}
        encoded = given if "states" in given else self.encoded(given)
        return self.model.source(encoded["states"]), given.get("attention_mask"), encoded.get("encoder", {})

    def encoded(self, given: dict[str, Any]) -> dict[str, Any]:
        """The encoder's states (b, s, h) for a source, and what of it is to be returned."""
        asked = {f"output_{name}": True for name in ("attentions", "hidden_states") if name in self.wants}
        output = self.model.encoder(**encoder_inputs(given), **asked, use_cache=False)
        return {"states": output.last_hidden_state, "encoder": _states(self.wants, output)}

    def _unguided(self, given: dict[str, Any], rows: int, shared: int, room: int) -> tuple[Runner | None, Any, Any]:
        """What the model would write without its source: who reads it, its cache, and what it begins with.

        That is, the decoder without cross-attention, or with `negative_prompt_ids` another source; without an encoder
        the last token of the prompt, or another prompt.
        """
        if self.config.guidance_scale in (None, 1):
            return None, None, None
        prompt, mask = given["prompt"], given.get("prompt_mask")
        negative, its_mask = given.get("negative_ids"), given.get("negative_mask")
        if self.is_pair:
            states = None if negative is None else self._source({"input_ids": negative, "attention_mask": its_mask})[0]
            runner = Runner(self.decoder, rows, shared, room)
            return runner, runner.started(prompt, mask, states, its_mask)[0], None
        prompt, mask = (prompt[:, -1:], None) if negative is None else (negative, its_mask)
        begins = prompt.shape[1] - self.plan.prompt_length
        runner = Runner(self.decoder, rows, shared, room + prompt.shape[1], begins=begins)
        cache: KeyValueCache = runner.started(prompt, mask, None, None)[0]
        return runner, cache, prompt[:, -1:]

    def _processors(self, given: dict[str, Any]) -> tuple[list[Any], Any]:
        """The processors that the settings ask for, and the source's ids (r, s) if one of them looks at these."""
        custom = [own_processor(function) for function in self.custom]
        prefix = None if self.prefix is None else prefix_processor(self.prefix, self.plan)
        chain = processors_for(XP, self.config, self.plan, self.vocabulary, prefix=prefix, custom=custom)
        looking = [processor.name for processor in chain if processor.reads == "source"]
        if not looking:
            return chain, None
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if not self.is_pair:
            ids, mask = given["prompt"], given.get("prompt_mask")
        if ids is None:
            raise ValueError(f"{min(looking)} looks at the source's ids: give input_ids")
        ids = ids if mask is None else tf.where(tf.cast(mask, tf.bool), ids, -1)
        return chain, tf.repeat(ids, self.plan.rows, 0)

    def _rules(self) -> list[Any]:
        rules = [own_rule(function) for function in self.rules]
        if self.config.max_time is not None:
            rules.append(time_rule(self.config.max_time))
        return rules if self.strings is None else [*rules, self.strings.rule]


def _states(wants: tuple[str, ...], states: Any) -> dict[str, Any]:
    """What is to be returned of states, or of an encoder's output."""
    found: dict[str, Any] = {}
    if states is None:
        return found
    if "attentions" in wants:
        found["attentions"] = states.attentions
        if getattr(states, "cross_attentions", None) is not None:
            found["cross_attentions"] = states.cross_attentions
    if "hidden_states" in wants:
        found["hidden_states"] = states.hidden_states if hasattr(states, "hidden_states") else states.hidden
    return found
