"""Longformer: windows, tokens that see everything, and no sign of the padding that the reference adds inside."""

import pytest
import torch
import transformers

from parity.compare import assert_close, assert_same_gradients, assert_same_tensors, on_tokens
from parity.test_stacks import reference_stack
from parity.tiny import START, call, configuration, quiet, randomise, saved, source_batch
from warmstart import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    EncoderDecoderModel,
    LongformerConfig,
    LongformerModel,
)
from warmstart.families import spec_of

pytestmark = pytest.mark.v5
LENGTHS = (11, 6, 4)  # none a multiple of a window


def batch(model, is_global):
    ids, mask = source_batch(model.config.pad_token_id, LENGTHS)
    wide = torch.zeros_like(ids)
    wide[0, [0, 5]] = wide[1, 2] = wide[2, 10] = 1  # a row with two, one, and none that is no padding
    return {"input_ids": ids, "attention_mask": mask, **({"global_attention_mask": wide} if is_global else {})}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The reference's stack and ours."""
    theirs = reference_stack("longformer")
    return theirs, LongformerModel.from_pretrained(saved(theirs, tmp_path_factory.mktemp("longformer")))


@pytest.mark.parametrize("is_global", [False, True])
def test_states_and_gradients(pair, is_global):
    inputs = batch(pair[0], is_global)
    mask = inputs["attention_mask"]
    outputs = [call(model, **inputs, output_hidden_states=True) for model in pair[::-1]]
    for name in ("last_hidden_state", "hidden_states"):
        assert_close(*(on_tokens(output[name], mask) for output in outputs), name)
    for model, output in zip(pair[::-1], outputs, strict=True):
        model.zero_grad()
        states = output.last_hidden_state
        (states * torch.linspace(-1, 1, states.shape[-1]) * mask[..., None]).sum().backward()
        for name, parameter in model.named_parameters():
            if "global" in name and not is_global:
                assert parameter.grad is None
                parameter.grad = torch.zeros_like(parameter)
    assert_same_gradients(*pair[::-1], 1e-4, least=0)  # a sum, not a mean


@torch.no_grad()
def test_weights_are_the_references(pair):
    """The reference gives those of a window, one beside the other, and those of chosen tokens apart."""
    inputs = batch(pair[0], True)
    mask, wide = inputs["attention_mask"], inputs["global_attention_mask"] * inputs["attention_mask"]
    outputs = [call(model, **inputs, output_attentions=True) for model in pair]
    for layer, window in enumerate((4, 8)):
        near, far, ours = (
            x[layer] for x in (outputs[0].attentions, outputs[0].global_attentions, outputs[1].attentions)
        )
        most = near.shape[-1] - window - 1
        wanted = torch.zeros_like(ours)
        for row, length in enumerate(LENGTHS):
            chosen = wide[row].nonzero()[:, 0].tolist()
            for query in range(length):
                for step in range(window + 1):
                    key = query + step - window // 2
                    if 0 <= key < length and key not in chosen:
                        wanted[row, :, query, key] = near[row, :, query, most + step]
                for place, key in enumerate(chosen):
                    wanted[row, :, query, key] = near[row, :, query, place]
            for place, query in enumerate(chosen):
                wanted[row, :, query] = far[row, :, : wanted.shape[-1], place]
        assert_close(on_tokens(ours, mask), on_tokens(wanted, mask), f"layer {layer}")


@torch.no_grad()
def test_nothing_of_the_window_shows(pair):
    """A row alone, padded or not, gives the same; a length that is no multiple of the window, too."""
    inputs = batch(pair[0], True)
    whole = pair[1](**inputs).last_hidden_state
    for row, length in enumerate(LENGTHS):
        alone = pair[1](**{name: x[row : row + 1, :length] for name, x in inputs.items()}).last_hidden_state
        assert alone.shape[1] == length
        assert_close(alone[0], whole[row, :length], "alone", 2e-6)
    by_value = inputs["attention_mask"] * (1 + inputs.pop("global_attention_mask"))
    assert torch.equal(pair[1](inputs["input_ids"], by_value).last_hidden_state, whole)


def test_masked_language_model(tmp_path):
    torch.manual_seed(0)
    theirs = randomise(transformers.LongformerForMaskedLM(configuration("longformer")))
    ours = AutoModelForMaskedLM.from_pretrained(saved(theirs, tmp_path / "theirs"))
    inputs = batch(theirs, True)
    labels = inputs["input_ids"].masked_fill((inputs["input_ids"] % 3 > 0) | (inputs["attention_mask"] == 0), -100)
    found, wanted = (call(model, **inputs, labels=labels) for model in (ours, theirs))
    assert_close(found.loss, wanted.loss, "loss")
    assert_close(*(on_tokens(x.logits, inputs["attention_mask"]) for x in (found, wanted)), "logits")
    assert_same_tensors(saved(ours, tmp_path / "ours"), tmp_path / "theirs")


def test_pair_with_tokens_that_see_everything(pair, tmp_path):
    sides = saved(pair[0], tmp_path / "encoder"), saved(reference_stack("bert"), tmp_path / "decoder")
    with quiet():
        theirs = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(*sides)
    theirs.config.decoder_start_token_id, theirs.config.pad_token_id = START, theirs.config.decoder.pad_token_id
    randomise(theirs)
    ours = EncoderDecoderModel.from_pretrained(saved(theirs, tmp_path / "pair"))
    inputs = batch(pair[0], True)
    labels = source_batch(None, (5, 5, 5), seed=1)[0]
    found, wanted = (call(model, **inputs, labels=labels) for model in (ours, theirs))
    assert_close(found.loss, wanted.loss, "loss")
    assert_close(found.logits, wanted.logits, "logits")
    found.loss.backward()
    wanted.loss.backward()
    assert_same_gradients(ours, theirs, least=0)
    options = {"max_new_tokens": 6, "num_beams": 2, "decoder_start_token_id": START, "pad_token_id": 3}
    options |= {"eos_token_id": None}
    with quiet():
        tokens = theirs.generate(**inputs, **options)
    assert torch.equal(ours.generate(**inputs, **options), tokens)
    assert not torch.equal(ours(**inputs, labels=labels).logits, ours(inputs["input_ids"], labels=labels).logits)


def test_pruned_heads(pair, tmp_path):
    model = AutoModel.from_pretrained(saved(pair[0], tmp_path))
    model.prune_heads({1: [0]})
    model.save_pretrained(tmp_path / "pruned")
    again, inputs = AutoModel.from_pretrained(tmp_path / "pruned"), batch(pair[0], True)
    assert torch.equal(again(**inputs).last_hidden_state, model(**inputs).last_hidden_state)


def test_what_is_refused(pair):
    for window in (3, 0, [4], "4"):
        with pytest.raises(ValueError, match="attention_window"):
            spec_of(LongformerConfig(attention_window=window, num_hidden_layers=2), "base")
    ids = torch.tensor([[6, 7]])
    with pytest.raises(ValueError, match="global_attention_mask of shape"):
        pair[1](ids, global_attention_mask=torch.ones(1, 3), attention_mask=torch.ones(1, 2))
    bert = AutoModel.from_config(BertConfig(9, 8, 1, 2, 8))
    with pytest.raises(ValueError, match="a bert stack has no global attention"):
        bert(ids, global_attention_mask=torch.ones(1, 2))
