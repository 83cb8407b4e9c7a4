"""EuroBERT (Boizard et al. 2025): an encoder of Llama's layers; as a decoder it reads one way."""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.llama import LlamaConfig, head_size, llama_like, llama_spec
from warmstart.spec import StackSpec


class EuroBertConfig(LlamaConfig):
    """A EuroBERT's configuration."""

    model_type = "eurobert"
    defaults = {
        "vocab_size": 128256,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "use_cache": True,
        "pad_token_id": 128001,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "head_dim": None,
        "mask_token_id": 128002,
        "classifier_pooling": "late",
    }

    head_dim: int | None

    def complete(self) -> None:
        super().complete()
        if self.head_dim is None:
            self.head_dim = head_size(self)


def eurobert_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """The stack of a EuroBERT."""
    return replace(llama_spec(config, headed), causal=config.is_decoder)


FAMILIES = {
    "eurobert": llama_like(
        EuroBertConfig,
        "EuroBert",
        spec=eurobert_spec,
        architectures={"base": "EuroBertModel", "masked": "EuroBertForMaskedLM"},
        causal=False,
    )
}
