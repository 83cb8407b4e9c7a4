"""What every model here can do: be made, loaded and saved, count and freeze its parameters, resize its embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from warmstart.checkpoint.configuration import (
    asks_for_fewer_layers,
    read_configuration,
    replaced,
    tokenizer_files,
    written_configuration,
)
from warmstart.checkpoint.readers import folder_of, open_weights
from warmstart.checkpoint.writer import TARGET_TOKENIZER, old_weights, weight_files
from warmstart.config import PretrainedConfig
from warmstart.fitting import Side, in_file
from warmstart.folder import write_folder
from warmstart.generation_config import GenerationConfig
from warmstart.hub import UPLOADING, hub_options, upload_folder
from warmstart.torch import loading
from warmstart.torch.options import one_device, take_unneeded
from warmstart.torch.unfilled import unfilled
from warmstart.warm_start import LoadReport, name_in_file

_LOADING = ("strict", "ignore_mismatched_sizes", "cross_attention_init")
_FILES = ("use_safetensors", "variant")
# Of `save_pretrained`: files are written, whole or not at all, in one way.
_NOT_NEEDED = ("save_function", "save_peft_format")


class PreTrainedModel(nn.Module):
    """A model with a configuration and, after loading, a `load_report` of where its weights come from."""

    main_input_name: ClassVar[str] = "input_ids"
    base_model_prefix: ClassVar[str] = ""
    supports_gradient_checkpointing: ClassVar[bool] = True
    can_generate_text: ClassVar[bool] = False
    load_report: LoadReport | None = None

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        self.config = config

    # What a model is made of ------------------------------------------------------------------------------------

    def sides(self) -> list[Side]:
        """The stacks of this model, as files know them."""
        raise NotImplementedError

    def tie_weights(self) -> None:
        """Make one parameter of those that are tied."""

    def init_weights(self, device: Any = None) -> None:
        """Give every parameter a new random value, as the configuration says; what is tied becomes one again."""
        self.tie_weights()
        device = self.device if device is None else device
        names = list(loading.shared_names(self))
        loading.initialise(self, self.sides(), names, torch.get_default_dtype(), device)

    # Facts ------------------------------------------------------------------------------------------------------

    @property
    def generation_config(self) -> GenerationConfig:
        """The settings of `generate`: a view of what `config` holds."""
        return self.config.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self.config.generation_config = value

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return next(self.parameters()).dtype

    @property
    def name_or_path(self) -> str:
        """Where the configuration was read from."""
        return self.config.name_or_path

    @property
    def base_model(self) -> PreTrainedModel:
        """The model itself: heads are no wrappers here."""
        return self

    def can_generate(self) -> bool:
        """Whether `generate` works."""
        return self.can_generate_text

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters hold; tied ones count once."""
        tables = {
            id(parameter)
            for module in self.modules()
            if isinstance(module, nn.Embedding)
            for parameter in module.parameters(recurse=False)
        }
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if (parameter.requires_grad or not only_trainable) and not (exclude_embeddings and id(parameter) in tables)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """How many bytes the parameters take, with or without the buffers; tied ones count once."""
        held = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def stacks(self) -> Iterator[Any]:
        """The stacks in this model."""
        return (module for module in self.modules() if hasattr(module, "checkpoint_layers"))

    # Switches ---------------------------------------------------------------------------------------------------

    def quantize(self, dtype: str = "int8") -> Any:
        """Make every linear layer int8, in place, for inference alone; gives the model.

        Weights have a scale for each output, their inputs one for each token, made as they come; embeddings, norms and
        biases stay as they are. The model takes about a quarter of the memory, cannot be trained or saved any more, and
        is as near to the former as 8 bits are: see the benchmarks.

        Raises:
            ValueError: another type than "int8".
        """
        from warmstart.torch.engine.int8 import quantize

        if dtype != "int8":
            raise ValueError(f"quantize({dtype!r}): use 'int8', or model.to(torch.bfloat16) for half the memory")
        quantize(self)
        return self.eval()

    def train(self, mode: bool = True) -> Any:
        """Switch to training (or, with False, to evaluation); weights then stand row by row in memory of their own.

        What `generate` keeps on a GPU between calls is let go.
        """
        if mode:
            from warmstart.torch.engine import encoder_graphs, graphs

            graphs.release(self)
            encoder_graphs.release(self)
            loading.straighten(self)
        return super().train(mode)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """All parameters by their names, as of any module, each laid out row by row in memory of its own."""
        loading.straighten(self)
        return super().state_dict(*args, **kwargs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Keep only each layer's input for the backward pass, and compute the layer again there (Chen et al. 2016)."""
        for stack in self.stacks():
            stack.checkpoint_layers = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        for stack in self.stacks():
            stack.checkpoint_layers = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any stack computes its layers again in the backward pass."""
        return any(stack.checkpoint_layers for stack in self.stacks())

    def enable_input_require_grads(self) -> None:
        """Let gradients reach what the embeddings give, though their tables are not trained (for adapters)."""
        self.disable_input_require_grads()
        tables = [stack.embeddings.token for stack in self.stacks()]
        self.__dict__["_input_hooks"] = [table.register_forward_hook(_require_gradient) for table in tables]

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        for hook in self.__dict__.pop("_input_hooks", ()):
            hook.remove()

    # Files ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:
        """A model with random weights, in `dtype` if one is given; other keywords replace fields of a copy of `config`.

        Raises:
            TypeError: `config` is none, or a keyword is not known.
        """
        if not isinstance(config, PretrainedConfig):
            raise TypeError(f"{cls.__name__}.from_config needs a configuration, not a {type(config).__name__}")
        take_unneeded(kwargs, f"{cls.__name__}.from_config")
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        config = replaced(config, kwargs)
        if kwargs:
            raise TypeError(f"{cls.__name__}.from_config got unknown arguments {sorted(kwargs)}")
        if dtype is None:
            return cls(config)
        config.dtype = wanted = loading.as_dtype(config.dtype if dtype == "auto" else dtype)
        return cls(config).to(wanted)

    @classmethod
    def part_of(cls, config: PretrainedConfig) -> tuple[PretrainedConfig, str | None]:
        """Which part of a checkpoint's configuration is this model's, and the prefix of its weights in the file."""
        return config, ""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Load a model from a folder or a hub id; it comes in eval mode.

        Keywords: `config`; fields of the configuration, which replace what the file says; where files are (`revision`,
        `cache_dir`, `token`, `local_files_only`, `subfolder`, `use_safetensors`, `variant`); `dtype` (a type, its name,
        "auto" for the file's, or "int8" for `quantize`; float32 if left out); `device_map`, one device or "auto" for
        the accelerator if there is one; `strict=False` to make missing weights anew and leave unknown ones out;
        `from_tf=True` to read `tf_model.h5` or `model.ckpt.index` (its path, with a `config`);
        `ignore_mismatched_sizes`; `output_loading_info=True` for a pair with a dict of what was missing.

        Raises:
            FileNotFoundError: no such folder, repository or file.
            OSError: a file is corrupt.
            ValueError: weights are missing, unknown, or of another shape than the configuration says.
            TypeError: an argument is not known.
        """
        place, source = folder_of(pretrained_model_name_or_path), pretrained_model_name_or_path
        hub = hub_options(kwargs)
        take_unneeded(kwargs, f"{cls.__name__}.from_pretrained")
        device = one_device(kwargs.pop("device_map", None))
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        is_int8, dtype = dtype == "int8", None if dtype == "int8" else dtype
        wants_info = kwargs.pop("output_loading_info", False)
        options = {name: kwargs.pop(name) for name in _LOADING if name in kwargs}
        files = {name: kwargs.pop(name) for name in _FILES if name in kwargs}
        from_tf = bool(kwargs.pop("from_tf", False))
        asked = set(kwargs)
        given = isinstance(kwargs.get("config"), PretrainedConfig)
        config, prefix = read_configuration(
            place, hub, kwargs, cls.part_of, getattr(cls, "config_class", None), f"{cls.__name__}.from_pretrained"
        )
        options["fewer_layers"] = bool(given or asked) and asks_for_fewer_layers(config, place, hub)
        weights = open_weights(source, from_tf=from_tf, **files, **hub)
        model, sides = cls._unfilled(config, prefix)
        broken = loading.broken_ties(model, sides, weights)
        if broken and not asked.intersection(broken):  # who asks for a tie has it, whatever the file holds
            for setting, whose in broken.items():
                setattr(whose, setting, False)
            warnings.warn(
                f"{place}: config.json ties weights ({', '.join(broken)}) of which the file "
                "holds copies that differ; they are loaded as they are, untied, and the configuration now says so",
                stacklevel=2,
            )
            model, sides = cls._unfilled(config, prefix)
        report = loading.fill(
            model, sides, weights, dtype=dtype, is_int8=is_int8, may_be_new=cls.may_be_new(), **options
        )
        model.load_report = report
        model.config.dtype = model.dtype
        if device is not None:
            model.to(device)
        info = {"missing_keys": report.new, "unexpected_keys": report.left_out, "mismatched_keys": [], "error_msgs": []}
        return (model.eval(), info) if wants_info else model.eval()

    @classmethod
    def _unfilled(cls, config: PretrainedConfig, prefix: str | None) -> tuple[Any, list[Side]]:
        """The model without memory, and its stacks as they are called in the file."""
        with unfilled():
            model = cls(config)
        return model, [
            Side(side.ours, name_in_file(prefix, side.theirs), side.config, side.spec) for side in model.sides()
        ]

    @classmethod
    def may_be_new(cls) -> bool:
        """Whether a checkpoint may lack a part that this class then makes: a head, cross-attention."""
        return True

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Any] | None = None,
        *,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        encoder_tokenizer: Any = None,
        decoder_tokenizer: Any = None,
        as_whole: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write `config.json`, `generation_config.json` and the weights, under Hugging Face's names; all or nothing.

        Weights above `max_shard_size` are shared out over several files. The tokenizer of the source goes beside them;
        the target's, if it is another, into `decoder_tokenizer/`. Anything else in the folder stays. Where many
        processes hold the model, `is_main_process` says which one writes; `state_dict` holds the values to write in
        place of the parameters' own, such as those gathered from many devices. `variant="fp16"` writes
        `model.fp16.safetensors`, beside what is there. `as_whole=True` writes a pair that was opened from a whole (a
        T5, a BART ...) as such a whole again. Other keywords are `hub.upload_folder`'s.

        Raises:
            TypeError: an argument is not known.
            ValueError: `state_dict` is of another model.
            NotADirectoryError: `save_directory` is a file.
            OSError: the disk is full or the folder cannot be written; it is as it was.
        """
        for name in _NOT_NEEDED:
            kwargs.pop(name, None)
        if unknown := kwargs.keys() - {"repo_id", *UPLOADING}:
            raise TypeError(f"{type(self).__name__}.save_pretrained got unknown arguments {sorted(unknown)}")
        if any(buffer.dtype is torch.int8 for buffer in self.buffers()):
            raise ValueError("a model in int8 is not saved: save the one it was made from, and load with dtype='int8'")
        if not is_main_process:
            return
        config, sides, name = in_file(self.config, self.sides(), as_whole)
        values = loading.values(self, state_dict)
        sizes, entries = loading.saved(self, sides, values)
        suffix = "safetensors" if safe_serialization else "bin"
        dtype = str(next(iter(values.values())).dtype).removeprefix("torch.")
        files = written_configuration(config, name or self.architecture(), dtype, self.can_generate())
        files |= weight_files(
            sizes,
            lambda keys, path: loading.write_tensors(values, entries, keys, path),
            max_shard_size,
            suffix,
            variant,
        )
        source, target = tokenizer_files(encoder_tokenizer), tokenizer_files(decoder_tokenizer)
        files |= source or target
        if source and target and source != target:
            files |= {f"{TARGET_TOKENIZER}/{name}": content for name, content in target.items()}
        replaced = (*old_weights(variant), *([f"{TARGET_TOKENIZER}/.*"] if source or target else []))
        write_folder(save_directory, files, replaces=replaced)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", None) or Path(save_directory).name
            upload_folder(save_directory, repo_id, only=files, **kwargs)

    def architecture(self) -> str:
        """The reference's class name for this model."""
        return type(self).__name__

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Save to a temporary folder and send that to the hub; gives the address of the commit."""
        import tempfile

        saving = {name: kwargs.pop(name) for name in ("max_shard_size", "safe_serialization") if name in kwargs}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **saving)
            return upload_folder(folder, repo_id, **kwargs)


def _require_gradient(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
    output.requires_grad_(True)
