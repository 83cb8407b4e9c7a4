"""DeBERTa's options: what its versions and sizes have, and how the files of the third are laid out."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from parity.compare import assert_close, assert_same_gradients, on_tokens, tensors
from parity.test_stacks import reference_stack
from parity.tiny import call, configuration, quiet, randomise, saved, source_batch
from warmstart import AutoModel, AutoModelForMaskedLM, DebertaV2Config, DebertaV2Model, EncoderDecoderModel
from warmstart.families import spec_of
from warmstart.positions import disentangled_rows
from warmstart.spec import DisentangledSpec

pytestmark = pytest.mark.v5

OWN_MATRICES = {"share_att_key": False, "norm_rel_ebd": "none", "conv_kernel_size": 0}
CASES = {
    "own-matrices": OWN_MATRICES,
    "one-kind": {**OWN_MATRICES, "pos_att_type": ["c2p"], "position_buckets": -1},
    "other-kind": {**OWN_MATRICES, "pos_att_type": ["p2c"]},
    "no-distances": {"relative_attention": False, "position_biased_input": True, "type_vocab_size": 2},
    "narrow": {"embedding_size": 12, "position_biased_input": True, "max_relative_positions": -1, "conv_act": "tanh"},
}


def weighed(states, mask):
    return (states * torch.linspace(-1, 1, states.shape[-1]) * mask[..., None]).mean()


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_options(options, tmp_path):
    theirs = reference_stack("deberta-v2", **options)
    ours = AutoModel.from_pretrained(saved(theirs, tmp_path))
    ids, mask = source_batch(theirs.config.pad_token_id, (11, 6, 4))
    found, wanted = (call(model, input_ids=ids, attention_mask=mask) for model in (ours, theirs))
    assert_close(*(on_tokens(output.last_hidden_state, mask) for output in (found, wanted)), "last_hidden_state")
    for output in (found, wanted):
        weighed(output.last_hidden_state, mask).backward()
    assert_same_gradients(ours, theirs, least=0)


def masked_model(**options):
    """The reference's model with a head. Told to tie it, the reference gives the new head's dense layer the table."""
    torch.manual_seed(0)
    options |= {} if options["legacy"] else {"tie_word_embeddings": False}
    return randomise(transformers.DebertaV2ForMaskedLM(configuration("deberta-v2", **options)))


@pytest.mark.parametrize("legacy", [True, False])
def test_either_head(legacy, tmp_path):
    theirs = masked_model(legacy=legacy)
    ours = AutoModelForMaskedLM.from_pretrained(saved(theirs, tmp_path / "theirs"))
    ids, _ = source_batch(None, (8, 8))
    assert_close(call(ours, input_ids=ids).logits, call(theirs, input_ids=ids).logits, "logits")
    mine = tensors(saved(ours, tmp_path / "ours"))
    assert mine.keys() == tensors(tmp_path / "theirs").keys()
    with quiet():
        opened = transformers.DebertaV2ForMaskedLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(call(opened, input_ids=ids).logits, call(theirs, input_ids=ids).logits)


def as_released(theirs, folder):
    """The files of version 3: the new head with no word about it, another head beside it."""
    names = {"legacy", "pooler_hidden_size", "dtype", "tie_word_embeddings"}
    config = {name: value for name, value in theirs.config.to_dict().items() if name not in names}
    (folder / "config.json").write_text(json.dumps({**config, "pos_att_type": "p2c|c2p"}))
    weights = load_file(folder / "model.safetensors") | {
        "deberta.embeddings.position_embeddings.weight": torch.zeros(40, 16),
        "mask_predictions.dense.weight": torch.zeros(16, 16),
        "mask_predictions.LayerNorm.bias": torch.zeros(16),
        "mask_predictions.classifier.weight": torch.zeros(1, 16),
    }
    (folder / "model.safetensors").unlink()
    return weights


@torch.no_grad()
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_files_of_version_3(name, tmp_path):
    theirs = masked_model(legacy=False, conv_kernel_size=0)
    weights = as_released(theirs, saved(theirs, tmp_path))
    (torch.save if name.endswith("bin") else save_file)(weights, tmp_path / name)
    ids, mask = source_batch(theirs.config.pad_token_id)
    ours = DebertaV2Model.from_pretrained(tmp_path)
    wanted = call(theirs, input_ids=ids, attention_mask=mask, output_hidden_states=True)
    found = call(ours, input_ids=ids, attention_mask=mask).last_hidden_state
    assert_close(on_tokens(found, mask), on_tokens(wanted.hidden_states[-1], mask), "last_hidden_state")
    assert not ours.load_report.new and any("mask_predictions" in key for key in ours.load_report.left_out)
    head = AutoModelForMaskedLM.from_pretrained(tmp_path)  # which the reference would make anew
    assert_close(
        on_tokens(call(head, input_ids=ids, attention_mask=mask).logits, mask), on_tokens(wanted.logits, mask), ""
    )
    decoder = saved(reference_stack("bert"), tmp_path / "decoder")
    pair = EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path, decoder)
    assert_close(pair.encode(ids, mask).last_hidden_state[mask > 0], found[mask > 0], "encoder")


@torch.no_grad()
def test_padding_and_pruned_heads(tmp_path):
    model = AutoModel.from_pretrained(saved(reference_stack("deberta-v2", share_att_key=False), tmp_path))
    ids, mask = source_batch(model.config.pad_token_id, (7, 4))
    alone = model(ids[1:, :4]).last_hidden_state
    assert_close(model(ids, mask).last_hidden_state[1:, :4], alone, "padded", 1e-6)
    model.prune_heads({0: [1]})
    model.save_pretrained(tmp_path / "pruned")
    again = AutoModel.from_pretrained(tmp_path / "pruned")
    assert torch.equal(again(ids, mask).last_hidden_state, model(ids, mask).last_hidden_state)


def test_rows_of_distances_are_the_references():
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    back = torch.arange(1100, -1101, -1)
    for distance, buckets in ((512, 256), (7, 4), (128, 64)):
        spec = DisentangledSpec(distance, buckets)
        wanted = (make_log_bucket_position(back, buckets, distance).long() + buckets).clamp(0, 2 * buckets - 1)
        places = (-back).clamp(-distance, distance) + distance
        assert torch.equal(torch.tensor(disentangled_rows(spec))[places], wanted)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pos_att_type": ["c2p", "p2p"]}, "p2p"),
        ({"position_buckets": 5}, "position_buckets=5"),
        ({"position_buckets": 80}, "position_buckets=80"),
        ({"conv_kernel_size": 4}, "conv_kernel_size=4 must be odd"),
        ({"conv_kernel_size": 3, "conv_groups": 2}, "conv_groups=2"),
        ({"conv_kernel_size": 3, "conv_act": "snake"}, "conv_act=snake is not supported"),
        ({"legacy": False, "embedding_size": 9}, "legacy=False"),
    ],
)
def test_what_is_refused(options, words):
    given = {"max_position_embeddings": 40, "relative_attention": True, "pos_att_type": ["c2p"], **options}
    with pytest.raises(ValueError, match=words):
        spec_of(DebertaV2Config(**given), "masked")
