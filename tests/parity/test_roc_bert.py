"""RoCBert with the ids of its other tables, of shapes and pronunciations: a stack, a pair's two sides, generation."""

import pytest
import torch
import transformers

from parity.compare import assert_close, assert_same_gradients
from parity.test_stacks import reference_stack
from parity.tiny import START, call, quiet, randomise, saved, source_batch
from tiny_models import ids_beside
from warmstart import AutoModel, AutoModelForCausalLM, BertConfig, EncoderDecoderModel

pytestmark = pytest.mark.v5


def test_stack(tmp_path):
    theirs = reference_stack("roc_bert")
    ours = AutoModel.from_pretrained(saved(theirs, tmp_path))
    ids, mask = source_batch(3)
    inputs = {"input_ids": ids, "attention_mask": mask}
    both = ids_beside(ids)
    outputs = []
    for more in ({}, both, {"input_shape_ids": both["input_shape_ids"]}):
        found, wanted = (call(model, **inputs, **more).last_hidden_state for model in (ours, theirs))
        assert_close(found, wanted, f"states with {list(more)}")
        outputs.append(found)
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])
    beside = {"shape": both["input_shape_ids"], "pronunciation": both["input_pronunciation_ids"]}
    packed = ours.states(ids, mask, beside=beside, packed=True).last
    assert_close(packed[mask.bool()], outputs[1][mask.bool()], "states without padding")


@pytest.mark.parametrize("fields", [{"enable_shape": False}, {"enable_pronunciation": False}], ids=str)
def test_a_table_that_is_not_used_needs_no_ids(fields, tmp_path):
    theirs = reference_stack("roc_bert", **fields)
    ours, (ids, mask) = AutoModel.from_pretrained(saved(theirs, tmp_path)), source_batch(3)
    inputs = {"input_ids": ids, "attention_mask": mask, **ids_beside(ids)}
    with torch.no_grad():
        assert_close(*(call(model, **inputs).last_hidden_state for model in (ours, theirs)), "states")


def test_pair(tmp_path):
    sides = [saved(reference_stack("roc_bert"), tmp_path / side) for side in ("encoder", "decoder")]
    with quiet():
        theirs = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(*sides)
    theirs.config.decoder_start_token_id, theirs.config.pad_token_id = START, 3
    ours = EncoderDecoderModel.from_pretrained(saved(randomise(theirs), tmp_path / "pair"))
    (ids, mask), labels = source_batch(3), source_batch(None, (5, 5, 5), seed=1)[0]
    source = {"input_ids": ids, "attention_mask": mask, **ids_beside(ids)}
    inputs = {**source, "labels": labels, **ids_beside(labels, "decoder_", seed=3)}
    found, wanted = (call(model, **inputs) for model in (ours, theirs))
    assert_close(found.loss, wanted.loss, "loss")
    assert_close(found.logits, wanted.logits, "logits")
    found.loss.backward()
    wanted.loss.backward()
    assert_same_gradients(ours, theirs, least=0)
    options = {"max_new_tokens": 6, "decoder_start_token_id": START, "pad_token_id": 3, "eos_token_id": None}
    for beams in (1, 2):
        with quiet():
            tokens = theirs.generate(**source, **options, num_beams=beams)
        assert torch.equal(ours.generate(**source, **options, num_beams=beams), tokens)


def test_what_is_refused(tmp_path):
    ours = AutoModel.from_pretrained(saved(reference_stack("roc_bert"), tmp_path))
    ids = torch.tensor([[6, 7]])
    with pytest.raises(ValueError, match=r"input_shape_ids of shape \(1, 3\) must be \(1, 2\), an id for each token"):
        ours(ids, input_shape_ids=torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="input_pronunciation_ids holds 9, and the model has rows for 0 to 8"):
        ours(ids, input_pronunciation_ids=torch.tensor([[1, 9]]))
    with pytest.raises(TypeError, match="input_shape_ids is a list; give a tensor"):
        ours(ids, input_shape_ids=[[1, 2]])
    for kind in (AutoModel, AutoModelForCausalLM):
        with pytest.raises(ValueError, match=r"a bert stack has no tables of shapes .*; leave input_shape_ids out"):
            kind.from_config(BertConfig(9, 8, 1, 2, 8, is_decoder=True))(ids, input_shape_ids=ids)
