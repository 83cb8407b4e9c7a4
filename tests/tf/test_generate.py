"""`generate` finds the tokens that it finds in torch; sampling follows its seed; XLA changes nothing."""

import math
import re

import numpy as np
import pytest
import tensorflow as tf
import torch

import tiny_models
from warmstart import TFAutoModelForCausalLM

PAIRS = [("bert", "gpt2"), ("roberta", "bart")]
SETTINGS = {
    "greedy": {"max_new_tokens": 8, "repetition_penalty": 1.3, "min_length": 4},
    "beams": {"max_length": 9, "num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
    "early": {
        "max_new_tokens": 7,
        "num_beams": 4,
        "early_stopping": True,
        "length_penalty": 0.6,
        "eos_token_id": [2, 9],
    },
    "groups": {"max_length": 8, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
}
CASES = 13  # batches for each pair and each of the settings: 104 in all, and one trace for all of a kind


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_tokens_are_those_of_torch(encoder, decoder, name, zoo):
    theirs, ours = zoo.pair(encoder, decoder, 0.3)
    before = len(ours.__dict__.get("_generate_traces", {}))
    for seed in range(CASES):
        batch = tiny_models.batch(1 + seed % 4, 5 + seed % 3, seed=seed)
        source = {key: batch[key] for key in ("input_ids", "attention_mask")}
        wanted = theirs.generate(**source, **SETTINGS[name]).numpy()
        found = ours.generate(**zoo.arrays(source), **SETTINGS[name]).numpy()
        assert np.array_equal(found, wanted), f"{seed}: {found} against {wanted}"
    assert len(ours._generate_traces) == before + 1


def test_prompts_left_padded(zoo):
    theirs, ours = zoo.pair("bert", "gpt2", 0.3)
    batch = tiny_models.batch(2)
    prompt = torch.tensor([[0, 1, 7], [1, 8, 9]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    given = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "decoder_input_ids": prompt,
        "decoder_attention_mask": mask,
    }
    settings = {"max_new_tokens": 5, "num_beams": 2}
    wanted = theirs.generate(**given, **settings).numpy()
    assert np.array_equal(ours.generate(**zoo.arrays(given), **settings).numpy(), wanted)


def test_scores_are_those_of_torch(zoo):
    theirs, ours = zoo.pair("bert", "gpt2", 0.3)
    ids = tiny_models.batch(2)["input_ids"]
    settings = {"max_new_tokens": 4, "num_beams": 2, "output_scores": True, "return_dict_in_generate": True}
    wanted, found = theirs.generate(ids, **settings), ours.generate(ids.numpy(), **settings)
    assert np.array_equal(found.sequences, wanted.sequences.numpy())
    assert np.array_equal(found.beam_indices, wanted.beam_indices.numpy())
    zoo.assert_close(found.sequences_scores, wanted.sequences_scores, "sequences_scores")
    assert len(found.scores) == len(wanted.scores)
    zoo.assert_close(found.scores, wanted.scores, "scores", 1e-4)


def test_inside_a_function_with_xla_and_buckets(zoo):
    _, model = zoo.pair("bert", "gpt2", 0.3)
    ids = tiny_models.batch(2)["input_ids"].numpy()
    settings = {"max_new_tokens": 4, "num_beams": 2}
    wanted = model.generate(ids, **settings).numpy()
    compiled = tf.function(lambda x: model.generate(x, jit_compile=True, **settings), jit_compile=True)
    found = compiled(tf.constant(ids)).numpy()
    assert found.shape == (2, 5) and np.array_equal(found[:, : wanted.shape[1]], wanted)
    bucketed = model.generate(ids, pad_to_multiple_of=16, jit_compile=True, **settings).numpy()
    assert np.array_equal(bucketed, wanted)


def test_the_encoder_is_a_graph_of_its_own_beside_a_compiled_search(zoo):
    """On a processor; what is returned of it is the same."""
    _, model = zoo.pair("bert", "gpt2", 0.3)
    model.forget_traces()
    source = {key: x.numpy() for key, x in tiny_models.batch(2).items() if key in ("input_ids", "attention_mask")}
    settings = {"max_new_tokens": 4, "output_hidden_states": True, "return_dict_in_generate": True}
    wanted = model.generate(**source, **settings)
    found = model.generate(**source, **settings, jit_compile=True)
    zoo.assert_close(found.encoder_hidden_states, [x.numpy() for x in wanted.encoder_hidden_states], "states")
    assert np.array_equal(found.sequences, wanted.sequences)
    model.generate(
        **source, max_new_tokens=5, output_hidden_states=True, return_dict_in_generate=True, jit_compile=True
    )
    kinds = [kind[0] for kind in model._generate_traces]
    assert len(kinds) == 4 and kinds.count("encoder") == 1  # one for all searches


def test_sampling_follows_its_seed_and_the_distribution(zoo):
    _, model = zoo.pair("bert", "gpt2")
    ids = np.repeat(tiny_models.batch(1)["input_ids"].numpy(), 400, 0)
    settings = {"max_new_tokens": 1, "do_sample": True, "top_k": 0}
    first, again = (model.generate(ids, seed=7, **settings).numpy() for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, model.generate(ids, seed=8, **settings).numpy())
    logits = model(ids[:1], decoder_input_ids=[[tiny_models.START]]).logits[0, 0]
    expected = tf.nn.softmax(logits).numpy() * 400
    counts = np.bincount(first[:, 1], minlength=len(expected))
    spread = np.sqrt(expected * (1 - expected / 400)) + 1
    assert (np.abs(counts - expected) < 5 * spread).all()


def test_a_model_without_an_encoder(zoo, tmp_path):
    folder = tiny_models.saved(tmp_path, "gpt2", decoder=True)
    from warmstart import AutoModelForCausalLM

    theirs, ours = AutoModelForCausalLM.from_pretrained(folder), TFAutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 6, 7], [0, 8, 9]])
    given = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]]), "pad_token_id": 0}
    wanted = theirs.generate(**given, max_new_tokens=5).numpy()
    found = ours.generate(ids.numpy(), attention_mask=given["attention_mask"].numpy(), pad_token_id=0, max_new_tokens=5)
    assert np.array_equal(found.numpy(), wanted)


def test_no_beam_step_copies_the_cache(zoo):
    """XLA gathers nothing the size of a layer's keys, nor copies it in the loop: beams go on by their origins."""
    _, model = zoo.pair("bert", "gpt2", 0.3)
    settings = {"max_length": 12, "num_beams": 4, "eos_token_id": 3, "jit_compile": True}
    compiled = tf.function(lambda x: model.generate(x, **settings), jit_compile=True)
    text = compiled.experimental_get_compiler_ir(tf.constant([[5, 6, 7], [8, 9, 4]]))(stage="optimized_hlo")
    spec = model.decoder.spec
    size, heads = spec.attention.head_size, spec.attention.heads
    shape = f"f32[2,{heads},{4 * 11},{size}]"
    assert f"{shape}{{3,2,1,0}} dynamic-update-slice(" in text
    results = re.findall(r"= \w+\[([\d,]+)\]\S* gather\(", text)
    assert max(math.prod(map(int, sizes.split(","))) for sizes in results) < 2 * heads * 4 * 11 * size
    copies = re.findall(rf"= {re.escape(shape)}\S* copy\(%(\S+)\)", text)
    assert all("broadcast" in name for name in copies)  # of the empty buffers, before the loop
