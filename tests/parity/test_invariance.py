"""Cached = uncached = one full pass; padded = unpadded; a batch = one at a time; beams = rows of their own.

Shapes: b sources, s source length, t target length, v vocabulary.
"""

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.compare import assert_close
from parity.tiny import DECODERS, ENCODERS, TINY, VOCABULARY, randomise, source_batch
from warmstart import AutoConfig, EncoderDecoderConfig, EncoderDecoderModel

MIXED = {"use_sliding_window": True, "sliding_window": 2, "layer_types": ["sliding_attention", "full_attention"]}
# (encoder, decoder, what is odd about the decoder); every family stands once on either side
PAIRS = {
    **{f"bert_{family}": ("bert", family, {}) for family in DECODERS},
    **{f"{family}_llama": (family, "llama", {}) for family in ENCODERS},
    "roberta_gpt2-by-layer": ("roberta", "gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2_qwen3-mixed": ("gpt2", "qwen3", MIXED),
    "llama_roberta-padding": ("llama", "roberta", {"pad_token_id": 4}),
}


@functools.cache
def model_of(name):
    encoder, decoder, options = PAIRS[name]
    torch.manual_seed(0)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        AutoConfig.for_model(encoder, **TINY[encoder]), AutoConfig.for_model(decoder, **{**TINY[decoder], **options})
    )
    return randomise(EncoderDecoderModel(config))


def run(model, source, source_mask, target, target_mask, steps=None):
    """Logits (b, t, v): of one pass, or of steps that each know only the cache of those before."""
    encoded = model.encode(source, source_mask)
    arguments = {"encoder_outputs": encoded, "attention_mask": source_mask}
    if steps is None:
        return model(decoder_input_ids=target, decoder_attention_mask=target_mask, use_cache=False, **arguments).logits
    cache, logits, start = None, [], 0
    for step in steps:
        end = start + step
        output = model(
            decoder_input_ids=target[:, start:end],
            decoder_attention_mask=None if target_mask is None else target_mask[:, :end],
            past_key_values=cache,
            use_cache=True,
            **arguments,
        )
        cache, start = output.past_key_values, end
        assert cache.length == end
        logits.append(output.logits)
    return torch.cat(logits, 1)


def batches(model, source_lengths, target_lengths, source_side="right", target_side="right"):
    """Sources and targets, padded, with their masks."""
    pads = model.config.encoder.pad_token_id, model.config.decoder.pad_token_id
    source = source_batch(pads[0], source_lengths, source_side, seed=2)
    return *source, *source_batch(pads[1], target_lengths, target_side, seed=3)


def one_at_a_time(model, source, source_mask, target, target_mask):
    """The logits of each row's tokens, by a full pass over that row alone, without padding: a list of (t, v)."""
    rows = zip(source, source_mask.bool(), target, target_mask.bool(), strict=True)
    return [run(model, x[seen][None], None, y[kept][None], None)[0] for x, seen, y, kept in rows]


@torch.no_grad()
@pytest.mark.parametrize("steps", [(1,) * 8, (3, 1, 4)], ids=["tokens", "chunks"])
@pytest.mark.parametrize("name", PAIRS)
def test_cached_equals_one_pass(name, steps):
    model = model_of(name)
    source, source_mask, target, _ = batches(model, (6, 3), (8, 8))
    wanted = run(model, source, source_mask, target, None)
    assert_close(run(model, source, source_mask, target, None, steps), wanted, "logits")


@torch.no_grad()
@pytest.mark.parametrize("target_side", ["right", "left"])
@pytest.mark.parametrize("source_side", ["right", "left"])
@pytest.mark.parametrize("name", PAIRS)
def test_padded_batch_equals_one_at_a_time(name, source_side, target_side):
    model = model_of(name)
    batch = batches(model, (7, 3, 5), (2, 6, 5), source_side, target_side)
    found, wanted = run(model, *batch), one_at_a_time(model, *batch)
    for row, (logits, kept) in enumerate(zip(found, batch[3].bool(), strict=True)):
        assert_close(logits[kept], wanted[row], f"logits of row {row}")


@torch.no_grad()
@pytest.mark.parametrize("name", PAIRS)
def test_beams_equal_rows_of_their_own(name):
    """Two target rows that share a source equal two rows that each have it; and so after the cache is reordered."""
    model = model_of(name)
    source, source_mask, target, _ = batches(model, (6, 3), (5,) * 4)
    arguments = {"encoder_outputs": model.encode(source, source_mask), "attention_mask": source_mask}
    twice = [x.repeat_interleave(2, 0) for x in (source, source_mask)]
    wanted = run(model, *twice, target, None)
    first = model(decoder_input_ids=target[:, :3], use_cache=True, **arguments)
    assert_close(first.logits, wanted[:, :3], "logits")
    order = torch.tensor([1, 0, 3, 3])
    first.past_key_values.reorder(order)
    target = torch.cat([target[order, :3], target[:, 3:]], 1)
    second = model(decoder_input_ids=target[:, 3:], past_key_values=first.past_key_values, **arguments)
    assert_close(second.logits, run(model, *twice, target, None)[:, 3:], "logits")


@settings(max_examples=40, deadline=None)
@given(st.data())
@torch.no_grad()
def test_all_of_it_at_once(data):
    """Any pair, rows, lengths, sides of padding and steps: cached and padded equals one row at a time in one pass."""
    model = model_of(data.draw(st.sampled_from(list(PAIRS))))
    rows = data.draw(st.integers(1, 4))
    lengths = st.lists(st.integers(1, 10), min_size=rows, max_size=rows)
    sides = st.sampled_from(["right", "left"])
    batch = batches(model, *(data.draw(x) for x in (lengths, lengths, sides, sides)))
    length = batch[2].shape[1]
    cuts = [0, *sorted(cut for cut in data.draw(st.sets(st.integers(1, 9))) if cut < length), length]
    steps = [after - before for before, after in itertools.pairwise(cuts)]
    found = run(model, *batch, steps)
    assert found.shape == (rows, length, VOCABULARY)
    for logits, kept, wanted in zip(found, batch[3].bool(), one_at_a_time(model, *batch), strict=True):
        assert_close(logits[kept], wanted, "logits")
