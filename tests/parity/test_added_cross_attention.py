"""Cross-attention that is new: on a decoder that has none of its own, drawn at random or copied from self-attention.

That it computes what it should is held in `test_pairs.py`, against a reference that is written out in `graft.py`.
"""

import pytest
import torch

from parity.compare import assert_close
from parity.tiny import (
    ADDED,
    DECODERS,
    HALVES,
    call,
    pair_batch,
    randomise,
    reference_causal,
    reference_encoder,
    saved,
    skip_in_5,
    source_batch,
)
from warmstart import AutoModelForCausalLM, EncoderDecoderModel


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return saved(randomise(reference_encoder("bert")), tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request, tmp_path_factory):
    """The reference's causal language model and its folder."""
    skip_in_5(request.param)
    theirs = randomise(reference_causal(request.param))
    return theirs, saved(theirs, tmp_path_factory.mktemp("decoder"))


def warm_started(encoder, decoder, **options):
    torch.manual_seed(0)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder[1], **options)
    model.config.decoder_start_token_id, model.config.pad_token_id = 5, 1
    return model


@pytest.mark.v5
@torch.no_grad()
def test_without_a_source_it_is_the_language_model(encoder, decoder):
    theirs, folder = decoder
    ids, mask = source_batch(theirs.config.pad_token_id)
    wanted = call(theirs, input_ids=ids, attention_mask=mask).logits
    alone = AutoModelForCausalLM.from_pretrained(folder, is_decoder=True, add_cross_attention=True)
    pair = warm_started(encoder, decoder)
    for model in (alone, pair.decoder):
        assert model.layers[0].cross_attention is not None
        assert_close(model(ids, mask).logits[mask > 0], wanted[mask > 0], "logits")


@torch.no_grad()
def test_it_reads_the_source(encoder, decoder):
    """Another source token moves the logits of that row at every position; what stands in padding moves nothing."""
    model = warm_started(encoder, decoder)
    batch = pair_batch(model)
    assert (batch["attention_mask"][1, -1], batch["attention_mask"][0, -1]) == (0, 1)
    before = model(**batch).logits
    alone = model.decoder(model.prepare_decoder_input_ids_from_labels(batch["labels"])).logits
    assert (before - alone).abs().amax(-1).min() > 1e-4
    ids = batch["input_ids"].clone()
    ids[:2, -1] = 6 + (ids[:2, -1] + 1) % 50
    moved = (model(**{**batch, "input_ids": ids}).logits - before).abs().amax(-1)
    assert moved[0].min() > 1e-6 and moved[1:].max() == 0


def test_new_cross_attention_starts_as_the_config_says(encoder, decoder):
    """Random by `initializer_range`, or a copy of self-attention; nothing else is new, and the report says so."""
    drawn, copied = (warm_started(encoder, decoder, cross_attention_init=start) for start in ("random", "copy"))
    added = {name: x for name, x in copied.decoder.named_parameters() if ".cross_attention" in name}
    if decoder[0].config.model_type in (*HALVES, "trocr"):  # its checkpoint has cross-attention, which is kept
        assert not any("decoder." in name for name in (*copied.load_report.new, *copied.load_report.copied))
        return
    for model in (drawn, copied):
        new = [name for name in model.load_report.new if name.startswith("decoder.")]
        assert sorted(new) == sorted(f"decoder.{name}" for name in added)
    assert drawn.load_report.copied == []
    held = dict(copied.decoder.named_parameters())
    alike = [
        name for name in added if name.replace(".cross_attention", ".attention") in held
    ]  # ModernBERT lacks a norm
    assert sorted(copied.load_report.copied) == sorted(f"decoder.{name}" for name in alike)
    for name in alike:
        parameter = added[name]
        source = copied.decoder.get_parameter(name.replace(".cross_attention", ".attention"))
        assert torch.equal(parameter, source) and parameter is not source
    matrices = [x.detach().flatten() for name, x in drawn.decoder.named_parameters() if name in added and x.dim() > 1]
    assert torch.cat(matrices).std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(("start", "only_new"), [("random", False), ("copy", False), ("copy", True)])
def test_it_trains(encoder, decoder, start, only_new):
    """The loss falls, and it does so where nothing but cross-attention is trained: that brings the source in."""
    model = warm_started(encoder, decoder, cross_attention_init=start).train()
    if only_new:
        model.freeze_all_but_cross_attention()
    optimizer = torch.optim.Adam([x for x in model.parameters() if x.requires_grad], 0.02)
    batch, losses = pair_batch(model), []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * (0.97 if only_new else 0.8)


@torch.no_grad()
@pytest.mark.parametrize("family", ADDED)
def test_projected_source(family, encoder, tmp_path):
    """A wider decoder reads the source through `enc_to_dec_proj`; its cross-attention is copied all the same."""
    wide = saved(randomise(reference_causal(family, width=24)), tmp_path)
    model = warm_started(encoder, (None, wide), cross_attention_init="copy")
    assert tuple(model.enc_to_dec_proj.weight.shape) == (24, 16)
    assert "enc_to_dec_proj.weight" in model.load_report.new and model.load_report.copied
    batch = pair_batch(model)
    before = model(**batch).logits
    model.enc_to_dec_proj.weight.zero_()
    model.enc_to_dec_proj.bias.zero_()
    assert (model(**batch).logits - before).abs().max() > 1e-4
