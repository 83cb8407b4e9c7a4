"""What a family is: its configuration, how that becomes a `StackSpec`, and what its weights are called on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from warmstart.config import PretrainedConfig
from warmstart.spec import EmbeddingSpec, HeadSpec, StackSpec


@dataclass(frozen=True)
class Stored:
    """Where a parameter of ours lies in a checkpoint.

    `name` may hold `{}` for the layer. A name that starts with "/" stands outside the stack's prefix (a head's).
    Several parameters may share one stored tensor: each is `size` of its equal `parts`, from number `part` on. With
    `groups` the tensor is such a row of parts for each group of heads. `by_head` says so of queries, keys and values
    whose heads alternate: for each key-value head its queries, its key, its value; the spec says how many there are.
    Conv1D keeps its matrices `transposed`, (in, out). `aliases` are other names that real files use; `name` is the one
    that is written.
    `untied` is a second name that a head of its own weights has: read before `name`, and written beside it, because
    newer releases of the reference compute with that one alone. `alone` is the name that is written for a stack that is
    saved by itself, where it is another. A `row` is number `part` of a matrix of so many `parts`. `ungated` is the name
    where the MLP has no gate.
    """

    name: str
    part: int = 0
    parts: int = 1
    size: int = 1
    groups: int = 1
    by_head: bool = False
    transposed: bool = False
    aliases: tuple[str, ...] = ()
    untied: str = ""
    alone: str = ""
    row: bool = False
    ungated: str = ""


def added_names(layer: str) -> dict[str, str | Stored]:
    """The names of cross-attention that is added to a family's layers, which are called `layer` on disk."""
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    norms = {"query_norm": "q_norm", "key_norm": "k_norm"}
    return {
        "layers.{}.cross_attention_norm": f"{layer}.cross_attention_layernorm",
        "layers.{}.cross_attention_output_norm": f"{layer}.cross_attention_output_layernorm",
        **{
            f"layers.{{}}.cross_attention.{ours}": f"{layer}.cross_attention.{x}" for ours, x in (parts | norms).items()
        },
    }


@dataclass(frozen=True)
class Family:
    """One row of the table of architectures: data, and the function that turns a configuration into a spec.

    `spec` takes a configuration and whether there is a head. `names` maps a module or parameter of ours to the file's;
    `encoder_names` are those that an encoder has otherwise.
    `head_prefix` stands before the stack's names in a model with a head. `prefixes` are those that real files have, and
    `decoder_prefixes` those of the decoder's half where the halves differ; `alone_prefix` is written before the names
    of a stack that is saved by itself. `left_out` are patterns of keys that real files have and no model here wants:
    poolers, other tasks' heads, buffers. `renamed` are patterns of names in older files, and what replaces them.
    `architectures` are the reference's class names for "base", "causal" and "masked" models. `causal` says that the
    family is a causal language model by nature, `adds_cross_attention` that it has no cross-attention of its own.
    `encoder` and `decoder` say as which side it can stand. `whole` is the reference's class of an encoder-decoder whose
    halves the family's stacks are, and `join` makes the configuration of such a whole from a pair's where its halves
    have one each. `variant` gives the names that depend on the configuration or the spec.
    """

    model_type: str
    config: type[PretrainedConfig]
    spec: Callable[[PretrainedConfig, bool], StackSpec]
    names: Mapping[str, str | Stored]
    head_prefix: str
    architectures: Mapping[str, str]
    prefixes: tuple[str, ...] = ("",)
    decoder_prefixes: tuple[str, ...] = ()
    alone_prefix: str = ""
    left_out: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    causal: bool = False
    adds_cross_attention: bool = False
    encoder: bool = True
    decoder: bool = True
    encoder_names: Mapping[str, str | Stored] = field(default_factory=dict)
    whole: str = ""
    join: Callable[[PretrainedConfig], PretrainedConfig] | None = None
    variant: Callable[[PretrainedConfig, StackSpec], Mapping[str, str | Stored]] | None = None

    def names_of(self, config: PretrainedConfig, spec: StackSpec) -> Mapping[str, str | Stored]:
        """The file's names for a stack: a decoder's, or an encoder's; with those of a variant, where it is one."""
        names = self.names if spec.causal else {**self.names, **self.encoder_names}
        ungated = {
            ours: replace(stored, name=stored.ungated)
            for ours, stored in names.items()
            if isinstance(stored, Stored) and stored.ungated and not spec.mlp.gated
        }
        variant = {} if self.variant is None else self.variant(config, spec)
        return {**names, **ungated, **variant}


def language_model(
    config: PretrainedConfig,
    headed: bool,
    *,
    embedding: Mapping[str, Any] | None = None,
    head_bias: bool = False,
    **parts: Any,
) -> StackSpec:
    """The stack of a causal language model whose cross-attention, if it is to have any, is added.

    `embedding` is what its embeddings have beside their sizes and padding, and `parts` are further fields of the spec.
    """
    pad = config.pad_token_id
    more = {"padding_id": None if pad == -1 else pad, **(embedding or {})}
    return StackSpec(
        family=config.model_type,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        embedding=EmbeddingSpec(config.vocab_size, config.hidden_size, **more),
        cross_attention=parts["attention"].for_source() if config.add_cross_attention else None,
        cross_attention_size=config.cross_attention_hidden_size or config.hidden_size,
        head=HeadSpec(tied=config.tie_word_embeddings, bias=head_bias) if headed else None,
        causal=config.is_decoder or config.is_causal is not False,
        initializer_range=config.initializer_range,
        **parts,
    )
