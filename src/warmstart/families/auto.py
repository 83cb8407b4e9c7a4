"""`AutoConfig`: the configuration class that a `model_type` asks for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from warmstart.config import PretrainedConfig
from warmstart.families import MODULES, family

# Configurations that hold one for each side -> where they are.
_OF_TWO = {
    "encoder-decoder": ("encoder_decoder", "EncoderDecoderConfig"),
    "t5gemma": ("t5gemma", "T5GemmaConfig"),
}


class AutoConfig:
    """Reads any configuration; it is not made itself."""

    def __init__(self) -> None:
        raise OSError("AutoConfig is not made; use AutoConfig.from_pretrained(folder) or AutoConfig.for_model(type)")

    @classmethod
    def for_model(cls, model_type: str, *args: Any, **kwargs: Any) -> Any:
        """A new configuration of a family, by its `model_type`.

        Raises:
            ValueError: the family is not supported; the message lists those that are.

        >>> AutoConfig.for_model("bert", num_hidden_layers=2).num_hidden_layers
        2
        """
        return config_class(model_type)(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Read `config.json` from a folder or a hub id; keywords that are fields replace what it says.

        Raises:
            FileNotFoundError: no such folder, repository or file.
            ValueError: the file is not JSON, has no `model_type`, or one that is not supported.
        """
        values, kwargs = PretrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
        if "model_type" not in values:
            raise ValueError(
                f"{pretrained_model_name_or_path}: config.json has no model_type; add it, or read it with the class of "
                f"its family (model_type is one of encoder-decoder, {', '.join(sorted(MODULES))})"
            )
        return config_class(values["model_type"]).from_dict(values, **kwargs)


def config_class(model_type: str) -> type[PretrainedConfig]:
    """The configuration class of a `model_type`."""
    if isinstance(model_type, str) and model_type in _OF_TWO:
        module, name = _OF_TWO[model_type]
        return getattr(import_module(f"warmstart.families.{module}"), name)
    return family(model_type).config
