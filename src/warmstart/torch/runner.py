"""Running a model for decoding: the tokens of all rows in, the logits of what follows them out.

Shapes: b sources, k rows for each, r = b * k rows, n length so far, p prompt length, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from warmstart.generation_config import GenerationConfig
from warmstart.outputs import BaseModelOutput, as_encoded
from warmstart.torch.engine.encoder import encode
from warmstart.torch.engine.encoder_graphs import encode_in_parts
from warmstart.torch.engine.graphs import FixedRows, FixedRunner, can_record
from warmstart.torch.engine.plain import is_plain, knows
from warmstart.torch.engine.runner import EngineRows, EngineRunner, can_run
from warmstart.torch.generation.inputs import ENCODER_ARGUMENTS


class Runner(Protocol):
    """A model, its source and its KV cache. A source's rows stand one after another, each source with as many.

    `is_alone` says whether a step is work of a device alone, which may be asked for before it is sure to be needed;
    `record`, if it is not None, makes of some work of that device what replays it.
    """

    is_alone: bool

    @property
    def record(self) -> Callable[[Callable[[], Tensor]], Callable[[], Tensor]] | None: ...

    @property
    def length(self) -> int:
        """How many tokens of each row the cache holds."""
        ...

    def logits(self, ids: Tensor, keep: int = 1) -> Tensor:
        """The float32 logits (r, keep, v) at the last `keep` positions of `ids` (r, n), whole sequences from their
        beginning; only the positions that the cache does not hold are computed.
        """
        ...

    def drafted(self, ids: Tensor, at: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """After the prompt: each row of `ids` (r, n) has `at` (r, 1) tokens and `counts` (r,) drafted ones behind them,
        or -1 if it is done. The float32 logits of the rows' next tokens, after their last token and after each draft,
        one row's behind the other's (any number, v), and at which of them each row's begin (r or more,).
        """
        ...

    def reorder(self, rows: Tensor) -> None:
        """Let row i be what row ``rows[i]`` was; sources may leave with all their rows."""
        ...

    def crop(self, length: int) -> None:
        """Forget what stands behind the first `length` tokens."""
        ...


class ModuleRunner:
    """Runs any model through its `forward`, hooks and adapters included, and collects what `wants` asks of it.

    `seen` holds, by their names in the outputs of `generate`, what each pass gave.
    """

    is_alone, record = False, None

    def __init__(
        self,
        model: Any,
        source: dict[str, Any],
        *,
        rows: int,
        mask: Tensor | None = None,
        use_cache: bool = True,
        wants: Iterable[str] = (),
    ) -> None:
        """`source` is what `encode_source` gave (empty without an encoder), `rows` how many decoder rows each source
        has, `mask` (b, n) which tokens are real, as long as sequences may become, `wants` of "attentions" and
        "hidden_states".
        """
        self.model, self.source, self.rows, self.use_cache = model, dict(source), rows, use_cache
        self.mask = None if mask is None else mask.repeat_interleave(rows, 0)
        self.prefix = "decoder_" if source else ""
        self.wants = {f"output_{name}": True for name in wants}
        self.seen: dict[str, list[Any]] = {self.prefix + name: [] for name in wants}
        if source and "attentions" in wants:
            self.seen["cross_attentions"] = []
        self.cache: Any = None
        self.started, self.count = False, 0

    @property
    def length(self) -> int:
        return 0 if self.cache is None else self.cache.length

    def logits(self, ids: Tensor, keep: int = 1) -> Tensor:
        # the rows of a source hold the same prompt, so that its first pass needs only one of them
        spread = 1 if self.started else self.rows
        inputs: dict[str, Any] = {
            f"{self.prefix}input_ids": ids[::spread, self.length :],
            f"{self.prefix}logits_to_keep": keep,
        }
        if self.mask is not None:
            inputs[f"{self.prefix}attention_mask"] = self.mask[::spread, : ids.shape[1]]
        outputs = self.model(
            **self.source,
            **inputs,
            **self.wants,
            past_key_values=self.cache,
            use_cache=self.use_cache,
            return_dict=True,
        )
        self.started, self.count = True, len(ids)
        if self.use_cache:
            self.cache = outputs.past_key_values
        logits = outputs.logits[:, -keep:].float()
        if spread > 1:
            logits = logits.repeat_interleave(spread, 0)
            if self.cache is not None:
                self.cache.reorder(torch.arange(len(ids), device=ids.device) // spread)
        self._collect(outputs, spread)
        return logits

    def drafted(self, ids: Tensor, at: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        # The modules' cache has one length: what the youngest row lacks is computed for all.
        at, live = at[:, 0], counts >= 0
        first, last = int(at[live].min()), int((at + counts)[live].max())
        self.crop(first - 1)
        logits = self.logits(ids[:, :last], last - first + 1)
        begins = torch.arange(len(ids), device=ids.device) * logits.shape[1]
        return logits.flatten(0, 1), begins + (at - first).clamp(min=0)

    def _collect(self, outputs: Any, spread: int) -> None:
        for name, passes in self.seen.items():
            layers = getattr(outputs, name)
            if layers is not None and spread > 1:
                layers = tuple(layer.repeat_interleave(spread, 0) for layer in layers)
            passes.append(layers)

    def reorder(self, rows: Tensor) -> None:
        if self.cache is not None:
            self.cache.reorder(rows)
        if self.mask is not None:
            self.mask = self.mask[rows]
        if self.source and len(rows) != self.count:
            # each source has as many rows, so that a row's number tells its source
            sources = torch.unique_consecutive(rows // (self.count // len(self.source["encoder_outputs"][0])))
            if len(sources) != len(self.source["encoder_outputs"][0]):
                self._keep_sources(sources)
        self.count = len(rows)

    def _keep_sources(self, kept: Tensor) -> None:
        states = self.source["encoder_outputs"]
        self.source["encoder_outputs"] = BaseModelOutput(last_hidden_state=states[0][kept])
        if self.source["attention_mask"] is not None:
            self.source["attention_mask"] = self.source["attention_mask"][kept]
        for layer in self.cache.layers if self.cache is not None else ():
            if layer.source is not None:
                layer.source = layer.source[0][kept], layer.source[1][kept]

    def crop(self, length: int) -> None:
        if self.cache is not None:
            self.cache.crop(length)


def runner_for(
    model: Any, source: dict[str, Any], config: GenerationConfig, *, rows: int, length: int, mask: Tensor | None
) -> Runner:
    """The fastest runner that can do what the settings ask; see `ModuleRunner` for the arguments.

    `length` is how many tokens a sequence may hold at most.
    """
    if config.use_cache and not wanted_states(config):
        if can_run(model, mask):
            return EngineRunner(model, source, rows=rows, length=length, mask=mask)
        if can_record(model, source, mask):
            first = ModuleRunner(model, source, rows=1, mask=mask)
            return FixedRunner(model, source, first, rows=rows, length=length, mask=mask)
    return ModuleRunner(model, source, rows=rows, mask=mask, use_cache=config.use_cache, wants=wanted_states(config))


def can_refill_rows(model: Any) -> bool:
    """Whether rows of different age can be at work together in this encoder-decoder."""
    return can_run(model, None) or can_record(model, {}, None)


def rows_for(model: Any, sources: int, each: int, length: int) -> EngineRows | FixedRows:
    """Room for so many sources, `each` with as many rows, of a model that `can_refill_rows` allows."""
    return (EngineRows if can_run(model, None) else FixedRows)(model, sources, each, length)


def wanted_states(config: GenerationConfig) -> list[str]:
    """Which states of the model are to be returned beside the tokens: "attentions", "hidden_states", both or none."""
    if not config.return_dict_in_generate:
        return []
    return [name for name in ("attentions", "hidden_states") if getattr(config, f"output_{name}")]


def encode_source(model: Any, arguments: dict[str, Any], wants: Iterable[str]) -> dict[str, Any]:
    """Run the encoder; what the decoder gets of it at each pass."""
    ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    mask = model.encoder_attention_mask(ids, mask)
    outputs = arguments.get("encoder_outputs")
    if outputs is None:
        more = {name: arguments[name] for name in ENCODER_ARGUMENTS if arguments.get(name) is not None}
        more |= {f"output_{name}": True for name in wants}
        embeds = arguments.get("inputs_embeds")
        usual = (mask is None or mask.dim() == 2) and more.keys() <= {"token_type_ids", "position_ids"}
        if not wants and usual and knows(model.encoder.spec) and is_plain(model):
            states = encode(model.encoder, ids, mask, embeds, more.get("token_type_ids"), more.get("position_ids"))
            return {"encoder_outputs": BaseModelOutput(states.to(model.dtype)), "attention_mask": mask}
        if not wants and usual and ids is not None and model.device.type == "cuda" and is_plain(model, "cuda"):
            given = {"input_ids": ids, "attention_mask": mask, **more}
            states = encode_in_parts(model, {name: x for name, x in given.items() if x is not None})
            return {"encoder_outputs": BaseModelOutput(states), "attention_mask": mask}
        outputs = model.encode(input_ids=ids, attention_mask=mask, inputs_embeds=embeds, **more)
    return {"encoder_outputs": as_encoded(outputs), "attention_mask": mask}
