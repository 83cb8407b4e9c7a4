"""What every model here can do: be made, loaded and saved, trained by `fit`, its parameters counted."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import keras
import tensorflow as tf

from warmstart.checkpoint.configuration import (
    asks_for_fewer_layers,
    read_configuration,
    replaced,
    tokenizer_files,
    written_configuration,
)
from warmstart.checkpoint.readers import folder_of, open_weights
from warmstart.checkpoint.writer import OLD_WEIGHTS, TARGET_TOKENIZER, weight_files
from warmstart.config import PretrainedConfig
from warmstart.families.auto import config_class
from warmstart.fitting import Side, in_file
from warmstart.folder import write_folder
from warmstart.generation_config import GenerationConfig
from warmstart.hub import UPLOADING, hub_options, upload_folder
from warmstart.tf import loading
from warmstart.tf.inputs import named
from warmstart.tf.training import Trained
from warmstart.tf.unfilled import unfilled
from warmstart.warm_start import LoadReport, name_in_file

_LOADING = ("strict", "ignore_mismatched_sizes", "cross_attention_init")
_FILES = ("use_safetensors", "variant")
# Arguments of the reference's `from_pretrained` that ask for what is always done here.
_ALWAYS = ("low_cpu_mem_usage", "trust_remote_code", "from_pt", "from_tf", "_fast_init", "weights_only")
_TYPES = ("float32", "bfloat16", "float16", "float64")


class PreTrainedModel(Trained):
    """A Keras model with a configuration and, after loading, a `load_report` of where its weights come from."""

    main_input_name: ClassVar[str] = "input_ids"
    base_model_prefix: ClassVar[str] = ""
    config_class: ClassVar[type[PretrainedConfig] | None] = None
    can_generate_text: ClassVar[bool] = False
    load_report: LoadReport | None = None

    def __init__(self, config: PretrainedConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.built = True  # every layer has its weights once it is made

    @tf.autograph.experimental.do_not_convert  # nothing below is to be rewritten, and looking takes most of a trace
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As any Keras model; but lists and arrays may be given by position too, as the reference takes them."""
        names = [name for name in inspect.signature(self.call).parameters if name != "kwargs"]
        if len(args) > len(names):
            raise TypeError(f"{type(self).__name__} takes {len(names)} positional arguments, not {len(args)}")
        given = dict(zip(names, args, strict=False))
        if twice := given.keys() & kwargs.keys():
            raise TypeError(f"{type(self).__name__} got {sorted(twice)} twice, by position and by name")
        first = given.pop("input_ids", None) if "input_ids" in given else kwargs.pop("input_ids", None)
        arguments = named(first, given | kwargs)
        if "kwargs" not in inspect.signature(self.call).parameters:
            arguments.pop("num_items_in_batch", None)
            if unknown := sorted(arguments.keys() - {*names}):
                raise TypeError(
                    f"{type(self).__name__}.call() got an unexpected keyword argument {unknown[0]!r}; it knows "
                    f"{', '.join(names)}"
                )
        with plain_errors():
            return super().__call__(**arguments)

    # What a model is made of ------------------------------------------------------------------------------------

    def sides(self) -> list[Side]:
        """The stacks of this model, as files know them."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Give every parameter a new random value, as the configuration says."""
        loading.initialise(self, self.sides(), list(loading.shared_names(self)))

    # Facts ------------------------------------------------------------------------------------------------------

    @property
    def generation_config(self) -> GenerationConfig:
        """The settings of `generate`: a view of what `config` holds."""
        return self.config.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self.config.generation_config = value

    def can_generate(self) -> bool:
        """Whether `generate` works."""
        return self.can_generate_text

    def forget_traces(self) -> None:
        """Let `generate` be traced anew, after a change of what the model is made of."""
        self.__dict__.pop("_generate_traces", None)

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the parameters hold; tied ones count once."""
        variables = {id(x.variable): x.variable for _, x in loading.named_parameters(self)}
        return sum(
            int(keras.ops.size(variable)) for variable in variables.values() if variable.trainable or not only_trainable
        )

    # Keras ------------------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """What `keras.saving` writes of the model beside its weights."""
        return {"name": self.name, "dtype": self.dtype_policy.name, "config": self.config.to_dict()}

    @classmethod
    def from_config(cls, config: Any, custom_objects: Any = None, **kwargs: Any) -> Any:
        """A model with random weights; keywords replace fields of a copy of the configuration.

        Keras calls this too, with what `get_config` gave.
        """
        if isinstance(config, dict) and "config" in config:
            values = config["config"]
            with policy(config.get("dtype")):
                return cls(config_class(values["model_type"]).from_dict(values), name=config.get("name"))
        if not isinstance(config, PretrainedConfig):
            raise TypeError(f"{cls.__name__}.from_config needs a configuration, not a {type(config).__name__}")
        config = replaced(config, kwargs)
        if kwargs:
            raise TypeError(f"{cls.__name__}.from_config got unknown arguments {sorted(kwargs)}")
        return cls(config)

    # Files ------------------------------------------------------------------------------------------------------

    @classmethod
    def part_of(cls, config: PretrainedConfig) -> tuple[PretrainedConfig, str | None]:
        """Which part of a checkpoint's configuration is this model's, and the prefix of its weights in the file."""
        return config, ""

    @classmethod
    def may_be_new(cls) -> bool:
        """Whether a checkpoint may lack a part that this class then makes: a head, cross-attention."""
        return True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Load a model from a folder or a hub id, whichever framework wrote it: the file that is there decides.

        Keywords: `config`; fields of the configuration, which replace what the file says; where files are (`revision`,
        `cache_dir`, `token`, `local_files_only`, `subfolder`, `use_safetensors`, `variant`); `dtype` (a type's name, or
        "auto" for the file's; Keras' own setting if left out); `strict=False` to make missing weights anew and leave
        unknown ones out; `ignore_mismatched_sizes`; `output_loading_info=True` for a pair with a dict of what was
        missing. `from_pt` is accepted and not needed. An original TensorFlow checkpoint is given by its `.index` file.

        Raises:
            FileNotFoundError: no such folder, repository or file.
            OSError: a file is corrupt.
            ValueError: weights are missing, unknown, or of another shape than the configuration says.
            TypeError: an argument is not known.
        """
        place, source = folder_of(pretrained_model_name_or_path), pretrained_model_name_or_path
        hub = hub_options(kwargs)
        for name in _ALWAYS:
            kwargs.pop(name, None)
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        wants_info = kwargs.pop("output_loading_info", False)
        options = {name: kwargs.pop(name) for name in _LOADING if name in kwargs}
        files = {name: kwargs.pop(name) for name in _FILES if name in kwargs}
        asked = set(kwargs)
        given = isinstance(kwargs.get("config"), PretrainedConfig)
        config, prefix = read_configuration(
            place, hub, kwargs, cls.part_of, cls.config_class, f"{cls.__name__}.from_pretrained"
        )
        options["fewer_layers"] = bool(given or asked) and asks_for_fewer_layers(config, place, hub)
        weights = open_weights(source, framework="np", **files, **hub)
        with policy(_type_of(dtype, weights)):
            model, sides = cls._unfilled(config, prefix)
            broken = loading.broken_ties(model, sides, weights)
            if broken and not asked.intersection(broken):  # who asks for a tie has it, whatever the file holds
                for setting, whose in broken.items():
                    setattr(whose, setting, False)
                warnings.warn(
                    f"{place}: config.json ties weights ({', '.join(broken)}) of which the file holds copies that "
                    "differ; they are loaded as they are, untied, and the configuration now says so",
                    stacklevel=2,
                )
                model, sides = cls._unfilled(config, prefix)
        report = loading.fill(model, sides, weights, may_be_new=cls.may_be_new(), **options)
        model.load_report = report
        model.config.dtype = model.variable_dtype
        info = {"missing_keys": report.new, "unexpected_keys": report.left_out, "mismatched_keys": [], "error_msgs": []}
        return (model, info) if wants_info else model

    @classmethod
    def _unfilled(cls, config: PretrainedConfig, prefix: str | None) -> tuple[Any, list[Side]]:
        """The model without values, and its stacks as they are called in the file."""
        with unfilled():
            model = cls(config)
        return model, [
            Side(side.ours, name_in_file(prefix, side.theirs), side.config, side.spec) for side in model.sides()
        ]

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        encoder_tokenizer: Any = None,
        decoder_tokenizer: Any = None,
        as_whole: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write `config.json`, `generation_config.json` and the weights, under Hugging Face's names; all or nothing.

        Weights above `max_shard_size` are shared out over several files; with `safe_serialization=False` they go into
        one `tf_model.h5`. The tokenizer of the source goes beside them; the target's, if it is another, into
        `decoder_tokenizer/`. Anything else in the folder stays. `as_whole=True` writes a pair that was opened from a
        whole (a T5, a BART ...) as such a whole again, as safetensors. Other keywords are `hub.upload_folder`'s.

        Raises:
            TypeError: an argument is not known.
            NotADirectoryError: `save_directory` is a file.
            OSError: the disk is full or the folder cannot be written; it is as it was.
        """
        if unknown := kwargs.keys() - {"repo_id", *UPLOADING}:
            raise TypeError(f"{type(self).__name__}.save_pretrained got unknown arguments {sorted(unknown)}")
        config, sides, name = in_file(self.config, self.sides(), as_whole, safe_serialization)
        sizes, entries = loading.saved(self, sides)
        files = written_configuration(config, name or self.architecture(), self.variable_dtype, self.can_generate())
        if safe_serialization:
            files |= weight_files(
                sizes, lambda keys, path: loading.write_tensors(self, entries, keys, path), max_shard_size
            )
        else:
            files["tf_model.h5"] = lambda path: loading.write_h5(self, sides, entries, path)
        source, target = tokenizer_files(encoder_tokenizer), tokenizer_files(decoder_tokenizer)
        files |= source or target
        if source and target and source != target:
            files |= {f"{TARGET_TOKENIZER}/{name}": content for name, content in target.items()}
        replaced_files = (*OLD_WEIGHTS, r"tf_model\.h5", *([f"{TARGET_TOKENIZER}/.*"] if source or target else []))
        write_folder(save_directory, files, replaces=replaced_files)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", None) or Path(save_directory).name
            upload_folder(save_directory, repo_id, only=files, **kwargs)

    def architecture(self) -> str:
        """The reference's class name for this model; in files it is that of the model in PyTorch."""
        return type(self).__name__.removeprefix("TF")

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Save to a temporary folder and send that to the hub; gives the address of the commit."""
        import tempfile

        saving = {name: kwargs.pop(name) for name in ("max_shard_size", "safe_serialization") if name in kwargs}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **saving)
            return upload_folder(folder, repo_id, **kwargs)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Inside it, errors keep their own words; Keras else puts them into a message with all arguments of the call."""
    was_filtered = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if was_filtered:
            keras.config.enable_traceback_filtering()


@contextmanager
def policy(name: str | None) -> Iterator[None]:
    """Inside it, new layers have this dtype policy ("bfloat16", "mixed_bfloat16" ...); None changes nothing."""
    old = keras.config.dtype_policy()
    try:
        if name is not None:
            keras.config.set_dtype_policy(name)
        yield
    finally:
        keras.config.set_dtype_policy(old)


def _type_of(dtype: Any, weights: Any) -> str | None:
    """The dtype policy that is asked for."""
    if dtype is None:
        return None
    if dtype == "auto":
        return str(loading.number(weights, next(iter(weights.files))).dtype)
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", str(dtype))
    name = name.removeprefix("torch.").removeprefix("<dtype: '").removesuffix("'>")
    if name not in _TYPES:
        raise ValueError(
            f"dtype {dtype!r} is not a floating-point type; use 'float32', 'bfloat16', 'float16' or 'auto'"
        )
    return name
