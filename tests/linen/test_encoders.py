"""Encoders with arguments or matrices of their own, against ours in torch: Longformer, DeBERTa's shared matrices."""

import jax
import numpy as np
import pytest
import torch

import tiny_models
from linen.test_parity import as_arrays, assert_same_gradients
from warmstart import AutoModel, FlaxAutoModel, FlaxLongformerModel
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
