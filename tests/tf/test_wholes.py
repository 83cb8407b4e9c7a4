"""A whole encoder-decoder of one family opens in TensorFlow as in torch: logits, gradients, generated tokens."""

import json

import numpy as np
import pytest
import tensorflow as tf
import torch

import tiny_models
import warmstart
from warmstart import EncoderDecoderModel, TFEncoderDecoderModel
from warmstart.warm_start import pair_of, whole_of


@pytest.mark.parametrize("family", ["marian", "t5", "t5gemma"])
def test_whole_is_the_same_as_in_torch(family, tmp_path, zoo):
    config, _ = pair_of(tiny_models.config(family))
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    torch.manual_seed(0)
    ours = tiny_models.spread_out(EncoderDecoderModel(config=config)).eval()
    ours.save_pretrained(tmp_path)
    model = TFEncoderDecoderModel.from_pretrained(tmp_path)
    one_table = getattr(config, "share_embeddings", False)
    assert (model.encoder.embeddings.token is model.decoder.embeddings.token) is one_table
    if family == "marian":
        assert not model.decoder.head.output_layer.bias.trainable
    inputs = tiny_models.batch()
    target = ours.prepare_decoder_input_ids_from_labels(inputs["labels"])
    wanted = ours(inputs["input_ids"], inputs["attention_mask"], target).logits
    (wanted * torch.linspace(-1, 1, wanted.shape[-1])).mean().backward()
    table = model.encoder.embeddings.token._embeddings
    with tf.GradientTape() as tape:
        logits = model(
            inputs["input_ids"].numpy(),
            attention_mask=inputs["attention_mask"].numpy(),
            decoder_input_ids=target.numpy(),
        ).logits
        total = tf.reduce_mean(logits * tf.linspace(-1.0, 1.0, logits.shape[-1]))
    zoo.assert_close(logits, wanted.detach(), "logits")
    gradient = tf.convert_to_tensor(tape.gradient(total, table.value))
    zoo.assert_close(gradient, ours.encoder.embeddings.token.weight.grad, "gradient of the embeddings")
    found = model.generate(
        inputs["input_ids"].numpy(), attention_mask=inputs["attention_mask"].numpy(), max_new_tokens=5
    )
    tokens = ours.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=5)
    assert np.array_equal(np.asarray(found)[:, : tokens.shape[1]], tokens)
    model.save_pretrained(tmp_path / "whole", as_whole=True)
    named = getattr(warmstart, f"TF{whole_of(config)}").from_pretrained(tmp_path / "whole")
    named.save_pretrained(tmp_path / "named")
    assert json.loads((tmp_path / "named" / "config.json").read_text())["architectures"] == [whole_of(config)]
    for place in ("whole", "named"):
        again = EncoderDecoderModel.from_pretrained(tmp_path / place)
        assert torch.equal(again(inputs["input_ids"], inputs["attention_mask"], target).logits, wanted)
    with pytest.raises(ValueError, match="no BartForConditionalGeneration; open it with"):
        warmstart.TFBartForConditionalGeneration.from_pretrained(tmp_path / "whole")
