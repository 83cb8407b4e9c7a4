"""Folders laid out as they were released: names, buffers and fields of older releases, beside what is written today."""

import json

import pytest
import torch
import transformers

from parity.compare import assert_close
from parity.tiny import NEWEST, call, configuration, quiet, randomise, saved, source_batch
from warmstart import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, EncoderDecoderModel

MASK = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril()
KINDS = {"ForCausalLM": AutoModelForCausalLM, "LMHeadModel": AutoModelForCausalLM, "ForMaskedLM": AutoModelForMaskedLM}
KINDS |= {"ForPreTraining": AutoModelForMaskedLM, "ForConditionalGeneration": EncoderDecoderModel}


def bare(prefix):
    """Without what stands before the stack's names, and without the tied head."""

    def change(held):
        return {name.removeprefix(prefix): x for name, x in held.items() if name not in ("lm_head.weight",)}

    return change


def beside(pattern, *layers, **tensors):
    """With tensors that nothing reads."""

    def change(held):
        more = {f"{pattern.format(layer)}.{name}": x.clone() for layer in layers or [0] for name, x in tensors.items()}
        return held | {name.replace("__", "."): x for name, x in more.items()}

    return change


def positions(prefix):
    return beside(f"{prefix}embeddings", position_ids=torch.arange(40)[None])


def renamed(fields, **names):
    """A configuration under older names of its fields."""
    return {names.get(name, name): value for name, value in fields.items()}


BUFFERS = {"bias": MASK, "masked_bias": torch.tensor(-1e9)}
OLD_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias"
# A released folder it is like: (family, the reference's class, options, what was done to weights and fields)
LAYOUTS = {
    "facebook/opt-125m": ("opt", "OPTForCausalLM", {}, bare("model."), {"prefix": "</s>"}),
    "EleutherAI/gpt-neo-125m": (
        "gpt_neo",
        "GPTNeoForCausalLM",
        {},
        beside("transformer.h.{}.attn.attention", 0, 1, **BUFFERS),
        {"attention_layers": ["global", "local"], "gradient_checkpointing": False},
    ),
    "EleutherAI/pythia-70m": (
        "gpt_neox",
        "GPTNeoXForCausalLM",
        {"tie_word_embeddings": False},
        beside("gpt_neox.layers.{}.attention", 0, 1, **BUFFERS, rotary_emb__inv_freq=torch.ones(1)),
        {"use_parallel_residual": True},
    ),
    "EleutherAI/gpt-j-6b": (
        "gptj",
        "GPTJForCausalLM",
        {"tie_word_embeddings": False},
        beside("transformer.h.{}.attn", 0, 1, **BUFFERS),
        {"rotary": True, "scale_attn_weights": True, "tokenizer_class": "GPT2Tokenizer"},
    ),
    "bigscience/bloom-560m": (
        "bloom",
        "BloomForCausalLM",
        {},
        bare("transformer."),
        {"hidden_size": "n_embed", "n_head": "num_attention_heads", "offset_alibi": 100, "n_inner": None},
    ),
    "tiiuae/falcon-7b": ("falcon", "FalconForCausalLM", {}, dict, {"hidden_size": "n_embed", "multi_query": True}),
    "google/electra-base-generator": ("electra", "ElectraForMaskedLM", {}, positions("electra."), {}),
    "allenai/longformer-base-4096": (
        "longformer",
        "LongformerForMaskedLM",
        {},
        positions("longformer."),
        {"attention_mode": "longformer", "ignore_attention_mask": False},
    ),
    "camembert-base": ("camembert", "CamembertForMaskedLM", {}, positions("roberta."), {"output_past": True}),
    "albert-base-v2": (
        "albert",
        "AlbertForMaskedLM",
        {},
        positions("albert."),
        {"net_structure_type": 0, "num_memory_blocks": 0, "gap_size": 0, "down_scale_factor": 1},
    ),
    "sentence-transformers/all-mpnet-base-v2": ("mpnet", "MPNetModel", {}, positions(""), {}),
    "facebook/xglm-564M": (
        "xglm",
        "XGLMForCausalLM",
        {},
        beside("model.embed_positions", weights=torch.ones(42, 20)),
        {},
    ),
    "t5-small": (
        "t5",
        "T5ForConditionalGeneration",
        {"decoder_start_token_id": 0},
        beside(OLD_BIAS, weight=torch.ones(8, 2)),
        {"n_positions": 512, "output_past": True},
    ),
    "facebook/bart-base": (
        "bart",
        "BartForConditionalGeneration",
        {},
        bare("model."),
        {"static_position_embeddings": False},
    ),
}


def written(layout, folder):
    """The folder, and the model that was put into it."""
    family, name, options, change, fields = LAYOUTS[layout]
    torch.manual_seed(0)
    with quiet():
        model = randomise(getattr(transformers, name)._from_config(configuration(family, **options)))
    saved(model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(change(model.state_dict()), folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    others = {old: new for old, new in fields.items() if old in config and isinstance(new, str)}
    config = renamed(config, **others) | {name: value for name, value in fields.items() if name not in others}
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.skipif(NEWEST, reason="what version 5 reads of older folders is its own")
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_opens_as_the_reference_opens_it(layout, tmp_path):
    theirs = written(layout, tmp_path)
    kind = next((kind for name, kind in KINDS.items() if type(theirs).__name__.endswith(name)), AutoModel)
    ours = kind.from_pretrained(tmp_path)
    assert not ours.load_report.new
    ids, mask = source_batch(theirs.config.pad_token_id)
    if kind is EncoderDecoderModel:
        given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :4]}
        assert_close(call(ours, **given).logits, call(theirs, **given).logits, "logits")
        assert not EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path, tmp_path).load_report.new
        return
    field = "last_hidden_state" if kind is AutoModel else "logits"
    found, wanted = (call(model, input_ids=ids, attention_mask=mask)[field] for model in (ours, theirs))
    assert_close(found[mask > 0], wanted[mask > 0], field)
    again = saved(ours, tmp_path / "again")
    with quiet():
        back = type(theirs).from_pretrained(again, attn_implementation="eager")
    assert torch.equal(back.state_dict()[name := next(iter(back.state_dict()))], theirs.state_dict()[name])
    assert_close(
        call(back.eval(), input_ids=ids, attention_mask=mask)[field],
        call(theirs, input_ids=ids, attention_mask=mask)[field],
        "back",
    )
