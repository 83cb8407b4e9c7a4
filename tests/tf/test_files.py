"""Folders go from framework to framework with the same bits; TensorFlow's own files are read and written."""

import h5py
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

import tiny_models
from warmstart import (
    AutoModel,
    BertConfig,
    BertModel,
    EncoderDecoderModel,
    TFAutoModel,
    TFBertModel,
    TFEncoderDecoderModel,
    TFGPT2LMHeadModel,
)
from warmstart.checkpoint.names import stored_as
from warmstart.checkpoint.tensorflow_files import name_from_h5, path_in_h5
from warmstart.cli.facts import facts_of
from warmstart.families import MODULES, family
from warmstart.tf.loading import named_parameters

PAIRS = [*tiny_models.PAIRS, ("bert", "bert")]


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_saved_here_opens_in_torch_with_the_same_bits(encoder, decoder, tmp_path):
    first = tiny_models.pair(encoder, decoder)
    first.save_pretrained(tmp_path / "torch")
    ours = TFEncoderDecoderModel.from_pretrained(tmp_path / "torch")
    ours.save_pretrained(tmp_path / "tf", max_shard_size="20KB")
    assert len(list((tmp_path / "tf").glob("model-*.safetensors"))) > 1
    back = EncoderDecoderModel.from_pretrained(tmp_path / "tf")
    for name, value in first.named_parameters():
        assert value.equal(back.get_parameter(name)), name
    for side in ("encoder", "decoder"):
        assert getattr(back.config, side).to_dict() == getattr(first.config, side).to_dict()
    assert back.config.decoder_start_token_id == first.config.decoder_start_token_id
    ours.save_pretrained(tmp_path / "one")
    wanted, found = (load_file(tmp_path / place / "model.safetensors") for place in ("torch", "one"))
    assert wanted.keys() == found.keys() and all(np.array_equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_h5_there_and_back(encoder, decoder, zoo, tmp_path):
    _, model = zoo.pair(encoder, decoder)
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "tf_model.h5"}
    back = TFEncoderDecoderModel.from_pretrained(tmp_path)
    wanted = dict(named_parameters(model))
    for name, parameter in named_parameters(back):
        assert np.array_equal(parameter.value(), wanted[name].value()), name


@pytest.mark.parametrize("model_type", MODULES)
def test_names_in_h5_can_be_turned_back(model_type):
    """Of every family and parameter, with a layer's number in the tens."""
    entry = family(model_type)
    spec = entry.spec(entry.config(), not entry.encoder)  # what is a decoder alone has a head
    for ours in entry.names:
        leaves = [""] if ours.endswith(("weight", "bias")) else [".weight"]
        for leaf in leaves:
            stored = stored_as(ours.replace("{}", "11") + leaf, entry.names, spec)
            name = f"{entry.head_prefix}{stored.name}".replace(f"{entry.head_prefix}/", "")
            path = path_in_h5(name, ours.replace("{}", "11") + leaf, stored.transposed)
            assert name_from_h5(f"scope/{path}:0") == name


def test_an_h5_that_is_no_model_is_refused(tmp_path):
    tiny_models.config("bert").save_pretrained(tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"no h5")
    with pytest.raises(OSError, match=r"not a sound tf_model\.h5"):
        TFBertModel.from_pretrained(tmp_path)
    with h5py.File(tmp_path / "tf_model.h5", "w") as file:
        file.attrs["other"] = 1
    with pytest.raises(OSError, match=r"not a sound tf_model\.h5"):
        TFBertModel.from_pretrained(tmp_path)


def test_original_checkpoints_of_bert(tmp_path):
    """The variables of BERT's releases, with an optimizer's beside them; in a folder, and by the index itself."""
    folder = tiny_models.saved(tmp_path / "bert", "bert")
    stored = load_file(tmp_path / "bert" / "model.safetensors")
    named = {}
    for name, value in stored.items():
        path = "bert/" + name.replace("encoder.layer.", "encoder/layer_").replace(".", "/")
        if "embeddings/" in path and "LayerNorm" not in path:
            path = path.removesuffix("/weight")
        elif "LayerNorm" in path:
            path = path.replace("/weight", "/gamma").replace("/bias", "/beta")
        else:
            value, path = (value.T, path.replace("/weight", "/kernel")) if path.endswith("weight") else (value, path)
        named[path] = tf.Variable(value)
        named[f"{path}/adam_m"] = tf.Variable(value)
    named |= {"global_step": tf.Variable(1), "bert/pooler/dense/bias": tf.Variable(tf.zeros([16]))}
    saver = tf.compat.v1.train.Saver(named)
    place = tmp_path / "original"
    place.mkdir()
    saver.save(None, str(place / "model.ckpt"), write_meta_graph=False)
    config = BertConfig.from_pretrained(folder)
    wanted = AutoModel.from_pretrained(folder)
    ids = np.array([[5, 6, 7]])
    states = TFAutoModel.from_pretrained(folder)(ids).last_hidden_state
    by_index = TFBertModel.from_pretrained(place / "model.ckpt.index", config=config)
    assert np.array_equal(by_index(ids).last_hidden_state, states)
    theirs = BertModel.from_pretrained(place / "model.ckpt.index", from_tf=True, config=config)
    for name, value in wanted.named_parameters():
        assert value.equal(theirs.get_parameter(name)), name
    halves = EncoderDecoderModel.from_encoder_decoder_pretrained(
        place / "model.ckpt.index",
        place / "model.ckpt.index",
        encoder_from_tf=True,
        decoder_from_tf=True,
        encoder_config=config,
        decoder_config=BertConfig(**config.to_dict() | {"is_decoder": True, "add_cross_attention": True}),
    )
    for side in (halves.encoder, halves.decoder):
        found = dict(side.named_parameters())
        assert all(value.equal(found[name]) for name, value in wanted.named_parameters())
    assert all(name.startswith("decoder.") for name in halves.load_report.new)
    config.save_pretrained(place)
    for named in (place, place / "model.ckpt.index"):
        told = facts_of(str(named), {})
        assert told["weights"]["parameters"] == sum(value.numel() for value in wanted.parameters())
    assert np.array_equal(TFAutoModel.from_pretrained(place)(ids).last_hidden_state, states)
    pair = TFEncoderDecoderModel.from_encoder_decoder_pretrained(place, place)
    assert not [name for name in pair.load_report.new if name.startswith("encoder.")]


def test_warm_start_of_two_checkpoints(tmp_path):
    encoder = tiny_models.saved(tmp_path / "encoder", "bert")
    decoder = tiny_models.saved(tmp_path / "decoder", "gpt2", decoder=True)
    model = TFEncoderDecoderModel.from_encoder_decoder_pretrained(
        encoder, decoder, encoder_from_pt=True, decoder_from_pt=True, decoder_start_token_id=1, pad_token_id=0
    )
    new = model.load_report.new
    assert all("cross_attention" in name or name.startswith("enc_to_dec_proj") for name in new) and new
    theirs = EncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder)
    assert set(new) == set(theirs.load_report.new)
    values, kept = dict(named_parameters(model)), set(theirs.load_report.loaded)
    for name, value in theirs.named_parameters():
        if name in kept:
            assert np.array_equal(values[name].value(), value.detach().numpy()), name
    copied = TFEncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder, cross_attention_init="copy")
    assert copied.load_report.copied
    half = TFGPT2LMHeadModel.from_pretrained(decoder, dtype="bfloat16")
    assert half.variable_dtype == "bfloat16"
