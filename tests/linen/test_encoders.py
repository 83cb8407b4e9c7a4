"""Encoders with arguments or matrices of their own, against ours in torch: Longformer, RoCBert, DeBERTa's matrices."""

import jax
import numpy as np
import pytest
import torch

import tiny_models
from linen.test_parity import as_arrays, assert_same_gradients
from warmstart import AutoModel, FlaxAutoModel, FlaxEncoderDecoderModel, FlaxLongformerModel, FlaxRoCBertForCausalLM
from warmstart.flax.loss import cross_entropy, label_mask


def with_reach():
    inputs = tiny_models.batch(encoder_pad=1)
    inputs["global_attention_mask"] = torch.zeros_like(inputs["attention_mask"])
    inputs["global_attention_mask"][0, [0, 3]] = inputs["global_attention_mask"][1, 6] = 1  # the latter is padding
    return inputs


def test_longformer_is_the_same_as_in_torch(pair, assert_close):
    ours, flax, _ = pair("longformer", "bert")
    inputs = with_reach()
    ours.zero_grad()
    wanted = ours(**inputs, output_attentions=True)
    wanted.loss.backward()
    ids, mask, labels, wide = (inputs[name].numpy() for name in inputs)
    target = flax.prepare_decoder_input_ids_from_labels(labels), label_mask(labels)

    def loss(params):
        more = {"params": params, "output_attentions": True, "global_attention_mask": wide}
        output = flax(ids, mask, *target, **more)
        return cross_entropy(output.logits, labels), output

    (value, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(flax.params)
    assert_close(value, wanted.loss, "loss")
    for name in ("logits", "encoder_last_hidden_state", "encoder_attentions"):
        assert_close(found[name], wanted[name], name)
    assert_same_gradients(gradients, as_arrays(tiny_models.gradients(ours)))
    source, options = {"attention_mask": mask, "global_attention_mask": wide}, {"max_new_tokens": 5, "num_beams": 2}
    tokens = np.asarray(flax.generate(ids, **source, **options).sequences)
    theirs = ours.generate(inputs["input_ids"], **{name: torch.tensor(x) for name, x in source.items()}, **options)
    assert (tokens[:, : theirs.shape[1]] == theirs.numpy()).all()
    assert_close(flax.encode(ids, mask, global_attention_mask=wide)[0], wanted.encoder_last_hidden_state, "encoded")


def test_longformer_without_such_tokens(tmp_path, assert_close):
    ours = AutoModel.from_pretrained(tiny_models.saved(tmp_path, "longformer"))
    flax = FlaxLongformerModel.from_pretrained(tmp_path)
    ids, mask, _ = tiny_models.batch(encoder_pad=1).values()
    with torch.no_grad():
        assert_close(flax(ids.numpy(), mask.numpy())[0], ours(ids, mask)[0], "states")
    with pytest.raises(ValueError, match="global_attention_mask of shape"):
        flax(ids.numpy(), mask.numpy(), global_attention_mask=np.ones((1, 2)))


def test_roc_bert_with_shapes_and_pronunciations(pair, assert_close):
    ours, flax, _ = pair("roc_bert", "roc_bert")
    inputs = tiny_models.batch(encoder_pad=3)
    ids, mask, labels = inputs.values()
    beside, of_target = tiny_models.ids_beside(ids), tiny_models.ids_beside(labels, "decoder_", seed=3)
    ours.zero_grad()
    wanted = ours(**inputs, **beside, **of_target)
    wanted.loss.backward()
    source, of_target = ({name: x.numpy() for name, x in given.items()} for given in (beside, of_target))
    target = flax.prepare_decoder_input_ids_from_labels(labels.numpy()), label_mask(labels.numpy())

    def loss(params):
        output = flax(ids.numpy(), mask.numpy(), *target, params=params, **source, **of_target)
        return cross_entropy(output.logits, labels.numpy()), output

    (value, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(flax.params)
    assert_close(value, wanted.loss, "loss")
    assert_close(found.logits, wanted.logits, "logits")
    assert_same_gradients(gradients, as_arrays(tiny_models.gradients(ours)))
    encoded = flax.encode(ids.numpy(), mask.numpy(), **source)
    assert_close(encoded[0], wanted.encoder_last_hidden_state, "encoded")
    outputs = flax.decode(target[0], encoded, mask.numpy(), target[1], **of_target)
    assert_close(outputs.logits, wanted.logits, "decoded")
    theirs = ours.generate(ids, attention_mask=mask, **beside, max_new_tokens=5)
    tokens = flax.generate(ids.numpy(), attention_mask=mask.numpy(), **source, max_new_tokens=5, pad_to_multiple_of=4)
    assert (np.asarray(tokens.sequences)[:, : theirs.shape[1]] == theirs.numpy()).all()


def test_what_roc_bert_refuses(tmp_path):
    flax = FlaxRoCBertForCausalLM(tiny_models.config("roc_bert", is_decoder=True))
    ids = np.array([[6, 7]])
    with pytest.raises(ValueError, match=r"input_shape_ids of shape \(1, 3\) must be \(1, 2\)"):
        flax(ids, input_shape_ids=np.zeros((1, 3), np.int32))
    with pytest.raises(ValueError, match="input_pronunciation_ids holds 9"):
        flax(ids, input_pronunciation_ids=np.array([[1, 9]]))
    whole = FlaxEncoderDecoderModel(tiny_models.pair("bert", "bert").config)
    with pytest.raises(ValueError, match="a bert stack has no tables of shapes"):
        whole.encode(ids, input_shape_ids=ids)
    with pytest.raises(TypeError, match=r"unknown arguments \['shape_ids'\]; beside those"):
        whole(ids, decoder_input_ids=ids, shape_ids=ids)


def test_debertas_shared_matrices(tmp_path, assert_close):
    fields = {"share_att_key": True, "position_buckets": -1, "pos_att_type": "c2p", "conv_kernel_size": 0}
    ours = AutoModel.from_pretrained(tiny_models.saved(tmp_path, "deberta-v2", **fields))
    flax = FlaxAutoModel.from_pretrained(tmp_path)
    ids, mask, _ = tiny_models.batch().values()
    with torch.no_grad():
        assert_close(flax(ids.numpy(), mask.numpy())[0], ours(ids, mask)[0], "states")
    flax.save_pretrained(tmp_path / "again", safe_serialization=False)
    again = FlaxAutoModel.from_pretrained(tmp_path / "again")
    assert (np.asarray(again(ids.numpy())[0]) == np.asarray(flax(ids.numpy())[0])).all()
