"""Every encoder with every decoder builds, computes a loss, back-propagates and generates."""

import functools

import pytest
import torch

import tiny_models
from tiny_models import END, PAD, START, VOCABULARY
from warmstart import AutoModel, AutoModelForCausalLM, EncoderDecoderModel
from warmstart.families import MODULES, family
from warmstart.families.encoder_decoder import set_side

ENCODERS = [name for name in MODULES if family(name).encoder]
DECODERS = [name for name in MODULES if family(name).decoder]
# What families call their number of layers.
LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
SOURCE = torch.tensor([[5, 6, 7], [8, 9, 5]])
LABELS = torch.tensor([[10, 11], [12, -100]])


def test_every_family_has_a_tiny_model():
    assert {*tiny_models.FAMILIES, *tiny_models.RELATIVES} == set(MODULES)


@functools.cache
def side(name, kind):
    """A model of one layer, made once: it stands in every pair of its row or column."""
    fields = type(tiny_models.config(name)).defaults
    shallow = {field: 1 for field in LAYERS if field in fields}
    shallow |= {"attention_types": [[["global"], 1]]} if "attention_types" in fields else {}
    config = tiny_models.config(name, **shallow)
    set_side(config, kind)
    torch.manual_seed(0)
    return (AutoModel if kind == "encoder" else AutoModelForCausalLM)(config)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_goes_with_every_decoder(encoder):
    for decoder in DECODERS:
        model = EncoderDecoderModel(encoder=side(encoder, "encoder"), decoder=side(decoder, "decoder"))
        model.config.decoder_start_token_id, model.config.pad_token_id, model.config.eos_token_id = START, PAD, END
        output = model(input_ids=SOURCE, labels=LABELS)
        assert output.logits.shape == (2, 2, VOCABULARY) and torch.isfinite(output.loss), decoder
        output.loss.backward()
        for table in (model.encoder.embeddings.token, model.decoder.embeddings.token):
            assert table.weight.grad.abs().sum() > 0, decoder
        model.zero_grad()
        tokens = model.eval().generate(SOURCE, attention_mask=torch.ones_like(SOURCE), max_new_tokens=2)
        assert len(tokens) == 2 and tokens.shape[1] in (2, 3), decoder
