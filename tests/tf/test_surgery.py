"""The vocabulary of either side can change; what was there computes as before, and the files follow."""

import numpy as np
import pytest

import tiny_models
from warmstart import EncoderDecoderModel, TFEncoderDecoderModel


@pytest.mark.parametrize(("encoder", "decoder", "tied"), [("bert", "gpt2", False), ("bert", "bert", True)])
def test_resizing_is_that_of_torch(encoder, decoder, tied, zoo, tmp_path):
    theirs = tiny_models.pair(encoder, decoder, tie_encoder_decoder=tied)
    theirs.save_pretrained(tmp_path / "old")
    ours = TFEncoderDecoderModel.from_pretrained(tmp_path / "old")
    count = len(ours.trainable_variables)
    side = "both" if tied else "decoder"
    for model in (theirs, ours):
        model.resize_token_embeddings(tiny_models.VOCABULARY + 3, side=side)
    assert len(ours.trainable_variables) == count
    batch = tiny_models.batch()
    zoo.assert_close(ours(zoo.arrays(batch)).logits, theirs(**batch).logits, "logits", 5e-5)
    assert ours.config.decoder.vocab_size == tiny_models.VOCABULARY + 3
    ours.save_pretrained(tmp_path / "new")
    again = EncoderDecoderModel.from_pretrained(tmp_path / "new")
    zoo.assert_close(ours(zoo.arrays(batch)).logits, again(**batch).logits, "saved", 5e-5)


def test_a_resized_model_generates_and_keeps_what_fits(zoo, tmp_path):
    folder = zoo.shallow_folder(tmp_path)
    model = TFEncoderDecoderModel.from_pretrained(folder)
    ids = np.array([[5, 6, 7]])
    model.generate(ids, max_new_tokens=2, min_new_tokens=2)
    model.resize_token_embeddings(30, side="decoder")
    assert model.generate(ids, max_new_tokens=2, min_new_tokens=2).numpy().max() < 30
    with pytest.raises(ValueError, match="say side='encoder' or 'decoder'"):
        model.resize_token_embeddings(40)
