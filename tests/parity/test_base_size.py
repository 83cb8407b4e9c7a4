"""A pair of real size, 12 layers of width 768 on either side, equals the reference."""

import pytest
import torch
import transformers

from parity.compare import assert_close, assert_same_gradients, assert_same_outputs
from parity.tiny import EVERYTHING, START, as_ours, call, source_batch, target_batch


@pytest.mark.slow
@pytest.mark.v5
def test_base_size():
    """Outputs, loss and gradients within 1e-5, by the plain attention and by the fused one."""
    torch.manual_seed(0)
    encoder = transformers.BertModel._from_config(transformers.BertConfig(), attn_implementation="eager")
    decoder = transformers.GPT2Config(add_cross_attention=True, is_decoder=True)
    decoder = transformers.GPT2LMHeadModel._from_config(decoder, attn_implementation="eager")
    theirs = transformers.EncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    theirs.config.decoder_start_token_id, theirs.config.pad_token_id = START, 0
    ours = as_ours(theirs)
    ids, mask = source_batch(0, (96, 60))
    batch = {"input_ids": ids, "attention_mask": mask, "labels": target_batch((17, 32))}
    wanted = call(theirs, **batch, **EVERYTHING)
    with torch.no_grad():
        assert_same_outputs(call(ours, **batch, **EVERYTHING), wanted)
    found = call(ours, **batch)
    assert_close(found.logits, wanted.logits, "logits")
    assert_close(found.loss, wanted.loss, "loss")
    found.loss.backward()
    wanted.loss.backward()
    assert_same_gradients(ours, theirs, least=0.0)
