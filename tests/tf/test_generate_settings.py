"""The settings of `generate` that look back, aside or at more than tokens, in TensorFlow against ours in torch."""

import numpy as np
import pytest
import tensorflow as tf
import torch

import tiny_models
from warmstart import AutoModelForCausalLM, TFAutoModelForCausalLM, TFEncoderDecoderModel
from warmstart.decoding.outputs import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput

PROMPTED = {
    "decoder_input_ids": np.array([[0, 1, 7], [1, 8, 9], [0, 0, 1]]),
    "decoder_attention_mask": np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1]]),
}
LONG = {"decoder_input_ids": np.array([[1, 5, 6], [1, 7, 7], [1, 8, 9]])}
SETTINGS = {
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "contrastive-prompt": {"penalty_alpha": 0.4, "top_k": 3, **PROMPTED},
    "constrained": {"num_beams": 3, "force_words_ids": [[20, 21], [[22], [23, 24]]], "num_return_sequences": 2},
    "guided": {"guidance_scale": 1.8},
    "guided-beams": {"guidance_scale": 1.5, "num_beams": 3, "negative_prompt_ids": np.array([[9, 8, 7, 6]])},
    "starts": {"decoder_start_token_id": [1, 5, 6], "num_beams": 2},
    "prefix": {"prefix_allowed_tokens_fn": lambda source, ids: [4 + source, 10 + len(ids), 2], "num_beams": 2},
}
OUTPUTS = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
STATES = {"output_attentions": True, "output_hidden_states": True}


