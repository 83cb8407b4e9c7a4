"""The compiled search: the encoder and the loop, in one function for each kind of call.

Shapes: b sources, m sequences asked for, r rows, p prompt length, n longest length, s source length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from warmstart.decoding.constraints import DisjunctiveConstraint
from warmstart.decoding.processors import processors_for
from warmstart.decoding.rules import check_constraints
from warmstart.decoding.settings import Plan
from warmstart.flax.generation.call import XP, Call
from warmstart.flax.generation.loops import SEARCHES
from warmstart.flax.generation.rules import Strings, own_processor, own_rule, prefix_processor, time_rule
from warmstart.flax.runner import OF_ENCODER, Runner
from warmstart.generation_config import GenerationConfig
from warmstart.spec import BESIDE

_SOURCE = (*OF_ENCODER, *BESIDE.values(), "encoder_states")


@dataclass(frozen=True)
class Search:
    """What is compiled, beside the shapes: the module, the plan, the settings as text, what is to be returned of each
    step, and the caller's own part.
    """

    module: Any
    plan: Plan
    settings: str
    custom: tuple[Callable[..., Any], ...] = ()
    config: GenerationConfig = field(default_factory=GenerationConfig, compare=False)
    wants: tuple[str, ...] = ()
    rules: tuple[Callable[..., Any], ...] = ()
    prefix: Callable[..., Any] | None = None
    strings: Strings | None = None
    constraints: tuple[tuple[tuple[int, ...], ...], ...] = ()
    with_cache: bool = False

    @property
    def is_pair(self) -> bool:
        """Whether there is an encoder."""
        return hasattr(self.module, "decoder_spec")


@partial(jax.jit, static_argnums=0)
def search(wanted: Search, params: Any, arrays: dict[str, Array | None], key: Array) -> dict[str, Any]:
    """Sequences (b * m, n), and what belongs to them."""
    plan, prompt, mask = wanted.plan, arrays["prompt"], arrays["prompt_mask"]
    assert prompt is not None
    source = {name: arrays.get(name) for name in _SOURCE} if wanted.is_pair else None
    variables, looks_ahead = {"params": params}, plan.strategy == "contrastive"
    vocabulary = (wanted.module.decoder_spec if wanted.is_pair else wanted.module.spec).embedding.vocabulary
    shared = min(wanted.config.top_k, vocabulary) if looks_ahead else plan.beams
    rows = shared if looks_ahead else plan.rows
    # the last token is not read, but by a search that looks at candidates before it chooses
    room = max(plan.max_length - (not looks_ahead), 1)
    wants = (*wanted.wants, "hidden_states") if looks_ahead else wanted.wants
    runner = Runner(wanted.module, variables, rows, shared, room, wants)
    cache, of_prompt = runner.started(prompt, mask, source)
    unguided, other, before = _unguided(wanted, variables, arrays, rows, shared, room)
    if jax.default_backend() == "cpu":
        variables["turned"] = turned(params)
    ids = _source_ids(wanted, arrays)
    call = Call(
        plan=plan,
        config=wanted.config,
        runner=runner,
        unguided=unguided,
        processors=_processors(wanted, vocabulary, ids),
        rules=_rules(wanted, arrays),
        constraints=[DisjunctiveConstraint(words) for words in wanted.constraints],
        wants=wanted.wants,
        prompt=prompt,
        of_prompt=of_prompt,
        before=before,
        source=None if ids is None else jnp.repeat(ids, plan.rows, 0),
        key=key,
    )
    check_constraints(call.constraints, plan.eos, vocabulary)
    found = SEARCHES[plan.strategy](call, (cache, other))
    if not wanted.with_cache:
        del found["cache"]
    return found | {"of_prompt": _prompt_states(wanted, of_prompt), "encoder": _encoder_states(wanted, runner)}


def turned(params: Any) -> dict[str, Any]:
    """The matrices of a tree, turned before the loop, not in it, and in two pieces; see `layers.Linear`.

    >>> turned({"up": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(4)}})["up"]["kernel"][1].shape
    (2, 2)
    """
    found: dict[str, Any] = {}
    for name, value in params.items():
        if name == "kernel":
            found[name] = tuple(lax.optimization_barrier(x.T) for x in _halves(value))
        elif isinstance(value, dict):
            found[name] = turned(value)
    return {name: x for name, x in found.items() if x}


def _halves(matrix: Array) -> list[Array]:
    return jnp.split(matrix, 2, 1) if matrix.shape[1] % 2 == 0 else [matrix]


def _source_ids(wanted: Search, arrays: dict[str, Array | None]) -> Array | None:
    """The ids (b, s) that rules about the source look at, -1 where there is padding."""
    ids = arrays.get("input_ids") if wanted.is_pair else None
    mask = arrays.get("attention_mask")
    return ids if ids is None or mask is None or mask.ndim != 2 else jnp.where(mask > 0, ids, -1)


def _processors(wanted: Search, vocabulary: int, source: Array | None) -> list[Any]:
    custom = [own_processor(function) for function in wanted.custom]
    prefix = None if wanted.prefix is None else prefix_processor(wanted.prefix, wanted.plan)
    chain = processors_for(XP, wanted.config, wanted.plan, vocabulary, prefix=prefix, custom=custom)
    if source is None and (wanting := [x.name for x in chain if x.reads == "source"]):
        raise ValueError(f"{', '.join(wanting)} looks at the source's tokens: give input_ids")
    return chain


def _rules(wanted: Search, arrays: dict[str, Array | None]) -> list[Any]:
    rules = [own_rule(function) for function in wanted.rules]
    started = arrays.get("started")
    if started is not None:
        rules.append(time_rule(wanted.config.max_time, started))
    return rules if wanted.strings is None else [*rules, wanted.strings.rule]


def _unguided(
    wanted: Search, variables: dict[str, Any], arrays: dict[str, Array | None], rows: int, shared: int, room: int
) -> tuple[Runner | None, Any, Array | None]:
    """What the model would write without its source: who reads it, its cache, and what it begins with.

    That is, the decoder without cross-attention, or with `negative_prompt_ids` another source; without an encoder the
    last token of the prompt, or another prompt.
    """
    if wanted.config.guidance_scale in (None, 1):
        return None, None, None
    prompt, mask = arrays["prompt"], arrays["prompt_mask"]
    negative, its_mask = arrays.get("negative_ids"), arrays.get("negative_mask")
    assert prompt is not None
    source = None
    if wanted.is_pair:
        source = None if negative is None else {"input_ids": negative, "attention_mask": its_mask}
        begins = None
    else:
        prompt, mask = (prompt[:, -1:], None) if negative is None else (negative, its_mask)
        room += prompt.shape[1]
        begins = prompt[:, -1:]
    runner = Runner(wanted.module, variables, rows, shared, room)
    cache, _ = runner.started(prompt, mask, source)
    return runner, cache, begins


def _prompt_states(wanted: Search, states: Any) -> dict[str, Any]:
    """What is to be returned of the prompt's tokens but the last."""
    if states is None:
        return {}
    fields = {"attentions": states.attentions, "hidden_states": states.hidden}
    found = {name: fields[name] for name in wanted.wants if name in fields}
    if "attentions" in found and states.cross_attentions is not None:
        found["cross_attentions"] = states.cross_attentions
    return found


def _encoder_states(wanted: Search, runner: Runner) -> dict[str, Any]:
    if runner.encoded is None:
        return {}
    fields = {"attentions": runner.encoded.attentions, "hidden_states": runner.encoded.hidden}
    return {name: fields[name] for name in wanted.wants if name in fields}
