"""The recipe: which weights learn how fast, what is frozen when, and the settings around it, each from a paper.

Where each default comes from stands in docs/training.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from warmstart.training import lora
from warmstart.warm_start import PROJECTION

PARTS = ("encoder", "decoder", "cross_attention")
SCHEDULES = ("linear", "inverse_sqrt", "constant")
_CROSS_ATTENTION = re.compile(rf"\.cross_attention(_output)?(_norm)?\.|^{PROJECTION}\.")
_DROPOUT = re.compile(r"^(?!classif|summary).*(dropout(_prob)?|pdrop)$")


@dataclass(frozen=True)
class Recipe:
    """How a pair is fine-tuned.

    Rates are the highest ones of AdamW; warm-ups are shares of all steps in which a rate rises from 0. In the first
    `cross_attention_first` of the steps, 1000 at most, cross-attention alone is trained. `freeze` names parts that are
    never trained. `dropout` replaces the model's own. With a rank `lora`, adapters of that rank are trained at
    `lora_rate` in place of both sides' own weights; cross-attention is trained in full.
    """

    encoder_rate: float = 1.4e-5
    decoder_rate: float = 5e-5
    cross_attention_rate: float = 1e-3
    encoder_warmup: float = 0.1
    decoder_warmup: float = 0.05
    cross_attention_warmup: float = 0.05
    schedule: str = "linear"
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    cross_attention_first: float = 0.05
    freeze: tuple[str, ...] = ()
    clip: float = 1.0
    dropout: float | None = None
    lora: int = 0
    lora_rate: float = 2e-4

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is not known; use one of {', '.join(SCHEDULES)}")
        if unknown := set(self.freeze) - set(PARTS):
            raise ValueError(f"freeze {sorted(unknown)}: there is no such part; use {', '.join(PARTS)}")
        if set(self.freeze) == set(PARTS):
            raise ValueError("freeze names all parts, so nothing would be trained; leave one out")
        shares = ["label_smoothing", "cross_attention_first", "dropout", *(f"{part}_warmup" for part in PARTS)]
        for name in shares:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} {value} is not a share from 0 to below 1")
        for name in ("weight_decay", "clip", "lora", "lora_rate", *(f"{part}_rate" for part in PARTS)):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)} is not a number from 0 on")

    def first_phase(self, steps: int) -> int:
        """How many steps train cross-attention alone.

        >>> Recipe().first_phase(2000), Recipe().first_phase(100_000)
        (100, 1000)
        """
        if "cross_attention" in self.freeze:
            return 0
        return min(1000, int(self.cross_attention_first * steps))

    def trained_parts(self, step: int, steps: int) -> set[str]:
        """Which parts a step trains."""
        parts = {"cross_attention"} if step < self.first_phase(steps) else set(PARTS)
        return parts - set(self.freeze)

    def rate(self, part: str, step: int, steps: int) -> float:
        """The learning rate of a part at a step, 0 the first; its schedule begins when its training does.

        >>> recipe = Recipe(decoder_rate=1.0, decoder_warmup=0.1, cross_attention_first=0.0)
        >>> [round(recipe.rate("decoder", step, 100), 2) for step in (0, 4, 9, 54, 99)]
        [0.1, 0.5, 1.0, 0.51, 0.01]
        """
        begin = 0 if part == "cross_attention" else self.first_phase(steps)
        done, whole = step - begin + 1, max(1, steps - begin)
        rise = max(1.0, getattr(self, f"{part}_warmup") * whole)
        highest = self.lora_rate if self.lora and part != "cross_attention" else getattr(self, f"{part}_rate")
        return highest * min(done / rise, self._decay(done, rise, whole))

    def _decay(self, done: int, rise: float, whole: int) -> float:
        if self.schedule == "linear":
            return (whole - done + 1) / max(1.0, whole - rise + 1)
        return math.sqrt(rise / done) if self.schedule == "inverse_sqrt" else 1.0


def part_of(name: str, tied: bool = False) -> str:
    """The part that a parameter belongs to; what both sides share learns as the decoder does.

    >>> part_of("decoder.layers.0.cross_attention_norm.weight"), part_of("enc_to_dec_proj.bias")
    ('cross_attention', 'cross_attention')
    >>> part_of("encoder.layers.0.attention.query.weight"), part_of("decoder.head.output.bias")
    ('encoder', 'decoder')
    """
    if _CROSS_ATTENTION.search(name):
        return "cross_attention"
    return "encoder" if name.startswith("encoder.") and not tied else "decoder"


def parameter_groups(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW's groups: each part's matrices, and its norms and biases, which do not decay.

    `part` in each group says whose rate it has. Frozen parts are in none.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for _, parameter, part in _trainable(model):
        decays = parameter.dim() > 1
        if part in recipe.freeze:
            continue
        group = groups.setdefault(
            (part, decays),
            {"params": [], "part": part, "lr": 0.0, "weight_decay": recipe.weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
    if not groups:
        raise ValueError(f"freeze {', '.join(recipe.freeze)} leaves nothing to train in this model")
    return list(groups.values())


def set_trained(model: Any, parts: set[str]) -> None:
    """Let the parameters of some parts be trained, and no others."""
    model.requires_grad_(False)
    for _, parameter, part in _trainable(model):
        parameter.requires_grad_(part in parts)


def drop_gradients(model: Any, parts: set[str]) -> None:
    """Leave what is in no such part as it is in the next step."""
    for _, parameter, part in _trainable(model):
        if part not in parts:
            parameter.grad = None


def _trainable(model: Any) -> Iterator[tuple[str, Any, str]]:
    """Name, parameter and part of what may be trained: where there are adapters, these and cross-attention."""
    tied, is_frozen = bool(model.config.tie_encoder_decoder), lora.is_frozen(model)
    for name, parameter in model.named_parameters():
        part = part_of(name, tied)
        if part == "cross_attention" or lora.MARK in name or not is_frozen:
            yield name, parameter, part


def set_dropout(config: Any, dropout: float) -> None:
    """Set every kind of dropout of both sides in a pair's configuration, before its model is made."""
    for side in (config.encoder, config.decoder):
        for name in [*side.defaults, *side.attribute_map]:
            if _DROPOUT.match(name) and isinstance(getattr(side, name), (int, float)):
                setattr(side, name, dropout)
