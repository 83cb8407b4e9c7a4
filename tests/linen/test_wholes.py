"""A whole encoder-decoder of one family opens in Flax as in torch: logits, gradients, generated tokens."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import tiny_models
import warmstart
from warmstart import EncoderDecoderModel, FlaxEncoderDecoderModel
from warmstart.warm_start import pair_of, whole_of


@pytest.mark.parametrize("family", ["marian", "t5", "t5gemma"])
def test_whole_is_the_same_as_in_torch(family, tmp_path, assert_close):
    config, _ = pair_of(tiny_models.config(family))
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    torch.manual_seed(0)
    ours = tiny_models.spread_out(EncoderDecoderModel(config=config)).eval()
    ours.save_pretrained(tmp_path)
    flax = FlaxEncoderDecoderModel.from_pretrained(tmp_path)
    one_table = getattr(config, "share_embeddings", False)
    assert ("token" in flax.params["decoder"].get("embeddings", {})) is not one_table
    inputs = tiny_models.batch()
    target = ours.prepare_decoder_input_ids_from_labels(inputs["labels"])
    wanted = ours(inputs["input_ids"], inputs["attention_mask"], target).logits
    ids, mask = (inputs[name].numpy() for name in ("input_ids", "attention_mask"))

    def total(params):
        logits = flax(ids, mask, target.numpy(), params=params).logits
        return (logits * jnp.linspace(-1, 1, logits.shape[-1])).mean(), logits

    (_, logits), gradients = jax.value_and_grad(total, has_aux=True)(flax.params)
    assert_close(logits, wanted, "logits")
    (wanted * torch.linspace(-1, 1, wanted.shape[-1])).mean().backward()
    table = gradients["encoder"]["embeddings"]["token"]["embedding"]
    assert_close(table, ours.encoder.embeddings.token.weight.grad, "gradient of the embeddings")
    if family == "marian":
        assert not np.any(gradients["decoder"]["head"]["output"]["bias"])  # it is not trained
    found = flax.generate(ids, attention_mask=mask, max_new_tokens=5).sequences
    tokens = ours.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=5)
    assert np.array_equal(np.asarray(found)[:, : tokens.shape[1]], tokens)
    flax.save_pretrained(tmp_path / "whole", as_whole=True)
    named = getattr(warmstart, f"Flax{whole_of(config)}").from_pretrained(tmp_path / "whole")
    named.save_pretrained(tmp_path / "named")
    assert json.loads((tmp_path / "named" / "config.json").read_text())["architectures"] == [whole_of(config)]
    for place in ("whole", "named"):
        again = EncoderDecoderModel.from_pretrained(tmp_path / place)
        assert torch.equal(again(inputs["input_ids"], inputs["attention_mask"], target).logits, wanted)
    with pytest.raises(ValueError, match="no BartForConditionalGeneration; open it with"):
        warmstart.FlaxBartForConditionalGeneration.from_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="writes safetensors"):
        flax.save_pretrained(tmp_path / "whole", as_whole=True, safe_serialization=False)
    flax.save_pretrained(tmp_path / "again")
    assert ours.num_parameters() == EncoderDecoderModel.from_pretrained(tmp_path / "again").num_parameters()
