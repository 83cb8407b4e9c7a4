"""BertGeneration (Rothe et al. 2020): BERT's stack without token types, with a plain head."""

from __future__ import annotations

from dataclasses import replace

from warmstart.config import PretrainedConfig
from warmstart.families.bert import BERT_DEFAULTS, BERT_LEFT_OUT, BERT_STACK, OLD_NORMS, bert_spec, with_ids
from warmstart.families.entry import Family, Stored
from warmstart.spec import HeadSpec, StackSpec


class BertGenerationConfig(PretrainedConfig):
    """A BertGeneration's configuration.

    >>> BertGenerationConfig().num_hidden_layers
    24
    """

    model_type = "bert-generation"
    defaults = {
        **{
            name: value
            for name, value in with_ids(BERT_DEFAULTS, pad=0, start=2, end=1).items()
            if name not in ("type_vocab_size", "classifier_dropout")
        },
        "vocab_size": 50358,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }


def bert_generation_spec(config: PretrainedConfig, headed: bool) -> StackSpec:
    """BERT's stack without token types; the head is the vocabulary alone."""
    spec = bert_spec(config, headed)
    head = HeadSpec(bias=True, tied=config.tie_word_embeddings) if headed else None
    return replace(spec, embedding=replace(spec.embedding, token_types=0), head=head)


BERT_GENERATION_NAMES: dict[str, str | Stored] = {
    **BERT_STACK,
    "head.output.weight": "/lm_head.decoder.weight",
    "head.output.bias": Stored("/lm_head.bias", untied="/lm_head.decoder.bias"),
}


FAMILIES = {
    "bert-generation": Family(
        model_type="bert-generation",
        config=BertGenerationConfig,
        spec=bert_generation_spec,
        names=BERT_GENERATION_NAMES,
        head_prefix="bert.",
        architectures={"base": "BertGenerationEncoder", "causal": "BertGenerationDecoder"},
        prefixes=("", "bert."),
        left_out=BERT_LEFT_OUT,
        renamed=OLD_NORMS,
    )
}
