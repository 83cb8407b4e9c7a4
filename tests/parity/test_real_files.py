"""Checkpoints as they are found: other prefixes, older names, buffers, heads that nobody asked for, half precision."""

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from parity.compare import assert_close, assert_same_outputs
from parity.tiny import (
    EVERYTHING,
    NEWEST,
    call,
    configuration,
    pair_batch,
    quiet,
    randomise,
    reference_causal,
    reference_encoder,
    reference_pair,
    saved,
    source_batch,
)
from warmstart import AutoModel, AutoModelForCausalLM, EncoderDecoderModel

pytestmark = pytest.mark.v5


# What real files do to the names and tensors that the reference writes today.


def gamma_beta(held):
    """The names of TensorFlow's layer norms, in files of the first years."""
    renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {re.sub(r"LayerNorm\.\w+$", lambda old: renamed[old[0]], name): tensor for name, tensor in held.items()}


def half(held):
    return {name: tensor.half() for name, tensor in held.items()}


def with_buffers(family):
    """The buffers that some releases saved: positions, types, masks, frequencies."""
    ones = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril()
    buffers = {
        "bert": {"bert.embeddings.position_ids": torch.arange(40)[None]},
        "roberta": {
            "roberta.embeddings.position_ids": torch.arange(40)[None],
            "roberta.embeddings.token_type_ids": torch.zeros(1, 40, dtype=torch.long),
        },
        "gpt2": {
            f"transformer.h.{layer}.{part}.{name}": value
            for layer in (0, 1)
            for part in ("attn", "crossattention")
            for name, value in (("bias", ones), ("masked_bias", torch.tensor(-1e4)))
        },
        "gpt2-bytes": {f"h.{layer}.attn.bias": ones.to(torch.uint8) for layer in (0, 1)},
        "llama": {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(2) for layer in (0, 1)},
        "bart": {"model.encoder.version": torch.tensor([3.0]), "model.decoder.version": torch.tensor([3.0])},
    }[family]
    return lambda held: {**held, **{name: buffer.clone() for name, buffer in buffers.items()}}


def with_copies(**copies):
    """Tied tensors once more under their other names."""
    return lambda held: {**held, **{new: held[old].clone() for new, old in copies.items()}}


def same(held):
    return held


