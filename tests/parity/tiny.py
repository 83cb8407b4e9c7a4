"""Tiny random models of every family: the reference's, and ours with the same weights.

A new family is a line in `TINY`: the arguments of its configuration class, which the reference's and ours share.
Shapes: b batch, s source length, t target length.
"""

import contextlib
import copy
import functools
import json
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers

import warmstart
from parity.graft import GraftedEncoderDecoder
from warmstart.families import family

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCABULARY = 60
START = 5
FIRST = 6  # the lowest id of a token that is neither padding, start nor end in any family
DEVIATION = 0.2  # of the noise on every matrix: enough for attention to be uneven and for gradients not to vanish

_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 40,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 40,
    "dropout": 0.0,
}
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
_PEGASUS = {**_BART, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
_CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 5}
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.6,
    "logits_scaling": 0.8,
}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "rope_theta": 100.0, "rope_local_base_freq": 10.0}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
    "dropout_rate": 0.0,
}
_FEW = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MODERNBERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "global_attn_every_n_layers": 2,
    "local_attention": 4,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
_DEBERTA = {
    **_BERT,
    "pad_token_id": 3,
    "position_biased_input": False,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 4,
    "max_relative_positions": 7,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
TINY = {
    "bert": {**_BERT, "pad_token_id": 3},
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "bert-generation": _BERT,
    "gpt2": _GPT2,
    "bart": _BART,
    "mbart": {**_BART, "scale_embedding": True},
    "plbart": {**_BART, "attention_dropout": 0.0},
    "mvp": _BART,
    "blenderbot": _BART,
    "blenderbot-small": {**_BART, "scale_embedding": True},
    "pegasus": {**_PEGASUS, "d_model": 20},
    "bigbird_pegasus": {**_PEGASUS, "attention_type": "original_full"},
    "marian": {**_PEGASUS, "activation_function": "swish", "scale_embedding": True},
    "mpnet": _BERT,
    "t5": _T5,
    "mt5": {**_T5, "feed_forward_proj": "gated-gelu"},
    "xglm": {
        "vocab_size": VOCABULARY,
        "d_model": 20,
        "num_layers": 2,
        "attention_heads": 2,
        "ffn_dim": 24,
        "max_position_embeddings": 40,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "trocr": {name: value for name, value in _BART.items() if not name.startswith("encoder_")},
    "llama": {**_LLAMA, "tie_word_embeddings": False},
    "mistral": {**_LLAMA, "sliding_window": 4, "tie_word_embeddings": False},
    "qwen2": {**_LLAMA, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True},
    "qwen3": {**_LLAMA, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8, "tie_word_embeddings": True},
    "gemma": {**_LLAMA, "num_key_value_heads": 1, "head_dim": 6},
    "gemma2": {**_LLAMA, **_CAPPED, "head_dim": 8, "sliding_window": 4},
    "gptj": {**_GPT2, "n_head": 2, "rotary_dim": 6},
    "gpt_neox": {**_FEW, "rotary_pct": 0.5},
    "phi": {**_FEW, "num_key_value_heads": 2, "pad_token_id": 3},
    "stablelm": {**_FEW, "num_key_value_heads": 2, "partial_rotary_factor": 0.5},
    "starcoder2": {**_FEW, "num_key_value_heads": 2, "sliding_window": 4},
    "olmo2": {**_FEW, "num_key_value_heads": 2, "eos_token_id": 2},
    "olmo3": {**_FEW, "num_key_value_heads": 2, "sliding_window": 4, "layer_types": _MIXED["layer_types"]},
    "phi3": {
        **_LLAMA,
        "original_max_position_embeddings": 8,
        "partial_rotary_factor": 0.5,
        "sliding_window": 5,
        "pad_token_id": 3,
    },
    "glm": {**_LLAMA, "head_dim": 8, "pad_token_id": 3, "eos_token_id": [2, 4]},
    "cohere": {**_FEW, "num_key_value_heads": 2, "logit_scale": 0.7, "pad_token_id": 3},
    "glm4": {**_LLAMA, "head_dim": 8, "pad_token_id": 3, "eos_token_id": [2, 4]},
    "cohere2": {
        **_FEW,
        "num_key_value_heads": 2,
        "sliding_window": 4,
        "layer_types": _MIXED["layer_types"],
        "logit_scale": 0.7,
        "pad_token_id": 3,
    },
    "granite": {**_LLAMA, **_MULTIPLIERS, "pad_token_id": 3},
    "gpt_bigcode": _GPT2,
    "smollm3": {**_FEW, "num_key_value_heads": 2, "no_rope_layers": [1, 0], "pad_token_id": 3},
    "opt": {**_FEW, "ffn_dim": 24, "dropout": 0.0},
    "gpt_neo": {
        **{name: value for name, value in _FEW.items() if "num_" not in name},
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 3,
    },
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    "falcon": {**_FEW, "bos_token_id": 1, "eos_token_id": 2},
    "gemma3_text": {**_LLAMA, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 12, **_MIXED},
    "electra": {**_BERT, "embedding_size": 12},
    "ernie": {**_BERT, "use_task_id": True},
    "data2vec-text": _BERT,
    "rembert": {**_BERT, "input_embedding_size": 12, "output_embedding_size": 20, "bos_token_id": 1, "eos_token_id": 2},
    "roberta-prelayernorm": _BERT,
    "megatron-bert": {**_BERT, "pad_token_id": 3},
    "xlm-roberta-xl": _BERT,
    "roc_bert": {
        **_BERT,
        "pad_token_id": 3,
        "pronunciation_embed_dim": 6,
        "pronunciation_vocab_size": 9,
        "shape_embed_dim": 4,
        "shape_vocab_size": 10,
    },
    "big_bird": {**_BERT, "attention_type": "original_full", "sep_token_id": 4},
    "distilbert": {
        "vocab_size": VOCABULARY,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": 40,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "albert": {**_BERT, "embedding_size": 12, "num_hidden_layers": 4, "num_hidden_groups": 2},
    "roformer": {**_BERT, "embedding_size": 12},
    "deberta-v2": {**_DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"},
    "longformer": {**_BERT, "attention_window": [4, 8]},
    "modernbert": _MODERNBERT,
    "modernbert-decoder": {**_MODERNBERT, "local_attention": 8},
}
if hasattr(transformers, "NomicBertConfig"):
    TINY["nomic_bert"] = _BERT
if hasattr(transformers, "EuroBertConfig"):
    TINY["eurobert"] = {**_LLAMA, "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
GEMMA2 = {**_LLAMA, **_CAPPED, "head_dim": 8, "sliding_window": 4}
# Wholes whose halves have a configuration each. Version 5 counts one more into an encoder's window: there it is wide.
WHOLES = {
    "t5gemma": {
        "vocab_size": VOCABULARY,
        "encoder": {**GEMMA2, "sliding_window": 16 if transformers.__version__ >= "5" else 4},
        "decoder": {**GEMMA2, "hidden_size": 20, "num_hidden_layers": 3},
    }
}
# No cross-attention of their own; of EuroBERT the reference has no decoder at all.
ADDED = tuple(name for name in TINY if family(name).adds_cross_attention and name != "eurobert")
CROSS = tuple(name for name in TINY if name not in ADDED)
GRID = ("bert", "roberta", "xlm-roberta", "camembert", "bert-generation", "gpt2", "bart")
GRID += ("llama", "mistral", "qwen2", "qwen3")  # each with each
SINUSOIDAL = ("pegasus", "marian", "roformer")  # positions that the reference computes, and writes all the same
FORGETFUL = ("modernbert-decoder",)  # version 4 does not write its `local_attention`, and opens nothing but the default
COUNTS_PADDING = ("roberta", "xlm-roberta", "camembert", "data2vec-text", "roberta-prelayernorm", "xlm-roberta-xl")
# Halves of a whole: the reference's stack is its encoder.
HALVES = ("bart", "mbart", "plbart", "mvp", "blenderbot", "blenderbot-small", "pegasus", "bigbird_pegasus", "marian")
HALVES += ("t5", "mt5")
# The reference has no decoder of T5 that stands alone; `test_wholes.py` has it as half of a whole.
ONLY_DECODERS = ("trocr",)
ONLY_ENCODERS = ("distilbert", "albert", "mpnet", "t5", "mt5", "modernbert", "nomic_bert", "eurobert", "deberta-v2")
ONLY_ENCODERS += ("longformer",)
ENCODERS = tuple(name for name in TINY if name not in (*ONLY_DECODERS, "longformer"))  # that is in a file of its own
DECODERS = tuple(name for name in TINY if name not in ONLY_ENCODERS)
MASKED = (
    "bert",
    *COUNTS_PADDING,
    "distilbert",
    "albert",
    "mpnet",
    "modernbert",
    "deberta-v2",
    *(name for name in ("nomic_bert", "eurobert") if name in TINY),
    "roformer",
    "electra",
    "ernie",
    "rembert",
    "megatron-bert",
    "roc_bert",
    "big_bird",
)
NEWEST = int(transformers.__version__.split(".")[0]) >= 5
WIDTH = {
    **dict.fromkeys(("gpt2", "gptj", "gpt_bigcode"), "n_embd"),
    "distilbert": "dim",
    **dict.fromkeys((*HALVES, "xglm", "trocr"), "d_model"),
}  # where a family calls its hidden size something else


# What version 5 of the reference does not do as its own files say, by the name of the test's case.
NOT_IN_5 = {
    **dict.fromkeys(
        ("bert_bigbird_pegasus", "bigbird_pegasus", "bigbird_pegasus-biases"),
        "its head is a copy of its own, and its configuration says that it is tied",
    ),
    **dict.fromkeys(
        ("bert_megatron-bert", "megatron-epsilon"), "its cross-attention wants a source as long as the target"
    ),
    "bert_gpt_neox": "a pair's file names the decoder's head otherwise than the decoder's own",
}
# As above, of one test of a case: (the test, the case) -> why.
TESTS_NOT_IN_5 = {
    ("test_files", "trocr-computed"): "it cannot open its own file without the positions that it computes",
    ("test_outputs", "big_bird-sparse"): "its encoder gives no attentions",
    ("test_generation", "mvp"): "its configuration drops forced_eos_token_id",
}


def skip_in_5(name):
    """Leave a case out with version 5 where only version 4 can be the oracle."""
    if NEWEST and name in NOT_IN_5:
        pytest.skip(f"version 5: {NOT_IN_5[name]}")


def skip_test_in_5(name):
    """As `skip_in_5`, for one test, by its whole name: `test_files[trocr-computed]`."""
    test, _, case = name.rstrip("]").partition("[")
    for (left_out, of), why in TESTS_NOT_IN_5.items():
        if NEWEST and left_out == test and f"{case}-".startswith(f"{of}-"):
            pytest.skip(f"version 5: {why}")


def configuration(family, **options):
    """The reference's configuration of a tiny model.

    `width` is the hidden size, whatever the family calls it; `rotary` the rotary positions, whatever the release does.
    """
    if (width := options.pop("width", None)) is not None:
        options[WIDTH.get(family, "hidden_size")] = width
    if (rotary := options.pop("rotary", None)) is not None:
        options |= rotary_fields(rotary, NEWEST)
    return transformers.AutoConfig.for_model(family, **{**(TINY | WHOLES)[family], **options})


def rotary_fields(rotary, newest):
    """The fields of a configuration that say these rotary positions, as version 5 and as version 4 spell them."""
    if newest:
        return {"rope_parameters": rotary}
    scaling = {name: value for name, value in rotary.items() if name != "rope_theta"}
    return {
        "rope_theta": rotary["rope_theta"],
        "rope_scaling": None if scaling == {"rope_type": "default"} else scaling,
    }


def randomise(model, seed=0):
    """Add noise to every parameter, norms and biases too, so that none is a special value; but not to computed ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += DEVIATION * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def reference_encoder(family, **options):
    """The reference's stack alone, with attention that can be looked at; always the same, and a copy each time."""
    return copy.deepcopy(_built(family, "encoder", json.dumps(options)))


def reference_causal(family, cross_attention=False, **options):
    """The reference's decoder with its head; always the same, and a copy each time."""
    return copy.deepcopy(_built(family, "cross" if cross_attention else "causal", json.dumps(options)))


@functools.cache
def _built(family, kind, options):
    torch.manual_seed(0)
    config = configuration(family, **json.loads(options))
    if kind == "encoder":
        model = transformers.AutoModel.from_config(config, attn_implementation="eager")
        return model.encoder if family in HALVES else model
    config.is_decoder, config.add_cross_attention = True, kind == "cross"
    with contextlib.ExitStack() as stack:
        if family == "stablelm" and config.qk_layernorm and not NEWEST:
            # Version 4 fails to give first values to norms without a bias; those that torch gives will do.
            parent = transformers.StableLmForCausalLM.__mro__[1]
            stack.enter_context(mock.patch.object(parent, "_init_weights", return_value=None))
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def reference_pair(encoder, decoder, encoder_options=None, decoder_options=None):
    """The reference's encoder-decoder; where it has none, its decoder with cross-attention grafted on."""
    sides = {
        "encoder": reference_encoder(encoder, **(encoder_options or {})),
        "decoder": reference_causal(decoder, decoder not in ADDED, **(decoder_options or {})),
    }
    torch.manual_seed(0)  # a projection is new
    model = GraftedEncoderDecoder(**sides) if decoder in ADDED else transformers.EncoderDecoderModel(**sides)
    pad = model.config.decoder.pad_token_id
    model.config.decoder_start_token_id, model.config.pad_token_id = START, 2 if pad is None else pad
    return randomise(model)


def saved(model, folder, **options):
    """The folder that a model was saved in."""
    with quiet():
        model.save_pretrained(folder, **options)
    return Path(folder)


def as_ours(model, cls=warmstart.EncoderDecoderModel, **options):
    """Our model with the weights of a model of the reference, by way of its files."""
    with tempfile.TemporaryDirectory() as folder:
        return cls.from_pretrained(saved(model, folder), **options)


@contextlib.contextmanager
def quiet():
    """Let the reference warn: it does about every loss, and about names that it is about to change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def source_batch(pad=None, lengths=(9, 6, 4), side="right", seed=0):
    """Source ids (b, s) of different lengths and their mask; without a padding id, noise stands under the mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    places = torch.arange(max(lengths))
    count = torch.tensor(lengths)[:, None]
    mask = (places < count if side == "right" else places >= max(lengths) - count).long()
    return ids if pad is None else ids.masked_fill(mask == 0, pad), mask


def target_batch(lengths=(5, 7, 3), seed=1):
    """Labels (b, t) of different lengths, -100 after them."""
    ids, mask = source_batch(None, lengths, seed=seed)
    return ids.masked_fill(mask == 0, -100)


def pair_batch(model):
    """What a pair is compared on: sources and labels of different lengths."""
    ids, mask = source_batch(model.config.encoder.pad_token_id)
    return {"input_ids": ids, "attention_mask": mask, "labels": target_batch()}


EVERYTHING = {"output_hidden_states": True, "output_attentions": True}


def call(model, **arguments):
    """The outputs of a model, the reference's or ours."""
    with quiet():
        output = model(**arguments)
    return output if NEWEST else with_last_normed(model, output)


def with_last_normed(model, output):
    """As version 5 has it: the last of the hidden states is what the stack gives. Version 4 leaves a norm out."""
    sides = {"": model, "encoder_": getattr(model, "encoder", None), "decoder_": getattr(model, "decoder", None)}
    for prefix, side in sides.items():
        states = output.get(f"{prefix}hidden_states") if hasattr(output, "get") else None
        base = getattr(side, "base_model", None)
        if states is not None and type(base).__name__ in ("RobertaPreLayerNormModel", "ModernBertModel"):
            norm = base.final_norm if hasattr(base, "final_norm") else base.LayerNorm
            output[f"{prefix}hidden_states"] = (*states[:-1], norm(states[-1]))
    return output


with quiet():  # their modules warn when they are imported
    for _name in ("ModernBertModel", "DebertaV2Model", "GPTBigCodeModel"):
        getattr(transformers, _name)
