"""Tiny random models of every family, without dropout, and batches for them; no reference is needed."""

import torch

from warmstart import AutoConfig, AutoModel, AutoModelForCausalLM, EncoderDecoderConfig, EncoderDecoderModel
from warmstart.families.encoder_decoder import set_side

VOCABULARY = 37
START, PAD, END, FIRST = 1, 0, 2, 5  # the decoder's special ids, and the first that is an ordinary token
POSITIONS = 40

_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_LLAMA = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
}
_BART = {
    "d_model": 16,
    **{f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")},
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": POSITIONS,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
_T5 = {
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
    "dropout_rate": 0.0,
}
_FEW = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": START,
    "eos_token_id": END,
}
_PEGASUS = {**_BART, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": PAD}
_MODERNBERT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
    "global_attn_every_n_layers": 2,
    "local_attention": 4,
    "local_rope_theta": 100.0,
    "pad_token_id": PAD,
    "bos_token_id": START,
    "eos_token_id": END,
    "cls_token_id": START,
    "sep_token_id": END,
}
_FIELDS = {
    "bert": _BERT,
    "bert-generation": _BERT,
    "roberta": {**_BERT, "type_vocab_size": 1, "max_position_embeddings": POSITIONS + 2},
    "xlm-roberta": {**_BERT, "type_vocab_size": 1, "max_position_embeddings": POSITIONS + 2},
    "camembert": {**_BERT, "type_vocab_size": 1, "max_position_embeddings": POSITIONS + 2},
    "gpt2": {
        "n_embd": 12,  # another width than the others': a pair with it needs the projection
        "n_layer": 2,
        "n_head": 2,
        "n_positions": POSITIONS,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": START,
        "eos_token_id": END,
    },
    "bart": _BART,
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 4},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
FAMILIES = tuple(_FIELDS)
# Relatives of these: what a family is not needed for is tested on the others alone.
_RELATIVES = {
    "mbart": _BART,
    "plbart": _BART,
    "mvp": _BART,
    "blenderbot": _BART,
    "blenderbot-small": {**_BART, "scale_embedding": True},
    "pegasus": _PEGASUS,
    "bigbird_pegasus": _PEGASUS,
    "marian": {**_PEGASUS, "scale_embedding": True},
    "xglm": {
        "d_model": 16,
        "num_layers": 2,
        "attention_heads": 2,
        "ffn_dim": 24,
        "max_position_embeddings": POSITIONS,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "gpt-sw3": _FIELDS["gpt2"],
    "mpnet": {**_BERT, "max_position_embeddings": POSITIONS + 2},
    "t5": _T5,
    "mt5": {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "trocr": {
        **{name: value for name, value in _BART.items() if not name.startswith("encoder_")},
        "use_learned_position_embeddings": False,
    },
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS, "rotary_dim": 4},
    "gpt_neox": {**_FEW, "rotary_pct": 0.5},
    "phi": {**_FEW, "num_key_value_heads": 2},
    "stablelm": {**_FEW, "num_key_value_heads": 2, "partial_rotary_factor": 0.5},
    "starcoder2": {**_FEW, "num_key_value_heads": 2, "sliding_window": 4},
    "olmo2": {**_FEW, "num_key_value_heads": 2, "pad_token_id": PAD},
    "olmo3": {**_FEW, "num_key_value_heads": 2, "sliding_window": 4, "pad_token_id": PAD},
    "phi3": {**_LLAMA, "partial_rotary_factor": 0.5, "pad_token_id": PAD, "eos_token_id": END},
    "glm": {**_LLAMA, "head_dim": 8, "pad_token_id": PAD, "eos_token_id": END},
    "cohere": {**_FEW, "num_key_value_heads": 2, "use_qk_norm": True, "pad_token_id": PAD},
    "glm4": {**_LLAMA, "head_dim": 8, "pad_token_id": PAD, "eos_token_id": END},
    "cohere2": {
        **_FEW,
        "num_key_value_heads": 2,
        "sliding_window": 4,
        "sliding_window_pattern": 2,
        "pad_token_id": PAD,
    },
    "granite": {
        **_LLAMA,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.6,  # what alone keeps it from the engine
        "pad_token_id": PAD,
    },
    "gpt_bigcode": _FIELDS["gpt2"],
    "smollm3": {**_FEW, "num_key_value_heads": 2, "no_rope_layer_interval": 2, "pad_token_id": PAD},
    "eurobert": {**_FEW, "num_key_value_heads": 2, "pad_token_id": PAD},
    "opt": {**_FEW, "ffn_dim": 24, "dropout": 0.0},
    "gpt_neo": {
        **{name: value for name, value in _FEW.items() if "num_" not in name},
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["local", "global"], 1]],
        "window_size": 3,
    },
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 4, "bos_token_id": START, "eos_token_id": END},
    "falcon": {**_FEW, "num_kv_heads": 2, "new_decoder_architecture": True},
    "gemma": _LLAMA,
    "gemma2": {**_LLAMA, "sliding_window": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "t5_gemma_module": {**_LLAMA, "sliding_window": 4, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**_LLAMA, "sliding_window": 4, "sliding_window_pattern": 2},
    "electra": {**_BERT, "embedding_size": 12},
    "ernie": {**_BERT, "use_task_id": True},
    "data2vec-text": _FIELDS["roberta"],
    "rembert": {**_BERT, "input_embedding_size": 12, "output_embedding_size": 20},
    "roberta-prelayernorm": _FIELDS["roberta"],
    "megatron-bert": _BERT,
    "xlm-roberta-xl": _FIELDS["roberta"],
    "roc_bert": {
        **_BERT,
        "pad_token_id": 3,
        "pronunciation_embed_dim": 6,
        "pronunciation_vocab_size": 9,
        "shape_embed_dim": 4,
        "shape_vocab_size": 10,
    },
    "big_bird": {**_BERT, "rescale_embeddings": True, "use_bias": False},
    "distilbert": {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": POSITIONS,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "albert": {**_BERT, "embedding_size": 12, "num_hidden_layers": 3},
    "deberta-v2": {
        **_BERT,
        "embedding_size": 12,
        "type_vocab_size": 2,
        "relative_attention": True,
        "pos_att_type": "p2c|c2p",
        "position_buckets": 4,
        "max_relative_positions": 6,
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
    },
    "longformer": {**_BERT, "max_position_embeddings": POSITIONS + 2, "attention_window": 4},
    "roformer": {**_BERT, "embedding_size": 12},
    "modernbert": _MODERNBERT,
    "modernbert-decoder": _MODERNBERT,
    "nomic_bert": _BERT,
}
RELATIVES = tuple(_RELATIVES)
# Wholes whose halves have a configuration each.
_WHOLES = {"t5gemma": {"encoder": _RELATIVES["gemma2"], "decoder": {**_RELATIVES["gemma2"], "hidden_size": 12}}}
# Pairs in which relatives whose stack differs from those above stand once on either side where they can.
RELATED = [
    ("electra", "rembert"),
    ("ernie", "electra"),
    ("roc_bert", "xlm-roberta-xl"),
    ("roberta-prelayernorm", "roc_bert"),
    ("albert", "ernie"),
    ("distilbert", "big_bird"),
    ("megatron-bert", "roberta-prelayernorm"),
    ("modernbert", "roformer"),
    ("deberta-v2", "electra"),
    ("nomic_bert", "modernbert-decoder"),
]
# Language models and the like to which cross-attention is added: each once on either side of a pair.
_ADDED = ("gemma", "gemma2", "gemma3_text", "gptj", "gpt_neox", "phi", "stablelm", "starcoder2", "olmo2", "smollm3")
_ADDED += ("eurobert", "opt", "gpt_neo", "bloom", "falcon", "phi3", "glm", "cohere", "olmo3", "gpt_bigcode")
_ADDED += ("glm4", "cohere2", "granite")
RELATED += zip(_ADDED, (*_ADDED[1:], _ADDED[0]), strict=True)
# What no released checkpoint of a family is but one, or few: (family, fields).
_FACTORS = {"short_factor": [1.0, 2.0], "long_factor": [2.0, 9.0], "original_max_position_embeddings": 4}
ODD = {
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 12}),
    "stablelm-12b": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "phi-head-norms": ("phi", {"qk_layernorm": True}),
    "llama-dynamic": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}, "max_position_embeddings": 4}),
    "llama-longrope": ("llama", {"rope_scaling": {"rope_type": "longrope", **_FACTORS}}),
}
STEPS = ((0, 2), (2, 4), (4, 6))  # the tokens that each step of a cached decoding reads
PAIRS = [("bert", "bert"), ("roberta", "gpt2"), ("gpt2", "bart"), ("bart", "llama"), ("bert-generation", "roberta")]


