"""Every family computes what it does in torch: outputs, losses, gradients; cached, padded and uncached alike."""

import numpy as np
import pytest
import tensorflow as tf
import torch

import tiny_models
from warmstart import AutoModelForCausalLM, TFAutoModelForCausalLM, TFAutoModelForMaskedLM
from warmstart.tf.loading import named_parameters

FAMILIES = tiny_models.FAMILIES
# every family once on either side
PAIRS = [(family, FAMILIES[(i + 3) % len(FAMILIES)]) for i, family in enumerate(FAMILIES)]
RELATIVES = [
    ("marian", "blenderbot-small"),
    ("pegasus", "trocr"),
    ("bigbird_pegasus", "xglm"),
    ("mbart", "plbart"),
    ("blenderbot", "mvp"),
    ("mpnet", "t5"),
    ("t5", "mt5"),
]
FIELDS = (
    "logits",
    "encoder_last_hidden_state",
    "encoder_hidden_states",
    "encoder_attentions",
    "decoder_hidden_states",
    "decoder_attentions",
    "cross_attentions",
)


@pytest.mark.parametrize(("encoder", "decoder"), [*PAIRS, *RELATIVES, *tiny_models.RELATED])
def test_outputs_and_gradients_are_those_of_torch(encoder, decoder, zoo):
    theirs, ours = zoo.pair(encoder, decoder)
    batch = tiny_models.batch()
    wants = {"output_hidden_states": True, "output_attentions": True}
    wanted = theirs(**batch, **wants)
    with tf.GradientTape() as tape:
        found = ours(zoo.arrays(batch), **wants)
        loss = tf.reduce_mean(found.loss)
    for name in FIELDS:
        zoo.assert_close(found[name], wanted[name], name)
    zoo.assert_close(loss, wanted.loss, "loss")
    wanted.loss.backward()
    parameters, gradients = dict(named_parameters(ours)), tiny_models.gradients(theirs)
    theirs.zero_grad()
    values = tape.gradient(loss, [parameters[name].variable.value for name in gradients])
    for (name, wanted_value), value in zip(gradients.items(), values, strict=True):
        value = tf.convert_to_tensor(value)
        zoo.assert_close(tf.transpose(value) if parameters[name].turned else value, wanted_value, name)


@pytest.mark.parametrize("decoder", ["gemma3_text", "gptj", "bloom"])
def test_beams_of_added_cross_attention_are_those_of_torch(decoder, zoo):
    """Decoding with a cache: two kinds of rotary positions, neighbours that turn, scores that fall with distance."""
    theirs, ours = zoo.pair("bert", decoder)
    batch = tiny_models.batch(encoder_pad=theirs.config.encoder.pad_token_id)
    source = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    options = {"num_beams": 2, "max_new_tokens": 6}
    wanted = theirs.generate(**source, **options).numpy()
    found = ours.generate(**zoo.arrays(source), **options).numpy()
    assert np.array_equal(found[:, : wanted.shape[1]], wanted) and (found[:, wanted.shape[1] :] == 0).all()


def test_loss_has_a_value_for_each_label_that_counts(zoo):
    _, model = zoo.pair("bert", "gpt2")
    batch = zoo.arrays(tiny_models.batch())
    output = model(batch)
    assert output.loss.shape == ((batch["labels"] != -100).sum(),)
    as_tuple = model(batch, return_dict=False)
    assert isinstance(as_tuple, tuple) and np.array_equal(as_tuple[0], output.loss)
    assert np.array_equal(as_tuple[1], output.logits)


@pytest.mark.parametrize("kind", ["tensor", "array", "list", "dict", "position"])
def test_inputs_of_every_kind(kind, zoo):
    _, model = zoo.pair("bert", "gpt2")
    batch = zoo.arrays(tiny_models.batch())
    wanted = model(**batch).logits
    found = {
        "tensor": lambda: model(**{name: tf.constant(value) for name, value in batch.items()}),
        "array": lambda: model(**{name: value.astype("int32") for name, value in batch.items()}),
        "list": lambda: model(**{name: value.tolist() for name, value in batch.items()}),
        "dict": lambda: model(batch),
        "position": lambda: model(
            batch["input_ids"].tolist(), batch["attention_mask"].tolist(), labels=batch["labels"].tolist()
        ),
    }[kind]()
    assert np.array_equal(found.logits, wanted)


def test_cached_is_uncached_and_a_cache_can_be_used_twice(zoo):
    _, model = zoo.pair("roberta", "gpt2")
    batch = zoo.arrays(tiny_models.batch(target=6))
    source = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    target = np.where(batch["labels"] < 0, 7, batch["labels"])
    whole = model(**source, decoder_input_ids=target).logits
    first = model(**source, decoder_input_ids=target[:, :4])
    assert first.past_key_values.get_seq_length() == 4
    for _ in range(2):
        rest = model(
            encoder_outputs=(first.encoder_last_hidden_state,),
            attention_mask=batch["attention_mask"],
            decoder_input_ids=target[:, 4:],
            past_key_values=first.past_key_values,
        )
        zoo.assert_close(rest.logits, whole[:, 4:], "cached")


def test_padding_changes_nothing(zoo):
    _, model = zoo.pair("roberta", "gpt2")
    ids = np.array([[5, 6, 7]])
    padded = np.array([[5, 6, 7, model.config.encoder.pad_token_id]])
    target = np.array([[1, 8, 9]])
    zoo.assert_close(
        model(padded, decoder_input_ids=target).logits, model(ids, decoder_input_ids=target).logits, "padded"
    )


def test_inside_a_function_compiled_by_xla(zoo):
    _, model = zoo.pair("bert", "gpt2")
    batch = {name: tf.constant(x, tf.int32) for name, x in zoo.arrays(tiny_models.batch()).items()}
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    target = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    call = tf.function(lambda: model(source, decoder_input_ids=target).logits, jit_compile=True)
    zoo.assert_close(call(), model(source, decoder_input_ids=target).logits, "compiled")


def test_single_stacks_with_heads():
    config = tiny_models.config("gpt2")
    model = TFAutoModelForCausalLM(config)
    ids = np.array([[5, 6, 7, 8]])
    output = model(ids, labels=ids)
    assert output.logits.shape == (1, 4, tiny_models.VOCABULARY) and output.loss.shape == (3,)
    masked = TFAutoModelForMaskedLM(tiny_models.config("bert"))
    assert masked(ids, labels=np.array([[-100, 6, -100, -100]])).loss.shape == (1,)


def test_tied_sides_share_their_variables(zoo, tmp_path):
    theirs = tiny_models.pair("bert", "bert", tie_encoder_decoder=True)
    theirs.save_pretrained(tmp_path)
    from warmstart import TFEncoderDecoderModel

    ours = TFEncoderDecoderModel.from_pretrained(tmp_path)
    assert ours.num_parameters() == sum(x.numel() for x in theirs.parameters())
    assert len(ours.trainable_variables) == len(list(theirs.parameters()))
    batch = tiny_models.batch()
    zoo.assert_close(ours(zoo.arrays(batch)).logits, theirs(**batch).logits, "logits", 2e-5)


def test_granite_multiplies_vectors_that_are_given_in_place_of_ids(tmp_path):
    theirs = AutoModelForCausalLM.from_config(tiny_models.config("granite")).eval()
    theirs.save_pretrained(tmp_path)
    vectors = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    found = TFAutoModelForCausalLM.from_pretrained(tmp_path)(inputs_embeds=vectors).logits.numpy()
    assert np.abs(found - theirs(inputs_embeds=torch.tensor(vectors)).logits.detach().numpy()).max() < 1e-5
