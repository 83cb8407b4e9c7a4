"""What every model here can do: be made, loaded, cast and saved; its parameters are a tree beside its Linen module."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from warmstart.checkpoint.configuration import (
    asks_for_fewer_layers,
    read_configuration,
    replaced,
    tokenizer_files,
    written_configuration,
)
from warmstart.checkpoint.readers import open_weights
from warmstart.checkpoint.writer import OLD_WEIGHTS, TARGET_TOKENIZER, weight_files
from warmstart.config import PretrainedConfig
from warmstart.fitting import Side, broken_ties, fit, in_file
from warmstart.flax import loading
from warmstart.flax.loading import Params
from warmstart.folder import write_folder
from warmstart.generation_config import GenerationConfig
from warmstart.hub import UPLOADING, hub_options, upload_folder
from warmstart.spec import StackSpec
from warmstart.warm_start import (
    LoadReport,
    check_cross_attention_init,
    copies_of_self_attention,
    name_in_file,
    sharing,
)

_FILES = ("use_safetensors", "variant")
# Arguments of the reference's `from_pretrained` that ask for what is always done here.
_ALWAYS = ("low_cpu_mem_usage", "trust_remote_code", "from_pt")


class FlaxPreTrainedModel:
    """A Linen module, a tree of parameters and a configuration; after loading, a `load_report`."""

    main_input_name: ClassVar[str] = "input_ids"
    base_model_prefix: ClassVar[str] = ""
    can_generate_text: ClassVar[bool] = False
    load_report: LoadReport | None = None

    def __init__(
        self,
        config: PretrainedConfig,
        module: nn.Module,
        input_shape: Any = None,
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
    ):
        self.config, self.module, self.dtype = config, module, dtype
        self.key = jax.random.key(seed)
        self.input_shape = input_shape
        self._params: Params | None = None
        if _do_init:
            self._params = self.init_weights(self.key, input_shape)

    # What a model is made of ------------------------------------------------------------------------------------

    def sides(self) -> list[Side]:
        """The stacks of this model, as files know them."""
        raise NotImplementedError

    def specs(self) -> list[StackSpec]:
        """What its stacks are made of."""
        return [side.spec for side in self.sides()]

    def groups(self) -> dict[str, list[str]]:
        """Our name of each parameter -> all names that it has in files."""
        shared = sharing(self.config) if getattr(self.config, sharing(self.config), False) else ""
        return loading.groups_of(loading.flat(self.params_shape_tree), self.sides(), shared)

    def example_inputs(self, input_shape: Any = None) -> tuple[Any, ...]:
        """Inputs of the module that make it create all of its parameters."""
        raise NotImplementedError

    def init_weights(self, rng: Any, input_shape: Any = None, params: Mapping[str, Any] | None = None) -> Params:
        """A tree of new random values, as the configuration says; `params` gives those that are not to be new."""
        self.example_inputs(input_shape)  # checks it; no parameter depends on it
        leaves = loading.flat(self.params_shape_tree)
        given = {} if params is None else loading.flat(params)
        new = {name: x for name, x in leaves.items() if name not in given}
        return loading.nested(given | loading.initial_values(new, self.sides(), rng))

    @property
    def params(self) -> Params:
        """The tree of parameters.

        Raises:
            ValueError: the model was made with `_do_init=False`, and has none.
        """
        if self._params is None:
            raise ValueError(
                "this model was made with _do_init=False and holds no parameters: keep them yourself and pass them as "
                "params=..., or make them with model.init_weights(jax.random.key(0))"
            )
        return self._params

    @params.setter
    def params(self, params: Mapping[str, Any]) -> None:
        loading.check_tree(params, self.params_shape_tree)
        self._params = dict(params)

    @cached_property
    def params_shape_tree(self) -> Params:
        """The shape and type of every parameter; takes no memory."""
        return jax.eval_shape(partial(_init, self.module), self.key, self.example_inputs())

    @property
    def required_params(self) -> set[tuple[str, ...]]:
        """The path of every parameter."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params_shape_tree)
        return {tuple(part.key for part in path) for path, _ in leaves}

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

    def num_parameters(self) -> int:
        """How many numbers the parameters hold; tied ones count once."""
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(self.params_shape_tree))

    def enable_gradient_checkpointing(self) -> None:
        """Keep only each layer's input for the backward pass, and compute the layer again there (Chen et al. 2016)."""
        self.module = self.module.clone(remat=True)

    def run(
        self,
        method: str,
        arrays: Mapping[str, Any],
        flags: Mapping[str, Any],
        params: Any,
        dropout_rng: Any = None,
        cache: Any = None,
    ) -> Any:
        """Apply a method of the module, compiled; flags are part of what is compiled."""
        trains = flags.get("train", False) or not flags.get("deterministic", True)
        if trains and dropout_rng is None and any(map(_drops, self.specs())):
            raise ValueError(
                "train=True draws dropout at random: pass dropout_rng=jax.random.key(...), a new one a step"
            )
        given: dict[str, Any] = jax.tree.map(jnp.asarray, dict(arrays))
        if cache is not None:
            given["cache"] = cache
        params = self.params if params is None else params
        return _apply(self.module, method, tuple(sorted(flags.items())), params, given, dropout_rng)

    # Types ------------------------------------------------------------------------------------------------------

    def to_bf16(self, params: Mapping[str, Any], mask: Any = None) -> Params:
        """The parameters as bfloat16; where `mask`, a tree of booleans, is False they stay. The model is as it was."""
        return _cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Mapping[str, Any], mask: Any = None) -> Params:
        """The parameters as float16; see `to_bf16`."""
        return _cast(params, jnp.float16, mask)

    def to_fp32(self, params: Mapping[str, Any], mask: Any = None) -> Params:
        """The parameters as float32; see `to_bf16`."""
        return _cast(params, jnp.float32, mask)

    # Files ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:
        """A model with random weights; `seed`, `dtype`, `input_shape`, `_do_init`, and fields of the configuration."""
        if not isinstance(config, PretrainedConfig):
            raise TypeError(f"{cls.__name__}.from_config needs a configuration, not a {type(config).__name__}")
        own = {name: kwargs.pop(name) for name in ("seed", "dtype", "input_shape", "_do_init") if name in kwargs}
        config = replaced(config, kwargs)
        if kwargs:
            raise TypeError(f"{cls.__name__}.from_config got unknown arguments {sorted(kwargs)}")
        return cls(config, **own)

    @classmethod
    def part_of(cls, config: PretrainedConfig) -> tuple[PretrainedConfig, str | None]:
        """Which part of a checkpoint's configuration is this model's, and the prefix of its weights in the file."""
        return config, ""

    @classmethod
    def may_be_new(cls) -> bool:
        """Whether a checkpoint may lack a part that this class then makes: a head, cross-attention."""
        return True

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, dtype: Any = jnp.float32, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a model from a folder or a hub id: safetensors, `.bin` or `flax_model.msgpack`, whole or in shards.

        `dtype` is the type of computation; parameters keep the file's (`to_bf16` and its like change them). Keywords:
        `config`; fields of the configuration, which replace what the file says; where files are (`revision`,
        `cache_dir`, `token`, `local_files_only`, `subfolder`, `use_safetensors`, `variant`); `seed` for what is made
        anew; `strict=False` to make missing weights anew and leave unknown ones out; `ignore_mismatched_sizes`;
        `_do_init=False` for a pair of a model without parameters and the parameters.

        Raises:
            FileNotFoundError: no such folder, repository or file.
            OSError: a file is corrupt.
            ValueError: weights are missing, unknown, or of another shape than the configuration says.
            TypeError: an argument is not known.
        """
        place, dtype = pretrained_model_name_or_path, loading.as_dtype(dtype)
        hub = hub_options(kwargs)
        for name in _ALWAYS:
            kwargs.pop(name, None)
        do_init, seed = kwargs.pop("_do_init", True), kwargs.pop("seed", 0)
        start = check_cross_attention_init(kwargs.pop("cross_attention_init", "random"))
        options = {name: kwargs.pop(name) for name in ("strict", "ignore_mismatched_sizes") if name in kwargs}
        files = {name: kwargs.pop(name) for name in _FILES if name in kwargs}
        asked = set(kwargs)
        given = isinstance(kwargs.get("config"), PretrainedConfig)
        who = f"{cls.__name__}.from_pretrained"
        own = getattr(cls, "config_class", None)
        config, prefix = read_configuration(place, hub, kwargs, cls.part_of, own, who)
        fewer = bool(given or asked) and asks_for_fewer_layers(config, place, hub)
        weights = open_weights(place, framework="np", **files, **hub)

        def made() -> tuple[Any, list[Side]]:
            make: Any = cls  # the models, whose arguments are a configuration and these
            model = make(config, seed=seed, dtype=dtype, _do_init=False)
            return model, [Side(x.ours, name_in_file(prefix, x.theirs), x.config, x.spec) for x in model.sides()]

        model, sides = made()
        entries = partial(loading.read, weights)
        broken = broken_ties(model.groups(), sides, weights, model.config, entries, _equal)
        if broken and not asked.intersection(broken):  # who asks for a tie has it, whatever the file holds
            for setting, whose in broken.items():
                setattr(whose, setting, False)
            warnings.warn(
                f"{place}: config.json ties weights ({', '.join(broken)}) of which the file holds copies that differ; "
                "they are loaded as they are, untied, and the configuration now says so",
                stacklevel=2,
            )
            model, sides = made()
        shapes = loading.our_shapes(loading.flat(model.params_shape_tree))
        plan = fit(model.groups(), shapes, sides, weights, may_be_new=cls.may_be_new(), fewer_layers=fewer, **options)
        params = loading.fill(plan, weights, model.new_values)
        copies = copies_of_self_attention(plan.new, shapes) if start == "copy" else {}
        params = loading.copied(params, copies)
        model.load_report = plan.report(copies)
        if not do_init:
            return model, params
        model.params = params
        return model

    def new_values(self, names: list[str]) -> Mapping[str, Any]:
        """First values of these parameters alone."""
        leaves = loading.flat(self.params_shape_tree)
        return loading.initial_values({name: leaves[name] for name in names}, self.sides(), self.key)

    def save_pretrained(
        self,
        save_directory: str | Path,
        params: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        encoder_tokenizer: Any = None,
        decoder_tokenizer: Any = None,
        as_whole: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write `config.json`, `generation_config.json` and the weights, under Hugging Face's names; all or nothing.

        With `safe_serialization=False` the weights go into `flax_model.msgpack`, under the names and axes of the
        reference's Flax classes. `params` are written in place of the model's own. Weights above `max_shard_size` are
        shared out over several files. The tokenizer of the source goes beside them; the target's, if it is another,
        into `decoder_tokenizer/`. Anything else in the folder stays. `as_whole=True` writes a pair that was opened from
        a whole (a T5, a BART ...) as such a whole again, as safetensors. Other keywords are `hub.upload_folder`'s.

        Raises:
            TypeError: an argument is not known. ValueError: `params` are not this model's.
            NotADirectoryError: `save_directory` is a file.
            OSError: the disk is full or the folder cannot be written; it is as it was.
        """
        if unknown := kwargs.keys() - {"repo_id", *UPLOADING}:
            raise TypeError(f"{type(self).__name__}.save_pretrained got unknown arguments {sorted(unknown)}")
        tree = self.params if params is None else dict(params)
        loading.check_tree(tree, self.params_shape_tree)
        config, sides, name = in_file(self.config, self.sides(), as_whole, safe_serialization)
        sizes, entries = loading.saved(tree, sides, self.groups(), as_flax=not safe_serialization)
        suffix = "safetensors" if safe_serialization else "msgpack"
        dtype = next(iter(jax.tree.leaves(tree))).dtype.name
        files = written_configuration(config, name or self.architecture(), dtype, self.can_generate())
        files |= weight_files(
            sizes, lambda keys, path: loading.write_tensors(tree, entries, keys, path), max_shard_size, suffix
        )
        source, target = tokenizer_files(encoder_tokenizer), tokenizer_files(decoder_tokenizer)
        files |= source or target
        if source and target and source != target:
            files |= {f"{TARGET_TOKENIZER}/{name}": content for name, content in target.items()}
        old = (*OLD_WEIGHTS, f"{TARGET_TOKENIZER}/.*") if source or target else OLD_WEIGHTS
        write_folder(save_directory, files, replaces=old)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", None) or Path(save_directory).name
            upload_folder(save_directory, repo_id, only=files, **kwargs)

    def architecture(self) -> str:
        """The reference's class name for this model in PyTorch, which every framework's files name."""
        return type(self).__name__.removeprefix("Flax")

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Save to a temporary folder and send that to the hub; gives the address of the commit."""
        import tempfile

        saving = {
            name: kwargs.pop(name) for name in ("params", "max_shard_size", "safe_serialization") if name in kwargs
        }
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **saving)
            return upload_folder(folder, repo_id, **kwargs)


def _init(module: nn.Module, key: Any, inputs: tuple[Any, ...]) -> Params:
    return module.init(key, *inputs)["params"]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(
    module: nn.Module, method: str, flags: tuple[tuple[str, Any], ...], params: Any, arrays: Any, dropout_rng: Any
) -> Any:
    rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
    return module.apply({"params": params}, **arrays, **dict(flags), rngs=rngs, method=method)


def _cast(params: Mapping[str, Any], dtype: Any, mask: Any) -> Any:
    def cast(value: Any, wanted: Any = True) -> Any:
        value = jnp.asarray(value)
        return value.astype(dtype) if wanted and jnp.issubdtype(value.dtype, jnp.floating) else value

    return jax.tree.map(cast, params) if mask is None else jax.tree.map(cast, params, mask)


def _drops(spec: StackSpec) -> bool:
    """Whether a stack drops anything at random in training."""
    cross = 0.0 if spec.cross_attention is None else spec.cross_attention.dropout
    shares: Iterable[float] = (spec.dropout, spec.embedding.dropout, spec.attention.dropout, cross, spec.mlp.dropout)
    return any((*shares, spec.layer_drop))


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and bool(np.array_equal(one, other))
