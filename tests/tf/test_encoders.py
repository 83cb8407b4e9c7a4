"""Encoders with arguments or matrices of their own, against ours in torch: Longformer, RoCBert, DeBERTa's matrices."""

import numpy as np
import pytest
import tensorflow as tf
import torch

import tiny_models
from warmstart import AutoModel, TFAutoModel, TFBertModel, TFLongformerModel, TFRoCBertForCausalLM
from warmstart.tf.loading import named_parameters


def with_reach():
    inputs = tiny_models.batch(encoder_pad=1)
    inputs["global_attention_mask"] = torch.zeros_like(inputs["attention_mask"])
    inputs["global_attention_mask"][0, [0, 3]] = inputs["global_attention_mask"][1, 6] = 1  # the latter is padding
    return inputs


def test_longformer_is_the_same_as_in_torch(zoo):
    theirs, ours = zoo.pair("longformer", "bert")
    inputs = with_reach()
    wanted = theirs(**inputs, output_attentions=True)
    with tf.GradientTape() as tape:
        found = ours(zoo.arrays(inputs), output_attentions=True)
        loss = tf.reduce_mean(found.loss)
    for name in ("logits", "encoder_last_hidden_state", "encoder_attentions"):
        zoo.assert_close(found[name], wanted[name], name)
    wanted.loss.backward()
    parameters, gradients = dict(named_parameters(ours)), tiny_models.gradients(theirs)
    theirs.zero_grad()
    values = tape.gradient(loss, [parameters[name].variable.value for name in gradients])
    for (name, value), found_value in zip(gradients.items(), values, strict=True):
        found_value = tf.convert_to_tensor(found_value)
        zoo.assert_close(tf.transpose(found_value) if parameters[name].turned else found_value, value, name)
    inputs.pop("labels")
    options = {"max_new_tokens": 5, "num_beams": 2}
    tokens = theirs.generate(**inputs, **options).numpy()
    assert np.array_equal(ours.generate(**zoo.arrays(inputs), **options).numpy()[:, : tokens.shape[1]], tokens)


def test_longformer_without_such_tokens(zoo, tmp_path):
    theirs = AutoModel.from_pretrained(tiny_models.saved(tmp_path, "longformer"))
    ours = TFLongformerModel.from_pretrained(tmp_path)
    ids, mask, _ = tiny_models.batch(encoder_pad=1).values()
    zoo.assert_close(ours(ids.numpy(), mask.numpy())[0], theirs(ids, mask)[0], "states")
    with pytest.raises(ValueError, match="global_attention_mask of shape"):
        ours(ids.numpy(), mask.numpy(), global_attention_mask=np.ones((1, 2)))


def test_roc_bert_with_shapes_and_pronunciations(zoo):
    theirs, ours = zoo.pair("roc_bert", "roc_bert")
    inputs = tiny_models.batch(encoder_pad=3)
    beside = tiny_models.ids_beside(inputs["input_ids"])
    of_target = tiny_models.ids_beside(inputs["labels"], "decoder_", seed=3)
    wanted = theirs(**inputs, **beside, **of_target)
    with tf.GradientTape() as tape:
        found = ours(zoo.arrays(inputs), **zoo.arrays(beside), **zoo.arrays(of_target))
        loss = tf.reduce_mean(found.loss)
    zoo.assert_close(found.logits, wanted.logits, "logits")
    wanted.loss.backward()
    parameters, gradients = dict(named_parameters(ours)), tiny_models.gradients(theirs)
    theirs.zero_grad()
    values = tape.gradient(loss, [parameters[name].variable.value for name in gradients])
    for (name, value), found_value in zip(gradients.items(), values, strict=True):
        found_value = tf.convert_to_tensor(found_value)
        zoo.assert_close(tf.transpose(found_value) if parameters[name].turned else found_value, value, name)
    inputs.pop("labels")
    tokens = theirs.generate(**inputs, **beside, max_new_tokens=5).numpy()
    options = {"max_new_tokens": 5, "pad_to_multiple_of": 4}
    found = ours.generate(**zoo.arrays(inputs), **zoo.arrays(beside), **options).numpy()
    assert np.array_equal(found[:, : tokens.shape[1]], tokens)


def test_what_roc_bert_refuses():
    ours, ids = TFRoCBertForCausalLM(tiny_models.config("roc_bert", is_decoder=True)), np.array([[6, 7]])
    with pytest.raises(ValueError, match=r"input_shape_ids of shape \(1, 3\) must be \(1, 2\)"):
        ours(ids, input_shape_ids=np.zeros((1, 3), np.int32))
    with pytest.raises(ValueError, match="input_pronunciation_ids holds 9"):
        ours(ids, input_pronunciation_ids=np.array([[1, 9]]))
    with pytest.raises(ValueError, match="a bert stack has no tables of shapes"):
        TFBertModel(tiny_models.config("bert"))(ids, input_shape_ids=ids)


def test_debertas_shared_matrices(zoo, tmp_path):
    fields = {"share_att_key": True, "position_buckets": -1, "pos_att_type": "c2p", "conv_kernel_size": 0}
    theirs = AutoModel.from_pretrained(tiny_models.saved(tmp_path, "deberta-v2", **fields))
    ours = TFAutoModel.from_pretrained(tmp_path)
    ids, mask, _ = tiny_models.batch().values()
    zoo.assert_close(ours(ids.numpy(), mask.numpy())[0], theirs(ids, mask)[0], "states")
    ours.save_pretrained(tmp_path / "again", safe_serialization=False)
    again = TFAutoModel.from_pretrained(tmp_path / "again")
    assert np.array_equal(again(ids.numpy())[0], ours(ids.numpy())[0])