def config(family, **fields):
    """A tiny configuration of a family."""
    return AutoConfig.for_model(
        family, **{"vocab_size": VOCABULARY, **(_FIELDS | _RELATIVES | _WHOLES)[family], **fields}
    )


def pair(encoder="bert", decoder="gpt2", *, seed=0, spread=0.3, **fields):
    """A random encoder-decoder in eval mode; weights are large enough (`spread`) that its logits differ."""
    encoder, decoder = (config(side) if isinstance(side, str) else side for side in (encoder, decoder))
    joint = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **fields)
    joint.decoder_start_token_id, joint.pad_token_id, joint.eos_token_id = START, PAD, END
    torch.manual_seed(seed)
    return spread_out(EncoderDecoderModel(config=joint), spread, seed).eval()


def shallow(encoder, decoder):
    """A pair of one layer on each side, for what takes long."""
    names = {
        "gpt2": ["n_layer"],
        "bart": ["encoder_layers", "decoder_layers"],
        "distilbert": ["n_layers"],
        "albert": [],
    }
    names = {"gpt2": ["n_layer"], "bart": ["encoder_layers", "decoder_layers"]}
    mixed = ("gemma2", "gemma3_text", "smollm3", "gpt_neo", "cohere2")  # whose layers are not alike
    names |= {family: [] for family in mixed}
    sides = [config(side, **dict.fromkeys(names.get(side, ["num_hidden_layers"]), 1)) for side in (encoder, decoder)]
    return pair(*sides)


