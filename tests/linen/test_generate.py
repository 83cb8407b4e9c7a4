"""`generate` in JAX against ours in torch, token for token, and what it promises of compiling and of its cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from warmstart import (
    EncoderDecoderModel,
    FlaxAutoModelForCausalLM,
    FlaxEncoderDecoderModel,
    FlaxLogitsProcessorList,
)
from warmstart.flax.generation.search import search

SOURCES = 28  # for each of the settings: their number times this many random cases
SETTINGS = {
    "greedy": {"max_length": 9},
    "greedy-rules": {
        "max_length": 10,
        "min_length": 5,
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.5,
        "bad_words_ids": [[7], [9, 10]],
        "suppress_tokens": [11],
        "encoder_no_repeat_ngram_size": 2,
    },
    "beams": {"max_length": 9, "num_beams": 4, "num_return_sequences": 2},
    "beams-rules": {
        "max_length": 10,
        "num_beams": 3,
        "length_penalty": 2.0,
        "early_stopping": True,
        "min_new_tokens": 3,
        "no_repeat_ngram_size": 3,
        "forced_eos_token_id": 3,
    },
    "beams-never": {"max_length": 8, "num_beams": 2, "early_stopping": "never", "length_penalty": -1.0},
    "groups": {"max_length": 8, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_same_tokens_as_in_torch(name, both, sources, trimmed):
    ours, flax, _ = both
    ids, mask = sources(SOURCES, seed=len(name))
    settings = SETTINGS[name]
    with torch.no_grad():
        wanted = ours.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **settings)
    found = flax.generate(ids, attention_mask=mask, **settings)
    assert trimmed(found.sequences) == trimmed(wanted)
    assert found.sequences.shape == (SOURCES * settings.get("num_return_sequences", 1), settings["max_length"])
    assert (found.scores is None) == ("num_beams" not in settings)
    if name == "greedy":
        lengths = {len(row) for row in trimmed(wanted)}
        assert len(lengths) > 2  # some end early: the cases differ


def test_there_are_a_hundred_cases():
    assert SOURCES * len(SETTINGS) >= 100


@pytest.mark.parametrize("beams", [1, 3])
def test_prompts_of_several_tokens(beams, both, sources, trimmed):
    ours, flax, _ = both
    ids, mask = sources(6)
    prompt = np.array([[2, 5, 6], [1, 2, 7], [2, 8, 9], [1, 1, 2], [2, 5, 5], [2, 6, 4]])
    prompt_mask = (prompt != 1).astype(np.int64)
    inputs = {"attention_mask": mask, "decoder_input_ids": prompt, "decoder_attention_mask": prompt_mask}
    wanted = ours.generate(
        torch.tensor(ids), num_beams=beams, max_length=9, **{k: torch.tensor(x) for k, x in inputs.items()}
    )
    found = flax.generate(ids, num_beams=beams, max_length=9, **inputs)
    assert trimmed(found.sequences) == trimmed(wanted)


def test_causal_model_goes_on_from_padded_prompts(tmp_path, trimmed):
    import tiny_models
    from warmstart import AutoModelForCausalLM

    config = tiny_models.config("llama", initializer_range=0.7, bos_token_id=2, eos_token_id=3, pad_token_id=1)
    ours = tiny_models.spread_out(AutoModelForCausalLM(config), 0.5).eval()
    ours.save_pretrained(tmp_path)
    flax = FlaxAutoModelForCausalLM.from_pretrained(tmp_path)
    ids = np.array([[1, 1, 5, 6], [7, 8, 9, 10], [1, 20, 21, 22]])
    for settings in ({}, {"num_beams": 3}):
        wanted = ours.generate(torch.tensor(ids), max_length=9, **settings)
        found = flax.generate(ids, max_length=9, **settings)
        assert trimmed(found.sequences) == trimmed(wanted)


def test_a_second_call_does_not_compile_and_buckets_compile_few_times(both, sources):
    _, flax, _ = both
    search.clear_cache()
    for length in (3, 5, 6, 8):
        ids, mask = sources(2, length)
        flax.generate(ids, attention_mask=mask, max_length=5, pad_to_multiple_of=8)
    assert search._cache_size() == 1
    flax.generate(ids + 0, attention_mask=mask, max_length=5)
    assert search._cache_size() == 1  # the same length, with nothing to pad
    flax.generate(ids, attention_mask=mask, max_length=6)
    assert search._cache_size() == 2


def test_buckets_change_no_token(both, sources):
    _, flax, _ = both
    ids, mask = sources(5, 6)
    plain = flax.generate(ids, attention_mask=mask, max_length=5)
    padded = flax.generate(ids, attention_mask=mask, max_length=5, pad_to_multiple_of=8)
    assert plain.sequences.tolist() == padded.sequences.tolist()


def test_goes_to_the_longest_length_without_an_end_token(both, sources):
    _, _, folder = both
    flax = FlaxEncoderDecoderModel.from_pretrained(folder, eos_token_id=None, pad_token_id=None)
    flax.config.eos_token_id = flax.config.pad_token_id = None
    ids, mask = sources(2, 8)
    found = flax.generate(ids, attention_mask=mask, max_length=6, suppress_tokens=[0])
    assert found.sequences.shape == (2, 6) and (np.asarray(found.sequences) > 0).all()


def test_replaced_parameters_are_used(both, sources):
    _, flax, _ = both
    ids, mask = sources(2, 8)
    zero = jax.tree.map(jnp.zeros_like, flax.params)
    found = flax.generate(ids, attention_mask=mask, max_length=5, params=zero)
    assert (np.asarray(found.sequences)[:, 1:] == 0).all()  # all logits are equal: the first token wins


def test_sampling_follows_its_key_and_its_distribution(both, sources):
    _, flax, _ = both
    ids, mask = sources(1, 8)
    ids, mask = np.repeat(ids, 400, 0), np.repeat(mask, 400, 0)

    def drawn(seed):
        return flax.generate(
            ids, attention_mask=mask, max_length=2, do_sample=True, top_k=3, prng_key=jax.random.key(seed)
        ).sequences

    first = np.asarray(drawn(0))[:, 1]
    assert (first == np.asarray(drawn(0))[:, 1]).all() and (first != np.asarray(drawn(1))[:, 1]).any()
    logits = np.asarray(flax(ids[:1], mask[:1], np.array([[2]])).logits)[0, 0]
    best = np.argsort(-logits)[:3]
    weights = np.exp(logits[best] - logits[best].max())
    shares = [(first == token).mean() for token in best]
    assert set(first) <= set(best.tolist())
    assert np.abs(np.array(shares) - weights / weights.sum()).max() < 0.1


def test_beam_sampling_draws_different_beams(both, sources):
    _, flax, _ = both
    ids, mask = sources(3, 8)
    options = {"max_length": 6, "num_beams": 3, "num_return_sequences": 3, "do_sample": True}
    found = flax.generate(ids, attention_mask=mask, **options, prng_key=jax.random.key(4))
    rows = found.sequences.reshape(3, 3, 6).tolist()
    assert all(len({tuple(row) for row in group}) == 3 for group in rows)


def test_own_processor_is_traced(both, sources):
    _, flax, _ = both
    ids, mask = sources(2, 8)

    def only_even(ids, scores, at):
        return jnp.where(jnp.arange(scores.shape[-1]) % 2 == 0, scores, -jnp.inf)

    for given in (only_even, FlaxLogitsProcessorList([only_even])):
        found = flax.generate(ids, attention_mask=mask, max_length=5, logits_processor=given, eos_token_id=3)
        assert (np.asarray(found.sequences)[:, 1:] % 2 == 0).all()


def test_generate_runs_inside_jit(both, sources):
    _, flax, _ = both
    ids, mask = sources(2, 8)

    @jax.jit
    def inside(params, ids, mask):
        return flax.generate(ids, attention_mask=mask, max_length=5, params=params).sequences

    wanted = flax.generate(ids, attention_mask=mask, max_length=5).sequences
    assert inside(flax.params, ids, mask).tolist() == wanted.tolist()


def test_cache_is_filled_step_by_step_with_the_source_held_once(both, assert_close, sources):
    """Steps over `init_cache` give the logits of one pass; keys and values of the source are as many as sources."""
    _, flax, _ = both
    ids, mask = sources(2, 8)
    targets = np.array([[2, 5, 6, 7], [2, 8, 9, 4]] * 2)
    encoded = flax.encode(ids, mask)
    cache = flax.init_cache(4, 6, encoded)
    assert cache.layers[0].source[0].shape[0] == 2
    whole = flax.decode(targets, encoded, mask)
    for at in range(4):
        output = flax.decode(targets[:, at : at + 1], encoder_attention_mask=mask, past_key_values=cache)
        cache = output.past_key_values
        assert_close(output.logits[:, 0], whole.logits[:, at], f"step {at}", 2e-5)
    assert int(cache.length) == 4


def test_distances_over_shared_buffers_are_those_of_places():
    """The keys that beams have at one position stand side by side, and all of them are equally far."""
    from warmstart.flax.cache import KeyValueCache, LayerCache
    from warmstart.flax.masks import leaning

    held = jnp.zeros((1, 1, 12, 4))
    cache = KeyValueCache((LayerCache(held, held),), jnp.int32(3), jnp.zeros((2, 6), jnp.int32))
    assert leaning(jnp.ones(1), 1, cache)[0, 0, 0].tolist() == [-abs(3 - at // 2) for at in range(12)]


def test_no_beam_step_copies_the_cache(both, sources):
    """In the loop nothing the size of a layer's keys is gathered: beams go on by their origins."""
    from warmstart.decoding.settings import Plan
    from warmstart.flax.generation.search import Search
    from warmstart.generation_config import GenerationConfig

    _, flax, _ = both
    config = GenerationConfig(num_beams=4, eos_token_id=3, pad_token_id=1)
    plan = Plan(
        prompt_length=1,
        max_length=12,
        min_length=0,
        beams=4,
        sequences=1,
        sample=False,
        eos=(3,),
        pad=1,
        strategy="beams",
    )
    wanted = Search(flax.module, plan, "", (), config)
    ids, mask = (jnp.asarray(x) for x in sources(2, 8))
    arrays = dict.fromkeys(("inputs_embeds", "token_type_ids", "position_ids", "prompt_mask"))
    arrays |= {"input_ids": ids, "attention_mask": mask, "prompt": jnp.full((2, 1), 2)}
    text = str(jax.make_jaxpr(search, static_argnums=0)(wanted, flax.params, arrays, jax.random.key(0)))
    size = flax.module.decoder_spec.attention.head_size
    gathers = [line for line in text.splitlines() if "= gather" in line.replace("[", " ")]
    assert "dynamic_update_slice" in text
    assert not any(f",44,{size}]" in line for line in gathers)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_lenght": 5}, "did you mean 'max_length'"),
        ({"max_length": 99}, "more than the 40 positions"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of=0"),
        ({"decoder_input_ids": [[1]]}, "decoder_input_ids is a list"),
    ],
)
def test_what_cannot_be_is_refused(settings, message, both, sources):
    ids, mask = sources(2, 8)
    with pytest.raises(ValueError, match=message):
        both[1].generate(ids, attention_mask=mask, **settings)


def test_rules_that_look_at_the_source_need_its_ids(both, sources):
    _, flax, _ = both
    ids, mask = sources(2, 8)
    given = {"encoder_outputs": flax.encode(ids, mask), "attention_mask": mask, "max_length": 5}
    assert flax.generate(**given).sequences.tolist() == flax.generate(ids, **given).sequences.tolist()
    with pytest.raises(ValueError, match="encoder_no_repeat_ngram_size looks at the source's tokens"):
        flax.generate(**given, encoder_no_repeat_ngram_size=2)


def test_folder_generates_the_same_in_torch(both, tmp_path, sources, trimmed):
    """Saved in Flax, opened in torch: the same tokens."""
    _, flax, _ = both
    ids, mask = sources(3, 8)
    flax.save_pretrained(tmp_path)
    again = EncoderDecoderModel.from_pretrained(tmp_path)
    wanted = again.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), max_length=5)
    assert trimmed(flax.generate(ids, attention_mask=mask, max_length=5).sequences) == trimmed(wanted)
