"""Weights go from the reference to here and back, bit for bit: types, shards, pickles, tied pairs."""

import copy
import json

import pytest
import torch
import transformers

from parity.compare import assert_close, assert_same_gradients, assert_same_outputs, assert_same_tensors, tensors
from parity.tiny import (
    ADDED,
    EVERYTHING,
    NEWEST,
    START,
    call,
    configuration,
    pair_batch,
    quiet,
    randomise,
    reference_causal,
    reference_encoder,
    reference_pair,
    saved,
)
from warmstart import AutoModelForCausalLM, EncoderDecoderModel

PAIRS = [("bert", "gpt2"), ("roberta", "bart"), ("gpt2", "bert-generation"), ("llama", "roberta"), ("mistral", "qwen3")]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def opened_there(folder, **options):
    with quiet():
        return transformers.EncoderDecoderModel.from_pretrained(folder, attn_implementation="eager", **options)


@pytest.fixture(params=PAIRS, ids="_".join)
def theirs(request):
    return reference_pair(*request.param)


@pytest.mark.v5
@torch.no_grad()
@pytest.mark.parametrize("dtype", TYPES)
def test_types(theirs, dtype, tmp_path):
    """As the file's type or as float32, and back: there, here, there, here."""
    for parameter in theirs.parameters():
        parameter.copy_(parameter.to(TYPES[dtype]))
    first = saved(copy.deepcopy(theirs).to(TYPES[dtype]), tmp_path / "1")
    kept = EncoderDecoderModel.from_pretrained(first, dtype="auto")
    widened = EncoderDecoderModel.from_pretrained(first)
    assert kept.dtype == TYPES[dtype] and widened.dtype == torch.float32
    second = saved(kept, tmp_path / "2")
    assert_same_tensors(second, first)
    assert json.loads((second / "config.json").read_text())["dtype"] == dtype
    for (name, one), other in zip(kept.named_parameters(), widened.parameters(), strict=True):
        assert one.dtype == TYPES[dtype] and torch.equal(one.float(), other), name
    batch = pair_batch(theirs)
    wanted = call(theirs, **batch)
    assert_same_outputs(call(widened, **batch), wanted, ("logits", "loss"))
    rounded = {"float32": 1e-5, "bfloat16": 0.3, "float16": 0.03}[dtype]  # steps of the type, through the whole model
    assert_close(call(kept, **batch).logits.float(), wanted.logits, "logits", rounded)
    if theirs.config.decoder.model_type in ADDED:
        return
    third = saved(opened_there(second, dtype="auto"), tmp_path / "3")
    fourth = saved(EncoderDecoderModel.from_pretrained(third, dtype="auto"), tmp_path / "4")
    assert_same_tensors(second, third)
    assert_same_tensors(fourth, second)


@pytest.mark.v5
@torch.no_grad()
def test_shards(tmp_path):
    """What is shared out over several files there is read here, and the other way round."""
    theirs = reference_pair("bert", "gpt2")
    whole, there, here = (tmp_path / name for name in ("whole", "there", "here"))
    saved(theirs, whole)
    saved(theirs, there, max_shard_size="10KB")
    ours = EncoderDecoderModel.from_pretrained(there)
    saved(ours, here, max_shard_size="10KB")
    for folder in (there, here):
        assert len(list(folder.glob("model-*.safetensors"))) > 3 and not (folder / "model.safetensors").exists()
        assert_same_tensors(folder if folder == here else saved(ours, tmp_path / "again"), whole)
    assert tensors(there).keys() == tensors(whole).keys()
    batch = pair_batch(theirs)
    assert torch.equal(call(opened_there(here), **batch).logits, call(theirs, **batch).logits)
    # A save over an older one leaves one set of weights.
    saved(ours, here)
    assert [path.name for path in here.glob("model*")] == ["model.safetensors"]
    assert_same_tensors(here, whole)


@pytest.mark.v5
@torch.no_grad()
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_pickled_weights_are_read(zipped, tmp_path):
    """A `pytorch_model.bin`, with every tied name in it, as torch writes it now and as it did."""
    theirs = reference_pair("bert", "gpt2")
    folder = saved(theirs, tmp_path / "there")
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    ours = EncoderDecoderModel.from_pretrained(folder)
    assert_same_tensors(saved(ours, tmp_path / "here"), saved(theirs, tmp_path / "whole"))


@pytest.mark.v5
@torch.no_grad()
@pytest.mark.parametrize("size", ["5GB", "10KB"])
def test_pickled_weights_are_written(size, tmp_path):
    theirs = reference_pair("roberta", "bert")
    ours = EncoderDecoderModel.from_pretrained(saved(theirs, tmp_path / "there"))
    folder = saved(ours, tmp_path / "here", safe_serialization=False, max_shard_size=size)
    assert not list(folder.glob("*.safetensors"))
    assert len(list(folder.glob("*.bin"))) == 1 or size == "10KB"
    assert_same_tensors(saved(opened_there(folder), tmp_path / "again"), tmp_path / "there")
    assert_same_tensors(saved(EncoderDecoderModel.from_pretrained(folder), tmp_path / "once-more"), tmp_path / "there")