BERT_COPIES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
ROBERTA_COPIES = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
BART_COPIES = {
    "model.encoder.embed_tokens.weight": "model.shared.weight",
    "model.decoder.embed_tokens.weight": "model.shared.weight",
    "lm_head.weight": "model.shared.weight",
}
# The reference's class, whether it has a language model head, what is done to its file.
FILES = {
    "bert-pretraining": ("bert", "BertForPreTraining", True, same),
    "bert-old-norms": ("bert", "BertForPreTraining", True, gamma_beta),
    "bert-buffers": ("bert", "BertForPreTraining", True, with_buffers("bert")),
    "bert-tied-copies": ("bert", "BertForPreTraining", True, with_copies(**BERT_COPIES)),
    "bert-half": ("bert", "BertForPreTraining", True, half),
    "bert-masked": ("bert", "BertForMaskedLM", True, same),
    "bert-bare": ("bert", "BertModel", False, same),
    "bert-bare-old-norms": ("bert", "BertModel", False, gamma_beta),
    "bert-classes": ("bert", "BertForSequenceClassification", False, same),
    "bert-tags": ("bert", "BertForTokenClassification", False, same),
    "bert-answers": ("bert", "BertForQuestionAnswering", False, same),
    "bert-choices": ("bert", "BertForMultipleChoice", False, same),
    "bert-next-sentence": ("bert", "BertForNextSentencePrediction", False, same),
    "roberta-masked": ("roberta", "RobertaForMaskedLM", True, same),
    "roberta-buffers": ("roberta", "RobertaForMaskedLM", True, with_buffers("roberta")),
    "roberta-tied-copies": ("roberta", "RobertaForMaskedLM", True, with_copies(**ROBERTA_COPIES)),
    "roberta-bare": ("roberta", "RobertaModel", False, same),
    "roberta-classes": ("roberta", "RobertaForSequenceClassification", False, same),
    "roberta-answers": ("roberta", "RobertaForQuestionAnswering", False, same),
    "xlm-roberta-masked": ("xlm-roberta", "XLMRobertaForMaskedLM", True, same),
    "camembert-masked": ("camembert", "CamembertForMaskedLM", True, half),
    "bert-generation-bare": ("bert-generation", "BertGenerationEncoder", False, same),
    "bert-generation-decoder": ("bert-generation", "BertGenerationDecoder", True, same),
    "gpt2-bare": ("gpt2", "GPT2Model", False, same),
    "gpt2-bare-buffers": ("gpt2", "GPT2Model", False, with_buffers("gpt2-bytes")),
    "gpt2-language-model": ("gpt2", "GPT2LMHeadModel", True, same),
    "gpt2-buffers": ("gpt2", "GPT2LMHeadModel", True, with_buffers("gpt2")),
    "gpt2-tied-copy": ("gpt2", "GPT2LMHeadModel", True, with_copies(**{"lm_head.weight": "transformer.wte.weight"})),
    "gpt2-classes": ("gpt2", "GPT2ForSequenceClassification", False, same),
    "gpt2-two-heads": ("gpt2", "GPT2DoubleHeadsModel", True, same),
    "bart-bare": ("bart", "BartModel", False, same),
    "bart-whole": ("bart", "BartForConditionalGeneration", True, same),
    "bart-copies": ("bart", "BartForConditionalGeneration", True, with_copies(**BART_COPIES)),
    "bart-version": ("bart", "BartForConditionalGeneration", True, with_buffers("bart")),
    "bart-half": ("bart", "BartForConditionalGeneration", True, half),
    "bart-classes": ("bart", "BartForSequenceClassification", False, same),
    "llama-bare": ("llama", "LlamaModel", False, same),
    "llama-language-model": ("llama", "LlamaForCausalLM", True, same),
    "llama-buffers": ("llama", "LlamaForCausalLM", True, with_buffers("llama")),
    "llama-classes": ("llama", "LlamaForSequenceClassification", False, same),
    "qwen2-bare": ("qwen2", "Qwen2Model", False, half),
}


