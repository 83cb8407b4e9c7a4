"""`torch.export`: a forward as one graph for all batch sizes and lengths, saved and loaded."""

import pytest
import torch
from torch.export import Dim

from tiny_models import PAIRS, POSITIONS, batch, pair, shallow
from warmstart import Seq2SeqLMOutput
from warmstart.torch.cache import KeyValueCache

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")


def sizes(inputs):
    """Every batch size, and every length that the positions allow."""
    rows = Dim("rows", min=1, max=64)
    source, target = (Dim(name, min=2, max=POSITIONS) for name in ("source", "target"))
    return {name: {0: rows, 1: source if name in ("input_ids", "attention_mask") else target} for name in inputs}


def with_labels(**options):
    return batch(**options)


def with_decoder_inputs(**options):
    inputs = batch(**options)
    inputs["decoder_input_ids"] = inputs.pop("labels").clamp_min(3)
    return inputs


def without_mask(**options):
    inputs = with_decoder_inputs(encoder_pad=0, **options)
    del inputs["attention_mask"]
    return inputs


def check(model, make, strict=False, program=None):
    inputs = make()
    program = program or torch.export.export(model, (), inputs, dynamic_shapes=sizes(inputs), strict=strict)
    for inputs in (make(), make(rows=2, source=2, target=9), make(rows=1, source=POSITIONS, target=2)):
        output, expected = program.module()(**inputs), model(**inputs)
        assert isinstance(output, Seq2SeqLMOutput) and isinstance(output.past_key_values, KeyValueCache)
        assert list(output) == list(expected)
        torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(output.past_key_values[0], expected.past_key_values[0], rtol=0, atol=1e-5)
        if expected.loss is not None:
            torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-5)
    return program


@pytest.mark.parametrize(
    ("encoder", "decoder", "make"),
    [("gpt2", "llama", with_decoder_inputs), ("bert", "bart", without_mask)],
)
def test_for_all_sizes(encoder, decoder, make):
    check(shallow(encoder, decoder), make)


def test_with_labels_saved_and_loaded(tmp_path):
    """Outputs and the cache are known to torch by name, so that a program on disk still returns them."""
    model = shallow("bert", "gpt2")
    torch.export.save(check(model, with_labels), tmp_path / "model.pt2")
    check(model, with_labels, program=torch.export.load(tmp_path / "model.pt2"))


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("make", [with_labels, with_decoder_inputs])
@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_every_kind_of_pair(encoder, decoder, make, strict):
    check(pair(encoder, decoder), make, strict)


def test_step_with_a_cache():
    """One decoding step, the cache an input: it is a tree of tensors like any other argument."""
    model = pair("bert", "gpt2")
    inputs = with_decoder_inputs()
    with torch.no_grad():
        first = model(**inputs)
        cache = torch.utils._pytree.tree_map(torch.clone, first.past_key_values)
        step = {
            "encoder_outputs": (first.encoder_last_hidden_state,),
            "attention_mask": inputs["attention_mask"],
            "decoder_input_ids": torch.tensor([[7], [8], [9]]),
            "past_key_values": cache,
        }
        program = torch.export.export(model, (), step, strict=False)
        output = program.module()(**step)
        expected = model(**{**step, "past_key_values": first.past_key_values})
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-6)
    assert output.past_key_values.length == expected.past_key_values.length == 7
