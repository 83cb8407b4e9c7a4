"""The settings of `generate` that look back, aside or at more than tokens, in JAX against ours in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from warmstart import AutoModelForCausalLM, FlaxAutoModelForCausalLM
from warmstart.decoding.outputs import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput

PROMPT = np.array([[2, 5, 6], [1, 2, 7], [2, 8, 9], [1, 1, 2]])
PROMPTED = {"decoder_input_ids": PROMPT, "decoder_attention_mask": (PROMPT != 1).astype(np.int64)}
LONG = np.array([[2, 5, 6], [2, 7, 7], [2, 8, 9], [2, 9, 4]])
SETTINGS = {
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "contrastive-prompt": {"penalty_alpha": 0.4, "top_k": 3, **PROMPTED},
    "constrained": {"num_beams": 3, "force_words_ids": [[20, 21], [[22], [23, 24]]], "num_return_sequences": 2},
    "guided": {"guidance_scale": 1.8},
    "guided-beams": {"guidance_scale": 1.5, "num_beams": 3, "negative_prompt_ids": np.array([[9, 8, 7, 6]])},
    "starts": {"decoder_start_token_id": [2, 5, 6, 7], "num_beams": 2},
    "prefix": {"prefix_allowed_tokens_fn": lambda source, ids: [4 + source, 10 + len(ids), 3], "num_beams": 2},
}


class Letters:
    """A tokenizer whose tokens are letters."""

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(ord("a") + int(i) % 26) for i in ids)


def batch(sources, seed=0):
    return sources(4, 8, seed)


def tensors(settings):
    return {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in settings.items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_same_tokens_as_in_torch(name, both, sources, trimmed):
    ours, flax, _ = both
    ids, mask = batch(sources)
    settings = {"max_length": 9, **SETTINGS[name]}
    with torch.no_grad():
        wanted = ours.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **tensors(settings))
    found = flax.generate(ids, attention_mask=mask, **settings).sequences
    assert trimmed(found) == trimmed(wanted)
    if name == "constrained":
        assert all(any(word in str(row) for word in ("20, 21", "22", "23, 24")) for row in trimmed(found))


OUTPUTS = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
STATES = {"output_attentions": True, "output_hidden_states": True}


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, GenerateEncoderDecoderOutput),
        (
            {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.5, "decoder_input_ids": LONG},
            GenerateBeamEncoderDecoderOutput,
        ),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, GenerateBeamEncoderDecoderOutput),
    ],
    ids=["greedy", "beams", "groups"],
)
def test_outputs_of_each_step(settings, kind, pair, sources, assert_close):
    ours, flax, _ = pair()
    ids, mask = batch(sources, 1)
    settings = {"max_length": 7, "repetition_penalty": 1.3, **OUTPUTS, **STATES, **settings}
    with torch.no_grad():
        wanted = ours.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **tensors(settings))
    found = flax.generate(ids, attention_mask=mask, **settings)
    assert type(found) is type(wanted) is kind
    assert np.array_equal(found.sequences, wanted.sequences)
    for name, value in wanted.items():
        if name not in ("sequences", "past_key_values"):
            assert_close(found[name], value, name)
    indices = [x.get("beam_indices") for x in (found, wanted)]
    scores = flax.compute_transition_scores(found.sequences, found.scores, indices[0])
    assert_close(scores, ours.compute_transition_scores(wanted.sequences, wanted.scores, indices[1]), "tokens")
    assert int(found.past_key_values.length) >= len(found.scores)


def test_outputs_inside_jit_are_of_all_steps(both, sources):
    _, flax, _ = both
    ids, mask = batch(sources, 1)
    call = jax.jit(lambda ids: flax.generate(ids, attention_mask=mask, max_length=7, **OUTPUTS))
    found, plain = call(ids), flax.generate(ids, attention_mask=mask, max_length=7, **OUTPUTS)
    assert len(found.scores) == 6 and found.sequences.shape == (4, 7)
    assert np.array_equal(found.sequences[:, : plain.sequences.shape[1]], plain.sequences)


def test_strings_end_rows(both, sources, trimmed):
    ours, flax, _ = both
    ids, mask = batch(sources)
    lengths = {"min_length": 7, "max_length": 9}
    free = trimmed(flax.generate(ids, attention_mask=mask, **lengths).sequences)
    longest = max(range(4), key=lambda row: len(free[row]))
    string = Letters().decode(free[longest][2:4])
    settings = {"stop_strings": [string], "tokenizer": Letters(), **lengths}
    wanted = ours.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **settings)
    found = trimmed(flax.generate(ids, attention_mask=mask, **settings).sequences)
    assert found == trimmed(wanted) and found[longest] == free[longest][:4] != free[longest]


def test_time_ends_all_rows(both, sources):
    _, flax, _ = both
    ids, mask = batch(sources)
    settings = {"min_length": 9, "max_length": 9}
    short = flax.generate(ids, attention_mask=mask, max_time=0.001, **settings, **OUTPUTS)
    assert short.sequences.shape[1] < 9 and len(short.scores) == short.sequences.shape[1] - 1
    assert flax.generate(ids, attention_mask=mask, max_time=600.0, **settings, **OUTPUTS).sequences.shape[1] == 9


def test_own_rule_for_stopping(both, sources):
    _, flax, _ = both
    ids, mask = batch(sources)

    def after_four(ids, at):
        return jnp.full(len(ids), at >= 4)

    found = flax.generate(ids, attention_mask=mask, max_length=9, stopping_criteria=[after_four], suppress_tokens=[1])
    assert (np.asarray(found.sequences)[:, 4:] == 1).all()  # filled
    with pytest.raises(ValueError, match=r"the stopping rule .* must return booleans"):
        flax.generate(ids, attention_mask=mask, max_length=9, stopping_criteria=lambda ids, at: at)


def test_seed_is_a_key(both, sources):
    _, flax, _ = both
    ids, mask = batch(sources)
    settings = {"attention_mask": mask, "max_length": 9, "do_sample": True}
    one = flax.generate(ids, seed=7, **settings).sequences
    assert np.array_equal(one, flax.generate(ids, prng_key=jax.random.key(7), **settings).sequences)
    with pytest.raises(ValueError, match="prng_key and seed both say"):
        flax.generate(ids, seed=7, prng_key=jax.random.key(7), **settings)


def test_guided_causal_model_and_its_negative_prompt(tmp_path, trimmed):
    import tiny_models

    config = tiny_models.config(
        "llama", initializer_range=0.7, num_hidden_layers=1, bos_token_id=2, eos_token_id=3, pad_token_id=1
    )
    ours = tiny_models.spread_out(AutoModelForCausalLM(config), 0.5).eval()
    ours.save_pretrained(tmp_path)
    flax = FlaxAutoModelForCausalLM.from_pretrained(tmp_path)
    ids = np.array([[1, 1, 5, 6], [7, 8, 9, 10]])
    for more in ({}, {"negative_prompt_ids": np.array([[12, 13, 14]])}):
        settings = {"max_length": 9, "guidance_scale": 1.7, **more}
        wanted = ours.generate(torch.tensor(ids), **tensors(settings))
        assert trimmed(flax.generate(ids, **settings).sequences) == trimmed(wanted)


REFUSED = [
    ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens is not supported by generate.. in JAX: each row"),
    ({"assistant_model": 1}, "assistant_model is not supported"),
    ({"streamer": 1}, "streamer is not supported by generate.. in JAX: a compiled search gives"),
    ({"stop_strings": "a"}, "pass the decoder's tokenizer"),
    ({"force_words_ids": [[3]], "num_beams": 2}, "the constraints hold an end token"),
    ({"force_words_ids": [[99]], "num_beams": 2}, "outside the vocabulary of 37"),
    ({"negative_prompt_ids": PROMPT}, "set it to a number above 1"),
    ({"penalty_alpha": 0.5, "top_k": 4, **OUTPUTS, **STATES}, "reads all candidates"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_is_refused(settings, message, both, sources):
    ids, mask = batch(sources)
    with pytest.raises(ValueError, match=message):
        both[1].generate(ids, attention_mask=mask, max_length=9, **settings)


def test_a_prefix_function_that_allows_nothing_is_an_error(both, sources):
    ids, mask = batch(sources)
    with pytest.raises(Exception, match="prefix_allowed_tokens_fn allows no token for source 0 at 1"):
        both[1].generate(
            ids, attention_mask=mask, max_length=9, prefix_allowed_tokens_fn=lambda *_: []
        ).sequences.block_until_ready()


def test_time_has_no_begin_inside_jit(both, sources):
    ids, mask = batch(sources)
    with pytest.raises(ValueError, match="inside jit there is none"):
        jax.jit(lambda ids: both[1].generate(ids, attention_mask=mask, max_length=9, max_time=1.0).sequences)(ids)


def _spoils(value):
    """A processor that leaves no score in the second row, or half of them no numbers, from the second new token on."""

    def spoil(ids, scores, at):
        where = jnp.arange(scores.shape[1]) >= (scores.shape[1] // 2 if np.isnan(value) else 0)
        return jnp.where(where & (jnp.arange(len(scores)) == 1)[:, None] & (at >= 2), value, scores)

    return spoil


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_a_row_without_a_choice_is_an_error(value, beams, both, sources):
    """A compiled loop cannot raise: the error comes after it; inside `jit` the row ends there."""
    _, flax, _ = both
    ids, mask = batch(sources)
    given = {"attention_mask": mask, "logits_processor": [_spoils(value)], "max_length": 7, "eos_token_id": None}
    given |= {"num_beams": beams, "pad_token_id": 1}
    if beams == 1 or np.isnan(value):
        message = "row 1 at position 2 are no numbers" if np.isnan(value) else "all tokens are forbidden in row 1 at"
        with pytest.raises(ValueError, match=message):
            flax.generate(ids, **given)
    inside = np.asarray(jax.jit(lambda ids: flax.generate(ids, **given).sequences)(ids))
    if beams == 1:
        assert (inside[1, 2:] == 1).all() and (inside[[0, 2, 3], 2:] != 1).any(1).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_settings_that_leave_no_token_are_the_error_of_torch(beams, both, sources):
    ours, flax, _ = both
    ids, mask = batch(sources)
    given = {"max_length": 7, "num_beams": beams, "suppress_tokens": list(range(flax.config.decoder.vocab_size))}
    with pytest.raises(ValueError, match=r"all tokens are forbidden in row 0|no sequence is possible") as wanted:
        ours.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **given)
    with pytest.raises(ValueError) as found:
        flax.generate(ids, attention_mask=mask, **given)
    assert str(found.value) == str(wanted.value)
