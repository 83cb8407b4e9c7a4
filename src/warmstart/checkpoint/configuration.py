"""A checkpoint's configuration as a model wants it, with its settings and the caller's fields; and its files."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from warmstart.config import SHARED, TOKEN_IDS, PretrainedConfig
from warmstart.families import family_of
from warmstart.families.auto import AutoConfig
from warmstart.folder import Content
from warmstart.generation_config import GenerationConfig
from warmstart.hub import find_file

Part = Callable[[PretrainedConfig], tuple[PretrainedConfig, str | None]]
"""Which part of a checkpoint's configuration is wanted, and the prefix of its weights in the file."""


def read_configuration(
    place: str | Path,
    hub: dict[str, Any],
    kwargs: dict[str, Any],
    part_of: Part,
    own: type[PretrainedConfig] | None = None,
    who: str = "from_pretrained",
) -> tuple[PretrainedConfig, str | None]:
    """The configuration to load by: given, or the folder's, with its generation settings and the caller's fields.

    Those of `kwargs` that are fields are taken out of it. The first files have no `model_type`: then `own` knows it.

    Raises:
        ValueError: the weights are quantised; TypeError: keywords are left that are no fields.
    """
    given = kwargs.pop("config", None)
    has_settings = find_file(place, "generation_config.json", required=False, **hub) is not None
    settings = GenerationConfig.from_pretrained(place, **hub) if has_settings else GenerationConfig()
    if isinstance(given, PretrainedConfig):
        # The file still says whether its weights are one side of a whole.
        found = given
        if find_file(place, "config.json", required=False, **hub) is not None:
            said = PretrainedConfig.get_config_dict(place, **hub)[0].get("model_type", given.model_type)
            found = given if said == given.model_type else AutoConfig.from_pretrained(place, **hub)
        prefix = part_of(found)[1]
        config = copy.deepcopy(part_of(given)[0])
        config.merge_settings(settings, only_unset=True)
    else:
        whole = _read(given if given is not None else place, hub, own)
        whole.merge_settings(settings)
        config, prefix = part_of(whole)
    config = replaced(config, kwargs)
    if config.has("quantization_config") and config.quantization_config:
        raise ValueError(
            f"{place}: config.json has a quantization_config; quantised weights are not read here, use the "
            "checkpoint that they were made from"
        )
    if kwargs:
        raise TypeError(
            f"{who} got unknown arguments {sorted(kwargs)}: they are neither options of loading nor fields of "
            f"{type(config).__name__}"
        )
    return config, prefix


def _read(place: str | Path, hub: dict[str, Any], own: type[PretrainedConfig] | None) -> PretrainedConfig:
    if own is not None and "model_type" not in PretrainedConfig.get_config_dict(place, **hub)[0]:
        return own.from_pretrained(place, **hub)
    return AutoConfig.from_pretrained(place, **hub)


def replaced(config: PretrainedConfig, kwargs: dict[str, Any]) -> PretrainedConfig:
    """A copy of a configuration with those keywords that are its fields; they are taken out of `kwargs`."""
    config = copy.deepcopy(config)
    for name in [name for name in kwargs if config.has(name)]:
        setattr(config, name, kwargs.pop(name))
    return config


def asks_for_fewer_layers(config: PretrainedConfig, place: str | Path, hub: dict[str, Any]) -> bool:
    """Whether a configuration has fewer layers than the folder's own: then its user wants the first ones alone."""
    if find_file(place, "config.json", required=False, **hub) is None:
        return False
    values = PretrainedConfig.get_config_dict(place, **hub)[0]
    if values.get("model_type") != config.model_type:
        return False
    stored = type(config).from_dict(values)
    return any(wanted < held for wanted, held in zip(_layers(config), _layers(stored), strict=True))


def _layers(config: PretrainedConfig) -> list[int]:
    """How many layers each stack has that a configuration describes."""
    parts = [config.encoder, config.decoder] if config.model_type == "encoder-decoder" else [config]
    return [family_of(part).spec(part, headed).layers for part in parts for headed in (False, True)]


def written_configuration(
    config: PretrainedConfig, architecture: str, dtype: str, generates: bool
) -> dict[str, Content]:
    """The files of a model's configuration; settings of `generate` have one of their own, as the reference wants."""
    config = copy.deepcopy(config)
    settings = GenerationConfig(**config.generation_config.explicit())
    config.architectures = [architecture]
    config.dtype = dtype
    if not generates:
        return {"config.json": config.to_json_string().encode()}
    for name in SHARED.difference(TOKEN_IDS, config.defaults):
        config.generation_config.__dict__.pop(name, None)
    return {
        "config.json": config.to_json_string().encode(),
        "generation_config.json": settings.to_json_string().encode(),
    }


def tokenizer_files(tokenizer: Any) -> dict[str, Content]:
    """What a tokenizer saves, as files of the folder that is being written."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        return {path.name: path.read_bytes() for path in Path(temporary).iterdir() if path.is_file()}