def spread_out(model, spread=0.3, seed=0):
    """Give every matrix and bias values that matter; norms stay near 1."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else spread))
    return model


def saved(folder, family, *, decoder=False, seed=0, **fields):
    """A folder with a checkpoint of one stack: an encoder's, or a causal language model's."""
    torch.manual_seed(seed)
    kind = AutoModelForCausalLM if decoder else AutoModel
    model = spread_out(kind(config(family, is_decoder=decoder, **fields)))
    model.save_pretrained(folder)
    return str(folder)


def decoder(name, folder):
    """A decoder with cross-attention, of a family or an odd one, saved; what it reads, and its logits.

    Gives the model, ids (2, 6), states of a source (2, 3, h), the logits of one pass, and those in steps of `STEPS`.
    """
    family, fields = ODD.get(name, (name, {}))
    own = config(family, **fields)
    set_side(own, "decoder")
    torch.manual_seed(0)
    model = spread_out(AutoModelForCausalLM(own)).eval()
    model.save_pretrained(folder)
    ids, source = torch.randint(FIRST, VOCABULARY, (2, 6)), torch.randn(2, 3, model.spec.cross_attention_size)
    with torch.no_grad():
        whole = model(ids, encoder_hidden_states=source).logits
        cache, steps = None, []
        for start, end in STEPS:
            output = model(ids[:, start:end], encoder_hidden_states=source, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    return model, ids.numpy(), source.numpy(), whole, torch.cat(steps, 1)


def batch(rows=3, source=7, target=6, seed=0, encoder_pad=None):
    """Source ids with their mask and labels; row i is i tokens shorter than the first, and padded."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST, VOCABULARY, (rows, source), generator=draw)
    labels = torch.randint(FIRST, VOCABULARY, (rows, target), generator=draw)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, -row:], labels[row, -row:] = 0, -100
    if encoder_pad is not None:
        ids = ids.masked_fill(mask == 0, encoder_pad)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def ids_beside(ids, prefix="", seed=2):
    """Ids of RoCBert's shapes and pronunciations, one of either for each token."""
    draw = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}input_{name}_ids": torch.randint(0, rows, ids.shape, generator=draw)
        for name, rows in (("shape", 10), ("pronunciation", 9))
    }


def gradients(model):
    """A copy of each parameter's gradient, by name."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_equal_gradients(ours, theirs, bound=1e-5):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert (ours[name] - theirs[name]).abs().max() <= bound, name


def generated(model, inputs, **options):
    """The tokens of beam search."""
    source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return model.generate(**source, max_new_tokens=6, num_beams=2, **options)


def trained(model, inputs, steps=2):
    """The losses of some steps of training; then the model is in eval mode."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses
