"""Every encoder with every decoder equals the reference: outputs, loss, gradients, and the files that are written."""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers

from parity.compare import (
    ODD_PADDING,
    OUTPUTS,
    POSITIONS,
    UNUSED,
    assert_close,
    assert_same_gradients,
    assert_same_outputs,
    assert_same_tensors,
    on_tokens,
)
from parity.tiny import (
    ADDED,
    DECODERS,
    ENCODERS,
    EVERYTHING,
    GRID,
    HALVES,
    SINUSOIDAL,
    call,
    pair_batch,
    quiet,
    reference_pair,
    saved,
    skip_in_5,
)
from warmstart import EncoderDecoderModel

pytestmark = pytest.mark.v5

WIDE = {"width": 24}  # against 16: the encoder's states are projected
# The first families each with each; the others once on either side.
NO_PAIR = (
    "big_bird",
    "modernbert-decoder",
)  # the former's layers there hand the source to self-attention, too: see `test_big_bird_reads_as_bert`
BOTH = [
    *itertools.product(GRID, GRID),
    *((family, "bert") for family in ENCODERS if family not in GRID),
    *(("bert", family) for family in DECODERS if family not in GRID and family not in NO_PAIR),
]
PAIRS = {f"{encoder}_{decoder}": (encoder, decoder, {}, {}) for encoder, decoder in BOTH}
PROJECTED = {
    **{f"{encoder}_bert-wide": (encoder, "bert", {}, WIDE) for encoder in GRID},
    **{f"bert-wide_{decoder}": ("bert", decoder, WIDE, {}) for decoder in GRID},
}
# Settings that change what is computed or stored: (encoder, decoder, what is odd about the one, about the other).
ODD = {
    "vocabularies": ("bert", "gpt2", {"vocab_size": 70}, {"vocab_size": 61}),
    "lengths": ("roberta", "bert", {"max_position_embeddings": 30}, {"max_position_embeddings": 20}),
    "layers": ("bert", "bert", {"num_hidden_layers": 3}, {"num_hidden_layers": 1}),
    "heads": ("bert", "roberta", {"num_attention_heads": 1}, {"num_attention_heads": 4}),
    "epsilon": ("bert", "bert", {"layer_norm_eps": 1e-2}, {"layer_norm_eps": 1e-2}),
    "bert-activations": ("bert", "bert", {"hidden_act": "relu"}, {"hidden_act": "gelu_new"}),
    "roberta-activations": ("roberta", "roberta", {"hidden_act": "silu"}, {"hidden_act": "relu"}),
    "bert-untied": ("bert", "bert", {}, {"tie_word_embeddings": False}),
    "roberta-untied": ("bert", "roberta", {}, {"tie_word_embeddings": False}),
    "bert-generation-untied": ("bert", "bert-generation", {}, {"tie_word_embeddings": False}),
    "bert-types": ("bert", "bert", {"type_vocab_size": 1}, {"type_vocab_size": 3}),
    "roberta-padding": ("roberta", "roberta", {"pad_token_id": 0}, {"pad_token_id": 4}),
    "gpt2-untied": ("bert", "gpt2", {}, {"tie_word_embeddings": False}),
    "gpt2-by-layer": (
        "gpt2",
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_by_inverse_layer_idx": True},
    ),
    "gpt2-unscaled": ("gpt2", "gpt2", {"scale_attn_weights": False}, {"scale_attn_weights": False}),
    "gpt2-inner": ("gpt2", "gpt2", {"n_inner": 20}, {"n_inner": 40, "activation_function": "relu"}),
    "gpt2-epsilon": ("gpt2", "gpt2", {"layer_norm_epsilon": 1e-2}, {"layer_norm_epsilon": 1e-2}),
    "gpt2-upcast": ("bert", "gpt2", {}, {"reorder_and_upcast_attn": True}),
    "bart-scaled": ("bart", "bart", {"scale_embedding": True}, {"scale_embedding": True}),
    "bart-layers": ("bart", "bart", {"encoder_layers": 3}, {"decoder_layers": 1, "decoder_attention_heads": 1}),
    "bart-activations": ("bart", "bart", {"activation_function": "relu"}, {"activation_function": "gelu_new"}),
    "bart-untied": ("bert", "bart", {}, {"tie_word_embeddings": False}),
    "bigbird_pegasus-biases": ("bigbird_pegasus", "bigbird_pegasus", {"use_bias": True}, {"use_bias": True}),
    "trocr-computed": ("bert", "trocr", {}, {"use_learned_position_embeddings": False}),
    "trocr-scaled": ("bert", "trocr", {}, {"layernorm_embedding": False, "scale_embedding": True}),
    "xglm-unscaled": ("xglm", "xglm", {"scale_embedding": False}, {"scale_embedding": False}),
    "xglm-padding": ("bert", "xglm", {}, {"pad_token_id": 4}),
    "marian-untied": ("marian", "marian", {}, {"tie_word_embeddings": False}),
    "llama-biases": ("bert", "llama", {}, {"attention_bias": True, "mlp_bias": True}),
    "llama-one-key": ("llama", "llama", {"num_key_value_heads": 1}, {"num_key_value_heads": 1}),
    "llama-tied": ("bert", "llama", {}, {"tie_word_embeddings": True}),
    "mistral-windows": ("mistral", "mistral", {"sliding_window": 3}, {"sliding_window": 2}),
    "gemma2-untied": ("bert", "gemma2", {}, {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma3-window": ("gemma3_text", "gemma3_text", {"sliding_window": 3}, {"sliding_window": 2}),
    "qwen3-biases": ("qwen3", "qwen3", {"attention_bias": True}, {"attention_bias": True}),
    "electra-one-width": ("electra", "electra", {"embedding_size": 16}, {"embedding_size": 16}),
    "electra-untied": ("electra", "electra", {"width": 20}, {"tie_word_embeddings": False, "hidden_act": "relu"}),
    "ernie-taskless": ("ernie", "ernie", {"use_task_id": False}, {"use_task_id": False}),
    "rembert-widths": ("rembert", "rembert", {"input_embedding_size": 16}, {"output_embedding_size": 8}),
    "before-untied": ("xlm-roberta-xl", "roberta-prelayernorm", {}, {"tie_word_embeddings": False}),
    "before-padding": ("roberta-prelayernorm", "xlm-roberta-xl", {"pad_token_id": 0}, {"pad_token_id": 4}),
    "megatron-epsilon": ("megatron-bert", "megatron-bert", {"layer_norm_eps": 1e-2}, {"tie_word_embeddings": False}),
    "big_bird-biases": ("big_bird", "bert", {"use_bias": False}, {}),
    "big_bird-sparse": ("big_bird", "bert", {"attention_type": "block_sparse", "rescale_embeddings": True}, {}),
    "albert-one-group": ("albert", "bert", {"num_hidden_groups": 1, "embedding_size": 16, "num_hidden_layers": 2}, {}),
    "albert-uneven": ("albert", "bert", {"num_hidden_groups": 3}, {}),
    "distilbert-heads": ("distilbert", "bert", {"n_heads": 4, "activation": "relu"}, {}),
}
CASES = {**PAIRS, **PROJECTED, **ODD}


@dataclass
class Pair:
    """The reference's model with its outputs and gradients for a batch, the folder of its files, and ours from that."""

    name: str
    theirs: object
    ours: EncoderDecoderModel
    folder: Path
    batch: dict
    wanted: object


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    skip_in_5(request.param)
    theirs = reference_pair(*CASES[request.param])
    folder = saved(theirs, tmp_path_factory.mktemp("pair"))
    batch = pair_batch(theirs)
    wanted = call(theirs, **batch, **EVERYTHING)
    wanted.loss.backward()
    return Pair(request.param, theirs, EncoderDecoderModel.from_pretrained(folder), folder, batch, wanted)


@torch.no_grad()
def test_outputs(pair):
    found = call(pair.ours, **pair.batch, **EVERYTHING)
    config = pair.theirs.config
    if not {config.encoder.model_type, config.decoder.model_type} & set(ODD_PADDING):
        return assert_same_outputs(found, pair.wanted)
    masks = {"encoder": pair.batch["attention_mask"], "decoder": pair.batch["labels"] != -100}
    assert_close(found.loss, pair.wanted.loss, "loss")
    for name in OUTPUTS[1:]:
        mask = masks["encoder" if name.startswith("encoder") else "decoder"]
        assert_close(*(on_tokens(output[name], mask) for output in (found, pair.wanted)), name)


def test_loss_and_gradients(pair):
    """In training, and by the fused attention that is used where nobody asks for its weights."""
    loss = call(pair.ours.train(), **pair.batch).loss
    loss.backward()
    assert_close(loss, pair.wanted.loss, "loss")
    assert_same_gradients(pair.ours, pair.theirs)


@torch.no_grad()
def test_files(pair, tmp_path):
    """What is saved here has the reference's names and bits, and opens in the reference."""
    config = pair.theirs.config
    sides = config.encoder.model_type, config.decoder.model_type
    computed = f"{UNUSED}|{POSITIONS}" if set(sides) & set(SINUSOIDAL) else UNUSED
    assert_same_tensors(saved(pair.ours, tmp_path), pair.folder, computed)
    if sides[0] in HALVES or sides[1] in ADDED:
        return  # the reference opens neither, not even what it wrote itself
    if pair.name in PAIRS and "bert" not in sides:
        return  # the files are equal, and every family was opened once on either side
    with quiet():
        opened, info = transformers.EncoderDecoderModel.from_pretrained(
            tmp_path, output_loading_info=True, attn_implementation="eager"
        )
    assert not info["unexpected_keys"] and all(re.search(computed, x) for x in info["missing_keys"])
    found = call(opened, **pair.batch)
    assert torch.equal(found.logits, pair.wanted.logits) and torch.equal(found.loss, pair.wanted.loss)


@torch.no_grad()
def test_big_bird_reads_as_bert(tmp_path):
    """A BigBird's decoder is BERT's with the same weights; the reference's cannot be compared with."""
    theirs = reference_pair("bert", "bert", {}, {"hidden_act": "gelu_new"})
    ours = EncoderDecoderModel.from_pretrained(saved(theirs, tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    config["decoder"] |= {
        "model_type": "big_bird",
        "architectures": ["BigBirdForCausalLM"],
        "attention_type": "block_sparse",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    batch = pair_batch(theirs)
    assert torch.equal(EncoderDecoderModel.from_pretrained(tmp_path)(**batch).logits, ours(**batch).logits)
