"""Loads the two sides of a warm start, each from its own checkpoint, and says where every weight comes from."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart import warm_start
from warmstart.checkpoint.readers import folder_of
from warmstart.config import PretrainedConfig
from warmstart.families.auto import AutoConfig
from warmstart.families.encoder_decoder import EncoderDecoderConfig, set_side
from warmstart.hub import hub_options
from warmstart.warm_start import PROJECTION, LoadReport

# Options of loading that may be given once for both sides; some are of one framework alone.
SHARED_OPTIONS = (
    "dtype",
    "torch_dtype",
    "attn_implementation",
    "device_map",
    "use_safetensors",
    "strict",
    "ignore_mismatched_sizes",
    "low_cpu_mem_usage",
    "from_pt",
    "seed",
)


@dataclass
class Pair:
    """Two loaded sides and their joint configuration."""

    encoder: Any
    decoder: Any
    config: EncoderDecoderConfig

    @property
    def copied(self) -> list[str]:
        """The decoder's cross-attention weights that start as copies of its self-attention."""
        report = self.decoder.load_report
        return [] if report is None else report.copied

    def report(self, parameters: Iterable[str]) -> LoadReport:
        """Both sides' reports as one, in the names of the model that holds these parameters."""
        held = list(parameters)
        sides = (("encoder.", self.encoder), ("decoder.", self.decoder))
        parts = [side.load_report.under(prefix) for prefix, side in sides if side.load_report is not None]
        known = set(held)
        joined = LoadReport(" + ".join(part.place for part in parts))
        for part in parts:
            for name in ("loaded", "new", "copied"):
                getattr(joined, name).extend(ours for ours in getattr(part, name) if ours in known)
            joined.left_out += part.left_out
        joined.new += [name for name in held if name.startswith(PROJECTION)]
        return joined


def load_pair(
    encoder_path: str | Path | None,
    decoder_path: str | Path | None,
    kwargs: dict[str, Any],
    encoder_class: Any,
    decoder_class: Any,
) -> Pair:
    """Load both sides, each with a framework's class; `kwargs` are those of `from_encoder_decoder_pretrained`.

    Raises:
        TypeError: a keyword is not known.
        ValueError: a side has neither a path nor a model, cannot serve as that side, or its weights do not fit.
    """
    start = warm_start.check_cross_attention_init(kwargs.pop("cross_attention_init", "random"))
    own: dict[str, dict[str, Any]] = {"encoder": {}, "decoder": {}}
    for name in list(kwargs):
        side, _, rest = name.partition("_")
        if side in own and rest and name != "decoder_start_token_id":
            own[side][rest] = kwargs.pop(name)
    shared = hub_options(kwargs) | {name: kwargs.pop(name) for name in SHARED_OPTIONS if name in kwargs}
    options = {side: {**shared, **own[side]} for side in own}
    fields = PretrainedConfig()
    if unknown := sorted(name for name in kwargs if not fields.has(name)):
        raise TypeError(
            f"from_encoder_decoder_pretrained got unknown arguments {unknown}: they are neither options of loading nor "
            "fields of a configuration; put encoder_ or decoder_ before what is for one side"
        )
    encoder = _load_encoder(encoder_class, encoder_path, options["encoder"])
    decoder = _load_decoder(decoder_class, decoder_path, {"cross_attention_init": start, **options["decoder"]})
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config, **kwargs)
    if decoder_path is not None:
        from warmstart.tokenization.auto import (
            special_token_ids,
        )  # here alone: a model that is loaded needs no tokenizer

        warm_start.fill_settings(config, special_token_ids(folder_of(decoder_path), **hub_options(options["decoder"])))
    return Pair(encoder, decoder, config)


def _load_encoder(cls: Any, path: str | Path | None, options: dict[str, Any]) -> Any:
    if (model := options.pop("model", None)) is not None:
        return model
    path, config = _checkpoint(path, "encoder", options)
    if "is_causal" in options:
        config.is_causal = options.pop("is_causal")
    return cls.from_pretrained(path, config=config, **options)


def _load_decoder(cls: Any, path: str | Path | None, options: dict[str, Any]) -> Any:
    if (model := options.pop("model", None)) is not None:
        return model
    path, config = _checkpoint(path, "decoder", options)
    warm_start.check_decoder(config)
    model = cls.from_pretrained(path, config=config, **options)
    model.config.generation_config = warm_start.settings_to_keep(config, model.config)
    return model


def _checkpoint(path: str | Path | None, side: str, options: dict[str, Any]) -> tuple[str | Path, Any]:
    """Where a side is loaded from, and its configuration: the one given, or the checkpoint's, told which side it is."""
    if path is None:
        raise ValueError(f"give a folder or hub id for the {side}, or a model as `{side}_model`")
    if (config := options.pop("config", None)) is not None:
        return path, copy.deepcopy(config)
    config = copy.deepcopy(
        warm_start.half(AutoConfig.from_pretrained(folder_of(path), **hub_options(dict(options))), side)[0]
    )
    set_side(config, side)
    return path, config