@pytest.fixture(params=FILES.values(), ids=FILES)
def found(request, tmp_path):
    """Family, the reference's model, whether it has a head, and its folder as it was found."""
    family, name, headed, change = request.param
    torch.manual_seed(0)
    config = configuration(family)
    if name.startswith("Bart") and name != "BartModel":
        config.eos_token_id = 2
    model = randomise(getattr(transformers, name)._from_config(config, attn_implementation="eager"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    folder = saved(model, tmp_path / "found")
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return family, model, headed, folder


def reference_halves(family, model):
    """The reference's stack alone, and its decoder without cross-attention, with the weights of a model."""
    base = model.base_model
    decoder = reference_causal(family)
    if family == "bart":
        decoder.model.decoder.load_state_dict(base.decoder.state_dict())
        decoder.tie_weights()
        return base.encoder, decoder
    decoder.base_model.load_state_dict(base.state_dict(), strict=False)
    heads = {name: x for name, x in model.state_dict().items() if name.startswith(("cls.predictions", "lm_head"))}
    decoder.load_state_dict(heads, strict=False)
    return base, decoder.eval()


@torch.no_grad()
def test_warm_start_of_both_sides(found):
    family, model, headed, folder = found
    encoder, decoder = reference_halves(family, model)
    ours = EncoderDecoderModel.from_encoder_decoder_pretrained(folder, folder, encoder_is_causal=True)
    assert ours.dtype == torch.float32
    ids, mask = source_batch(encoder.config.pad_token_id)
    batch = {"input_ids": ids, "attention_mask": mask, **EVERYTHING}
    assert_same_outputs(ours.encoder(**batch), call(encoder, **batch), ("last_hidden_state", "hidden_states"))
    states, wanted = ours.decoder(**batch), call(decoder, **batch)
    assert_close(states.hidden_states, wanted.hidden_states, "hidden_states")
    own_head = {f"decoder.{name}" for name, _ in ours.decoder.named_parameters() if name.startswith("head.")}
    new = {name for name in ours.load_report.new if ".cross_attention" not in name}
    assert new == (set() if headed else own_head)
    assert (family == "bart") == (not any(".cross_attention" in name for name in ours.load_report.new))
    if not new:
        assert_close(states.logits, wanted.logits, "logits")
    assert set(ours.load_report.left_out) <= set(load_file(folder / "model.safetensors"))


@torch.no_grad()
@pytest.mark.parametrize("name", ["encoder_decoder", "encoder_only", "decoder_only"])
def test_whole_pair_as_the_source_of_a_side(name, tmp_path):
    """A folder that holds both sides gives the one that is asked for, a decoder with its cross-attention."""
    pair = reference_pair("bert", "gpt2")
    folder = saved(pair, tmp_path / "pair")
    other = saved(randomise(reference_encoder("bert"), seed=1), tmp_path / "other")
    ids, mask = source_batch(3)
    if name == "encoder_only":
        ours = EncoderDecoderModel.from_encoder_decoder_pretrained(folder, other)
        wanted = call(pair.encoder, input_ids=ids, attention_mask=mask).last_hidden_state
        assert_close(ours.encode(ids, mask).last_hidden_state, wanted, "last_hidden_state")
        assert not any(new.startswith("encoder.") for new in ours.load_report.new)
        return
    ours = EncoderDecoderModel.from_encoder_decoder_pretrained(other if name == "decoder_only" else folder, folder)
    assert ours.load_report.new == []
    source = torch.rand(3, 9, 16, generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "attention_mask": mask, "encoder_hidden_states": source, "encoder_attention_mask": mask}
    assert_close(ours.decoder(**given).logits, call(pair.decoder, **given).logits, "logits")
    if name == "encoder_decoder":
        ours.config.decoder_start_token_id, ours.config.pad_token_id = 5, 2
        batch = pair_batch(pair)
        assert_same_outputs(call(ours, **batch, **EVERYTHING), call(pair, **batch, **EVERYTHING))


@torch.no_grad()
def test_one_side_of_a_pair_as_a_model_of_its_own(tmp_path):
    pair = reference_pair("bert", "gpt2")
    folder = saved(pair, tmp_path / "pair")
    ids, mask = source_batch(3)
    given = {"input_ids": ids, "attention_mask": mask}
    wanted = call(pair.encoder, **given).last_hidden_state
    assert_close(AutoModel.from_pretrained(folder)(**given).last_hidden_state, wanted, "last_hidden_state")
    wanted = call(pair.decoder, **given).logits
    assert_close(AutoModelForCausalLM.from_pretrained(folder)(**given).logits, wanted, "logits")


SETTINGS = {"num_beams": 3, "max_length": 12, "min_length": 5, "no_repeat_ngram_size": 2, "length_penalty": 0.5}


@pytest.mark.skipif(NEWEST, reason="version 5 takes no settings of generate from config.json")
@pytest.mark.parametrize("place", ["pair", "decoder"])
@torch.no_grad()
def test_settings_of_generate_inside_config(place, tmp_path):
    """As files of the years before `generation_config.json` have them, for the pair or for its decoder."""
    folder = saved(reference_pair("bert", "gpt2"), tmp_path)
    (folder / "generation_config.json").unlink()
    fields = json.loads((folder / "config.json").read_text())
    (fields if place == "pair" else fields["decoder"]).update(SETTINGS)
    fields.update(eos_token_id=2, decoder_start_token_id=5)
    (folder / "config.json").write_text(json.dumps(fields))
    ours = EncoderDecoderModel.from_pretrained(folder)
    assert {name: getattr(ours.generation_config, name) for name in SETTINGS} == SETTINGS
    with quiet():
        theirs = transformers.EncoderDecoderModel.from_pretrained(folder)
        if place == "decoder":
            theirs.generation_config.update(**SETTINGS)
        ids, mask = source_batch(3)
        wanted = theirs.generate(input_ids=ids, attention_mask=mask)
    assert ours.generate(input_ids=ids, attention_mask=mask).tolist() == wanted.tolist()