def tied_pair(encoder, decoder, **options):
    """The reference's encoder-decoder with `tie_encoder_decoder`, which version 5 keeps as a word and no more."""
    sides = reference_encoder(encoder, **options), reference_causal(decoder, True, **options)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        *(side.config for side in sides), tie_encoder_decoder=True
    )
    model = transformers.EncoderDecoderModel(encoder=sides[0], decoder=sides[1], config=config)
    model.config.decoder_start_token_id = START
    model.config.pad_token_id = 1 if model.config.decoder.pad_token_id is None else model.config.decoder.pad_token_id
    model.tie_weights()
    return randomise(model)


@pytest.fixture(params=["bert", "roberta", "bert-generation", "gpt2", "bert-untied"])
def tied(request):
    family = request.param.removesuffix("-untied")
    return tied_pair(family, family, **({} if family == request.param else {"tie_word_embeddings": False}))


@pytest.mark.skipif(NEWEST, reason="version 5 ties no encoder to its decoder")
def test_tied_pair(tied, tmp_path):
    """What version 4 wrote reads here as one set of weights, and what is written here opens there as one."""
    folder = saved(tied, tmp_path / "there")
    ours = EncoderDecoderModel.from_pretrained(folder)
    for name, parameter in ours.encoder.named_parameters():
        assert ours.decoder.get_parameter(name) is parameter, name
    batch = pair_batch(tied)
    found, wanted = call(ours, **batch, **EVERYTHING), call(tied, **batch, **EVERYTHING)
    assert_same_outputs(found, wanted)
    found.loss.backward()
    wanted.loss.backward()
    assert_same_gradients(ours, tied)
    here = saved(ours, tmp_path / "here")
    assert_same_tensors(here, folder)
    held = tensors(here)
    assert sum(x.numel() for x in held.values()) == ours.num_parameters()
    opened = opened_there(here)
    assert opened.encoder.get_input_embeddings().weight is opened.decoder.get_input_embeddings().weight
    assert torch.equal(call(opened, **batch).logits, wanted.logits)
    assert torch.equal(
        call(EncoderDecoderModel.from_pretrained(here), **batch).logits, call(ours.eval(), **batch).logits
    )


@pytest.mark.v5
@pytest.mark.skipif(not NEWEST, reason="version 4 writes one copy")
@torch.no_grad()
def test_two_copies_that_should_be_tied(tied, tmp_path):
    """Version 5 leaves the setting in the configuration and the weights apart: they are read as they are."""
    folder = saved(tied, tmp_path / "there")
    with pytest.warns(UserWarning, match="tie_encoder_decoder"):
        ours = EncoderDecoderModel.from_pretrained(folder)
    assert ours.config.tie_encoder_decoder is False
    batch = pair_batch(tied)
    assert_same_outputs(call(ours, **batch, **EVERYTHING), call(tied, **batch, **EVERYTHING))
    assert_same_tensors(saved(ours, tmp_path / "here"), folder)


@torch.no_grad()
def test_two_copies_that_are_equal_are_tied(tmp_path):
    """A file with both copies of each tied tensor gives one set of weights, and is written as one."""
    ours = EncoderDecoderModel.from_pretrained(saved(reference_pair("bert", "bert"), tmp_path / "there"))
    for name, parameter in ours.encoder.named_parameters():
        ours.decoder.get_parameter(name).copy_(parameter)
    both = saved(ours, tmp_path / "both")
    tied = EncoderDecoderModel.from_pretrained(both, tie_encoder_decoder=True)
    assert tied.num_parameters() < ours.num_parameters()
    assert len(tensors(saved(tied, tmp_path / "one"))) < len(tensors(both))
    batch = pair_batch(ours)
    assert torch.equal(tied(**batch).logits, ours(**batch).logits)


@pytest.mark.v5
@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_head_that_should_be_tied_and_is_not(family, tmp_path):
    """A file whose head differs from the embeddings is read as it is, whatever its configuration says."""
    theirs = randomise(reference_causal(family, tie_word_embeddings=False))
    folder = saved(theirs, tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": True}))
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        ours = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(6, 14)[None]
    assert_close(ours(ids).logits, call(theirs, input_ids=ids).logits, "logits")
    assert ours.config.tie_word_embeddings is False


@pytest.mark.v5
def test_settings_go_both_ways(tmp_path):
    """Token ids and settings of `generate`, set on either store here, are the reference's after it opens the folder."""
    ours = EncoderDecoderModel.from_pretrained(saved(reference_pair("bert", "gpt2"), tmp_path / "there"))
    wanted = {"decoder_start_token_id": 7, "eos_token_id": 8, "pad_token_id": 9, "num_beams": 3, "max_length": 17}
    for name, value in wanted.items():
        setattr(ours.config if name in ("eos_token_id", "num_beams") else ours.generation_config, name, value)
    opened = opened_there(saved(ours, tmp_path / "here"))
    for name, value in wanted.items():
        assert getattr(opened.generation_config, name) == value, name
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(opened.config, name) == wanted[name], name
    again = EncoderDecoderModel.from_pretrained(saved(opened, tmp_path / "again"))
    for name, value in wanted.items():
        assert getattr(again.config, name) == getattr(again.generation_config, name) == value, name
    assert again.config.decoder.vocab_size == configuration("gpt2").vocab_size
