"""The TensorFlow classes of `transformers` compute the same, find the same tokens, and open what is saved here.

They cannot read safetensors with today's release of it: files go by way of `.bin` and `tf_model.h5`.
"""

import os
import re

if os.environ.get("TF_USE_LEGACY_KERAS") != "1":
    raise RuntimeError("set TF_USE_LEGACY_KERAS=1 before tensorflow is imported")

import numpy as np
import pytest
import tensorflow as tf
import transformers

from parity.tiny import configuration, quiet, randomise, reference_pair
from warmstart import TFEncoderDecoderModel
from warmstart.checkpoint.names import pack
from warmstart.checkpoint.tensorflow_files import name_from_h5
from warmstart.tf import loading
from warmstart.tf.loading import named_parameters

if not hasattr(transformers, "TFEncoderDecoderModel"):
    pytest.skip("this release of transformers has no TensorFlow classes", allow_module_level=True)

PAIRS = [("bert", "gpt2"), ("roberta", "bert"), ("camembert", "roberta"), ("xlm-roberta", "gpt2")]
IDS = np.array([[6, 7, 8, 9, 10], [11, 12, 13, 14, 15]], "int32")
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], "int32")
LABELS = np.array([[20, 21, 22, 2], [23, 24, 2, -100]], "int32")


@pytest.fixture(scope="module", params=PAIRS, ids="_".join)
def models(request, tmp_path_factory):
    """The reference's pair and ours, of the same weights."""
    folder = tmp_path_factory.mktemp("pair")
    encoder, decoder = request.param
    sides = [{"n_layer" if family == "gpt2" else "num_hidden_layers": 1} for family in request.param]
    source = reference_pair(encoder, decoder, *sides)
    with quiet():
        source.encoder.save_pretrained(folder / "encoder", safe_serialization=False)
        source.decoder.save_pretrained(folder / "decoder", safe_serialization=False)
        theirs = transformers.TFEncoderDecoderModel.from_encoder_decoder_pretrained(
            str(folder / "encoder"), str(folder / "decoder"), encoder_from_pt=True, decoder_from_pt=True
        )
    ours = TFEncoderDecoderModel.from_encoder_decoder_pretrained(folder / "encoder", folder / "decoder")
    for model in (theirs, ours):
        model.config.decoder_start_token_id, model.config.pad_token_id, model.config.eos_token_id = 5, 2, 2
        model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id = 5, 2
        model.generation_config.eos_token_id = 2
    return theirs, ours, folder


def call(model, **more):
    with quiet():
        return model(input_ids=tf.constant(IDS), attention_mask=tf.constant(MASK), **more)


def test_outputs_and_gradients(models, zoo):
    theirs, ours, _ = models
    target = ours.prepare_decoder_input_ids_from_labels(LABELS)
    states = {"output_hidden_states": True, "output_attentions": True}

    def run(model):
        with tf.GradientTape() as tape:
            output = call(model, decoder_input_ids=target, **states)
            loss = tf.reduce_sum(tf.nn.log_softmax(output.logits)[0, :, 20:24])
        return output, loss, tape

    (wanted, their_loss, their_tape), (found, our_loss, our_tape) = run(theirs), run(ours)
    names = ("logits", "encoder_last_hidden_state", "decoder_hidden_states", "cross_attentions", "encoder_attentions")
    for name in names:
        zoo.assert_close(found[name], wanted[name], name)
    gradients = their_tape.gradient(their_loss, theirs.trainable_variables)
    parameters = dict(named_parameters(ours))
    values = our_tape.gradient(our_loss, [x.variable.value for x in parameters.values()])
    mine = {}
    for (name, parameter), value in zip(parameters.items(), values, strict=True):
        value = tf.zeros(parameter.variable.shape) if value is None else tf.convert_to_tensor(value)
        mine[name] = value.numpy().T if parameter.turned else value.numpy()
    _, entries = loading.saved(ours, ours.sides())
    compared = 0
    for variable, gradient in zip(theirs.trainable_variables, gradients, strict=True):
        name = re.sub(r"^encoder\.(bert|roberta)\.", "encoder.", name_from_h5(variable.name))
        if gradient is None or not any(entry.name == name for entry in entries.values()):
            continue
        found_value = pack(entries, mine, name, np.concatenate)
        theirs_value = tf.convert_to_tensor(gradient).numpy()
        theirs_value = theirs_value.T if variable.name.endswith("/kernel:0") else theirs_value
        assert np.abs(found_value - theirs_value.reshape(found_value.shape)).max() <= 1e-5, name
        compared += 1
    assert compared >= len(entries) // 2


# Its beams are compared where none ends early: it never prefers a sequence that reached the maximal length to one that
# ended before, which PyTorch's search, and so ours, has done since 4.50.
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "eos_token_id": 50}], ids=["greedy", "beams"])
def test_tokens(models, settings):
    theirs, ours, _ = models
    with quiet():
        wanted = theirs.generate(tf.constant(IDS), attention_mask=tf.constant(MASK), max_length=6, **settings).numpy()
    found = ours.generate(IDS, attention_mask=MASK, max_length=6, **settings).numpy()
    assert np.array_equal(found, wanted[:, : found.shape[1]])
    assert (wanted[:, found.shape[1] :] == 2).all()


def test_files(models, zoo, tmp_path):
    """Their `tf_model.h5` opens here, and ours there."""
    theirs, ours, _ = models
    target = tf.constant([[5, 20, 21], [5, 22, 23]])
    wanted = call(theirs, decoder_input_ids=target).logits
    with quiet():
        theirs.save_pretrained(tmp_path / "theirs", safe_serialization=False)
    opened = TFEncoderDecoderModel.from_pretrained(tmp_path / "theirs")
    zoo.assert_close(call(opened, decoder_input_ids=target).logits, wanted, "theirs, here")
    ours.save_pretrained(tmp_path / "ours", safe_serialization=False)
    with quiet():
        again, info = transformers.TFEncoderDecoderModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["unexpected_keys"] and all("pooler" in name for name in info["missing_keys"])
    zoo.assert_close(call(again, decoder_input_ids=target).logits, wanted, "ours, there")


def test_bart_halves_are_a_pair(zoo, tmp_path):
    config = configuration("bart", encoder_layers=1, decoder_layers=1)
    with quiet():
        source = randomise(transformers.BartForConditionalGeneration(config))
        source.final_logits_bias.zero_()
        source.save_pretrained(tmp_path, safe_serialization=False)
        theirs = transformers.TFBartForConditionalGeneration.from_pretrained(str(tmp_path), from_pt=True)
        target = tf.constant([[5, 20, 21], [5, 22, 23]])
        wanted = theirs(tf.constant(IDS), attention_mask=tf.constant(MASK), decoder_input_ids=target).logits
    ours = TFEncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path, tmp_path)
    assert not ours.load_report.new
    zoo.assert_close(call(ours, decoder_input_ids=target).logits, wanted, "logits")