class Letters:
    """A tokenizer whose tokens are letters."""

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(ord("a") + int(i) % 26) for i in ids)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A pair of one layer on each side, in torch and in TensorFlow."""
    folder = tmp_path_factory.mktemp("pair")
    theirs = tiny_models.shallow("bert", "gpt2")
    theirs.save_pretrained(folder)
    return theirs, TFEncoderDecoderModel.from_pretrained(folder)


def source(seed=0):
    batch = tiny_models.batch(3, seed=seed)
    return {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}


def tensors(settings):
    return {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in settings.items()}


@pytest.mark.parametrize("size", [1, 2, 7])
def test_pieces_of_the_source_do_not_come_again(size, both):
    theirs, ours = both
    lengths = {"min_length": 9, "max_length": 9}
    given = {"input_ids": ours.generate(**source(), **lengths).numpy()[:, 2:8]}  # what it likes to write
    wanted = theirs.generate(**tensors(given), **lengths, encoder_no_repeat_ngram_size=size)
    found = ours.generate(**given, **lengths, encoder_no_repeat_ngram_size=size)
    assert np.array_equal(found, wanted)
    assert np.array_equal(found, ours.generate(**given, **lengths)) == (size == 7)  # longer than the source


@pytest.mark.parametrize("name", SETTINGS)
def test_same_tokens_as_in_torch(name, both):
    theirs, ours = both
    for seed in range(3):
        settings = {"max_length": 9, **source(seed), **SETTINGS[name]}
        wanted = theirs.generate(**tensors(settings)).numpy()
        found = ours.generate(**settings).numpy()
        assert np.array_equal(found, wanted), f"{seed}: {found} against {wanted}"
    if name == "constrained":
        assert all(any(word in str(row.tolist()) for word in ("20, 21", "22", "23, 24")) for row in found)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, GenerateEncoderDecoderOutput),
        ({"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.5, **LONG}, GenerateBeamEncoderDecoderOutput),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, GenerateBeamEncoderDecoderOutput),
    ],
    ids=["greedy", "beams", "groups"],
)
def test_outputs_of_each_step(settings, kind, both, zoo):
    theirs, ours = both
    settings = {"max_length": 7, "repetition_penalty": 1.3, **source(1), **OUTPUTS, **STATES, **settings}
    wanted, found = theirs.generate(**tensors(settings)), ours.generate(**settings)
    assert type(found) is type(wanted) is kind
    assert np.array_equal(found.sequences, wanted.sequences)
    for name, value in wanted.items():
        if name not in ("sequences", "past_key_values"):
            zoo.assert_close(found[name], value, name, 1e-4)
    indices = [x.get("beam_indices") for x in (found, wanted)]
    scores = ours.compute_transition_scores(found.sequences, found.scores, indices[0])
    zoo.assert_close(
        scores, theirs.compute_transition_scores(wanted.sequences, wanted.scores, indices[1]), "tokens", 1e-4
    )
    cache = found.past_key_values
    assert int(cache.get_seq_length()) == cache[0][0].shape[2] >= len(found.scores)


@pytest.mark.parametrize("beams", [1, 2])
def test_the_cache_that_is_returned_goes_on(beams, both, zoo):
    _, ours = both
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": beams, "num_return_sequences": beams}
    found = ours.generate(**source(1), **settings, return_dict_in_generate=True)
    new = np.full((3 * beams, 1), 9)
    given = {name: np.repeat(x, beams, 0) for name, x in source(1).items()}
    whole = ours(**given, decoder_input_ids=np.concatenate([found.sequences[:, :-1], new], 1)).logits
    states, mask = ours.encode(**source(1)), source(1)["attention_mask"]
    rest = ours(
        encoder_outputs=states, attention_mask=mask, decoder_input_ids=new, past_key_values=found.past_key_values
    )
    zoo.assert_close(rest.logits[:, 0], whole[:, -1], "logits", 2e-5)


def test_strings_end_rows(both):
    theirs, ours = both
    free = ours.generate(**source(), max_length=9, min_length=9).numpy()
    string = Letters().decode(free[0][2:4])
    settings = {"stop_strings": [string], "tokenizer": Letters(), "max_length": 9, "min_length": 9}
    found = ours.generate(**source(), **settings).numpy()
    assert np.array_equal(found, theirs.generate(**tensors(source()), **settings).numpy())
    assert (found[0][4:] == 0).all() and not (free[0][4:] == 0).all()


def test_time_ends_all_rows(both):
    _, ours = both
    settings = {**source(), "min_length": 30, "max_length": 30, **OUTPUTS}
    short = ours.generate(max_time=1e-9, **settings)
    assert short.sequences.shape[1] < 30 and len(short.scores) == short.sequences.shape[1] - 1
    assert ours.generate(max_time=600.0, **settings).sequences.shape[1] == 30


def test_own_rule_for_stopping(both):
    _, ours = both

    def after_four(ids, held):
        return tf.fill(tf.shape(ids)[:1], held >= 4)

    found = ours.generate(**source(), max_length=9, min_length=9, stopping_criteria=[after_four], jit_compile=True)
    assert found.shape == (3, 4)
    with pytest.raises(ValueError, match=r"the stopping rule .* must return booleans"):
        ours.generate(**source(), max_length=9, stopping_criteria=lambda ids, held: held)


def test_guided_causal_model_and_its_negative_prompt(tmp_path):
    config = tiny_models.config("llama", num_hidden_layers=1, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    theirs = tiny_models.spread_out(AutoModelForCausalLM(config), 0.5).eval()
    theirs.save_pretrained(tmp_path)
    ours = TFAutoModelForCausalLM.from_pretrained(tmp_path)
    ids = np.array([[0, 0, 5, 6], [7, 8, 9, 10]])
    for more in ({}, {"negative_prompt_ids": np.array([[12, 13, 14]])}):
        settings = {"max_length": 9, "guidance_scale": 1.7, **more}
        wanted = theirs.generate(torch.tensor(ids), **tensors(settings)).numpy()
        assert np.array_equal(ours.generate(ids, **settings).numpy(), wanted)


REFUSED = [
    ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens is not supported by generate.. in TensorFlow: each"),
    ({"assistant_model": 1}, "assistant_model is not supported"),
    ({"streamer": object()}, "streamer is not supported by generate.. in TensorFlow: a graph gives its tokens"),
    ({"stop_strings": "a"}, "pass the decoder's tokenizer"),
    ({"force_words_ids": [[2]], "num_beams": 2}, "the constraints hold an end token"),
    ({"force_words_ids": [[99]], "num_beams": 2}, "outside the vocabulary of 37"),
    ({"negative_prompt_ids": PROMPTED["decoder_input_ids"]}, "set it to a number above 1"),
    ({"penalty_alpha": 0.5, "top_k": 4, **OUTPUTS, **STATES}, "reads all candidates"),
    (
        {"max_time": 1.0, "jit_compile": True},
        "max_time asks Python, or the clock, at each step, which needs jit_compile",
    ),
    ({"prefix_allowed_tokens_fn": lambda *_: [5], "jit_compile": True}, "prefix_allowed_tokens_fn asks Python"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_is_refused(settings, message, both):
    with pytest.raises(ValueError, match=message):
        both[1].generate(**source(), max_length=9, **settings)


def test_a_prefix_function_that_allows_nothing_is_an_error(both):
    with pytest.raises(Exception, match="prefix_allowed_tokens_fn allows no token for source 0 at 1"):
        both[1].generate(**source(), max_length=9, prefix_allowed_tokens_fn=lambda *_: [])


def _spoils(value):
    """A processor that leaves no score in the second row, or half of them no numbers, from the second new token on."""

    def spoil(ids, scores, at):
        where = tf.range(tf.shape(scores)[1]) >= (scores.shape[1] // 2 if np.isnan(value) else 0)
        return tf.where(where & (tf.range(tf.shape(scores)[0]) == 1)[:, None] & (at >= 2), value, scores)

    return spoil


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_a_row_without_a_choice_is_an_error(value, beams, both):
    """A graph cannot raise: the error comes after it; inside a `tf.function` the row ends there."""
    _, ours = both
    given = {"logits_processor": [_spoils(value)], "max_length": 7, "eos_token_id": None, "pad_token_id": 0}
    given["num_beams"] = beams
    if beams == 1 or np.isnan(value):
        message = "row 1 at position 2 are no numbers" if np.isnan(value) else "all tokens are forbidden in row 1 at"
        with pytest.raises(ValueError, match=message):
            ours.generate(**source(), **given)
        with pytest.raises(ValueError, match=message):
            ours.generate(**source(), **given, jit_compile=True)
    inside = tf.function(lambda x: ours.generate(x, **given))(tf.constant(source()["input_ids"])).numpy()
    if beams == 1:
        assert (inside[1, 2:] == 0).all() and (inside[[0, 2], 2:] != 0).any(1).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_settings_that_leave_no_token_are_the_error_of_torch(beams, both):
    theirs, ours = both
    given = {"max_length": 7, "num_beams": beams, "suppress_tokens": list(range(ours.config.decoder.vocab_size))}
    with pytest.raises(ValueError, match=r"all tokens are forbidden in row 0|no sequence is possible") as wanted:
        theirs.generate(**tensors(source()), **given)
    with pytest.raises(ValueError) as found:
        ours.generate(**source(), **given)
    assert str(found.value) == str(wanted.value)
