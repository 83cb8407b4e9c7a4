"""The configuration that a model is built from: Hugging Face's field names and defaults, unknown fields kept."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from warmstart.folder import write_folder
from warmstart.generation_config import GenerationConfig
from warmstart.hub import find_file, hub_options, read_json, upload_folder

# Fields that every configuration has; they are written to `config.json` only where they were set.
COMMON: dict[str, Any] = {
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
    "use_cache": True,
    "torchscript": False,
    "dtype": None,
    "pruned_heads": {},
    "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "is_causal": None,
    "cross_attention_hidden_size": None,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "architectures": None,
    "finetuning_task": None,
    "task_specific_params": None,
    "problem_type": None,
    "tokenizer_class": None,
    "prefix": None,
    "sep_token_id": None,
    "transformers_version": None,
}
# Generation settings live in one place, `config.generation_config`; these three are also a model's own switches.
SHARED = frozenset(GenerationConfig.DEFAULTS) - {"use_cache", "output_attentions", "output_hidden_states"}
TOKEN_IDS = ("decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id")
# A configuration of texts with images -> that of its language model, which is in it and is what is read here.
WITH_IMAGES = {"gemma3": ("text_config", "gemma3_text"), "vision-encoder-decoder": ("decoder", "trocr")}


class PretrainedConfig:
    """A family's hyper-parameters, under Hugging Face's names.

    A subclass lists its fields in `defaults`. Any other keyword is kept as an attribute and written back. Generation
    settings and token ids (`num_beams`, `pad_token_id` ...) are read from and written to `generation_config`, the one
    store that `model.config` and `model.generation_config` both show.

    >>> config = PretrainedConfig(num_beams=4, my_own_field="kept")
    >>> config.num_beams, config.generation_config.num_beams, config.my_own_field
    (4, 4, 'kept')
    """

    model_type: ClassVar[str] = ""
    defaults: ClassVar[dict[str, Any]] = {}
    attribute_map: ClassVar[dict[str, str]] = {}
    generation_config: GenerationConfig
    _name_or_path: str = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        parameters = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
            for name, default in cls.defaults.items()
        ]
        rest = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
        cls.__signature__ = inspect.Signature([*parameters, rest])  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(self.defaults):
            raise TypeError(f"{type(self).__name__} takes {len(self.defaults)} positional arguments, not {len(args)}")
        self.__dict__["generation_config"] = GenerationConfig()
        given = dict(zip(self.defaults, args, strict=False))
        if twice := given.keys() & kwargs.keys():
            raise TypeError(f"{type(self).__name__} got {sorted(twice)} twice, by position and by name")
        kwargs.pop("model_type", None)
        for name, value in {**copy.deepcopy(self.defaults), **given, **kwargs}.items():
            setattr(self, name, value)
        self.complete()

    def complete(self) -> None:
        """Fill fields that follow from others; a family may override it."""

    def __setattr__(self, name: str, value: Any) -> None:
        name = self.field_name(name)
        if name == "pruned_heads" and value:
            value = _heads_by_layer(value)
        if name == "dtype" and value is not None:
            value = str(value).removeprefix("torch.")
        if name == "generation_config":
            value = self._adopt(value)
        if name in SHARED:
            setattr(self.generation_config, name, value)
        else:
            self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "generation_config":  # copy and pickle look before `__init__` has run
            raise AttributeError(name)
        name = self.field_name(name)
        if name in self.__dict__:
            return self.__dict__[name]
        if name in SHARED:
            return getattr(self.generation_config, name)
        if name in COMMON:
            return self.__dict__.setdefault(name, {}) if COMMON[name] == {} else COMMON[name]
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def merge_settings(self, settings: GenerationConfig, only_unset: bool = False) -> None:
        """Take in what a `generation_config.json` says; it is more particular than the family's defaults."""
        own = self.generation_config.explicit() if only_unset else {}
        for name, value in settings.explicit().items():
            if name not in own:
                setattr(self.generation_config, name, value)

    def _adopt(self, value: Any) -> GenerationConfig:
        """A new store of generation settings; token ids that it leaves open keep their values."""
        if not isinstance(value, GenerationConfig):
            value = GenerationConfig.from_dict(dict(value))
        for name in TOKEN_IDS:
            if name not in value.explicit() and (old := getattr(self.generation_config, name)) is not None:
                setattr(value, name, old)
        return value

    def field_name(self, name: str) -> str:
        """The name under which a field is kept: families have their own for some.

        >>> PretrainedConfig().field_name("torch_dtype")
        'dtype'
        """
        name = {"torch_dtype": "dtype"}.get(name, name)
        return self.attribute_map.get(name, name)

    @property
    def use_return_dict(self) -> bool:
        """Whether outputs are records rather than tuples."""
        return self.return_dict

    @property
    def name_or_path(self) -> str:
        """Where the configuration was read from."""
        return self._name_or_path

    def get_text_config(self, decoder: bool = False, encoder: bool = False) -> PretrainedConfig:
        """This configuration: models here are of text only."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Every field that is set, as plain data that JSON can hold."""
        hidden = ("generation_config", "_name_or_path")
        fields = {name: _plain(value) for name, value in self.__dict__.items() if name not in hidden}
        if not fields.get("pruned_heads", True):
            del fields["pruned_heads"]
        settings = {name: _plain(v) for name, v in self.generation_config.explicit().items() if name in SHARED}
        return {"model_type": self.model_type, **settings, **fields}

    def to_diff_dict(self) -> dict[str, Any]:
        """As `to_dict`: every field is written, so that no file depends on another release's defaults."""
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Write `to_json_string` to a file."""
        Path(json_file_path).write_text(self.to_json_string(use_diff), encoding="utf-8")

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `config.json` into a folder, made if need be; generation settings are in it."""
        write_folder(save_directory, {"config.json": self.to_json_string().encode()})
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", None) or Path(save_directory).name
            upload_folder(save_directory, repo_id, only=["config.json"], **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Send `config.json` to the hub; gives the address of the commit. Keywords are `hub.upload_folder`'s."""
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_folder(folder, repo_id, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Read `config.json` from a folder or a hub id; keywords that are fields replace what it says.

        With `return_unused_kwargs=True`: a pair of the configuration and the keywords that are no fields.

        Raises:
            FileNotFoundError: no such folder, repository or file.
            ValueError: the file is not JSON, or is of another family.
        """
        values, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        found = values.get("model_type", cls.model_type)
        if cls.model_type and found != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path}: config.json is of model_type {found!r}, not {cls.model_type!r}; "
                f"read it with AutoConfig or the class of that family"
            )
        return cls.from_dict(values, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `config.json` says, and the keywords that did not say where it is."""
        options = hub_options(kwargs)
        is_place = isinstance(pretrained_model_name_or_path, (str, Path))
        path = Path(pretrained_model_name_or_path) if is_place else Path()
        if not path.is_file():
            path = find_file(pretrained_model_name_or_path, "config.json", **options)  # type: ignore[assignment]
        values = _of_text(read_json(path), path)
        values["_name_or_path"] = str(pretrained_model_name_or_path)
        return values, kwargs

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """From plain data; keywords that are fields replace what it says (see `from_pretrained`)."""
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        config = cls(**config_dict)
        known = {name: kwargs.pop(name) for name in list(kwargs) if config.has(name)}
        for name, value in known.items():
            setattr(config, name, value)
        return (config, kwargs) if wants_unused else config

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Any:
        """From a JSON file."""
        return cls.from_dict(read_json(json_file))

    def has(self, name: str) -> bool:
        """Whether `name` is a field of this configuration."""
        name = self.field_name(name)
        return name in self.__dict__ or name in SHARED or name in COMMON

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set many fields."""
        for name, value in config_dict.items():
            setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PretrainedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


PreTrainedConfig = PretrainedConfig  # its name in version 5 of the reference


def _of_text(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a `config.json` says of its language model, where it is of a model of texts with images."""
    name = values.get("model_type")
    if not isinstance(name, str) or name not in WITH_IMAGES:
        return values
    field, family = WITH_IMAGES[name]
    if not isinstance(inner := values.get(field), dict):
        raise ValueError(f"{path}: a {name} has its language model in {field}, which is missing; add it")
    if inner.get("model_type", family) != family:
        raise ValueError(
            f"{path}: the {field} of this {name} is a {inner['model_type']}; only a {family} is read from it"
        )
    above = (*TOKEN_IDS, "dtype", "torch_dtype", "quantization_config")
    return {"model_type": family, **inner, **{name: values[name] for name in above if values.get(name) is not None}}


def _heads_by_layer(value: Any) -> dict[int, list[int]]:
    """JSON knows only text as a key."""
    try:
        return {int(layer): sorted(int(head) for head in heads) for layer, heads in value.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"pruned_heads={value!r} does not map layers to lists of heads ({error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, PretrainedConfig):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # a number or an array of numpy or torch
        return value.tolist()
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
