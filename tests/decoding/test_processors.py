"""Each logits processor against the one of `transformers`, in torch and in numpy."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart.decoding import processors, tokens, warpers
from warmstart.decoding.processors import Processor, process
from warmstart.decoding.scores import only
from warmstart.generation_config import GenerationConfig

VOCABULARY = 11
TOKEN = st.integers(0, VOCABULARY - 1)
TOKENS = st.lists(TOKEN, min_size=1, max_size=4, unique=True)
SHARE = st.floats(0.01, 0.99)
# few distinct ids, so that tokens and n-grams repeat; scores without ties, as those of a model
IDS = st.integers(1, 9).flatmap(
    lambda length: st.lists(st.lists(st.integers(0, 3), min_size=length, max_size=length), min_size=1, max_size=3)
)
SEED = st.integers(0, 2**31)
WORD = st.lists(st.integers(0, 3), min_size=1, max_size=4)

# name: how the settings are drawn, ours (xp, values), theirs (values)
PAIRS = {
    "repetition_penalty": (
        st.floats(0.1, 5),
        lambda xp, x: [tokens.repetition_penalty(xp, x)],
        lambda x: transformers.RepetitionPenaltyLogitsProcessor(x),
    ),
    "no_repeat_ngram_size": (
        st.integers(1, 4),
        lambda xp, x: [tokens.no_repeat_ngram(xp, x)],
        lambda x: transformers.NoRepeatNGramLogitsProcessor(x),
    ),
    "bad_words_ids": (
        st.lists(WORD, min_size=1, max_size=5),
        lambda xp, x: tokens.bad_words(xp, x, VOCABULARY),
        lambda x: transformers.NoBadWordsLogitsProcessor(x),
    ),
    "suppress_tokens": (
        TOKENS,
        lambda xp, x: [tokens.forbid(xp, x, VOCABULARY)],
        lambda x: transformers.SuppressTokensLogitsProcessor(x),
    ),
    "begin_suppress_tokens": (
        TOKENS,
        lambda xp, x: [only(tokens.forbid(xp, x, VOCABULARY), 3, 4)],
        lambda x: transformers.SuppressTokensAtBeginLogitsProcessor(x, 3),
    ),
    "min_length": (
        st.tuples(st.integers(0, 6), TOKENS),
        lambda xp, x: [only(tokens.forbid(xp, x[1], VOCABULARY), 0, x[0])],
        lambda x: transformers.MinLengthLogitsProcessor(x[0], x[1]),
    ),
    "forced_bos_token_id": (
        TOKEN,
        lambda xp, x: [only(tokens.force(xp, [x], VOCABULARY, "forced_bos_token_id"), 1, 2)],
        lambda x: transformers.ForcedBOSTokenLogitsProcessor(x),
    ),
    "forced_eos_token_id": (
        TOKENS,
        lambda xp, x: [only(tokens.force(xp, x, VOCABULARY, "forced_eos_token_id"), 4, 5)],
        lambda x: transformers.ForcedEOSTokenLogitsProcessor(5, x),
    ),
    "temperature": (
        st.floats(0.1, 9),
        lambda xp, x: [warpers.temperature(xp, x)],
        lambda x: transformers.TemperatureLogitsWarper(x),
    ),
    "top_k": (
        st.tuples(st.integers(1, 15), st.integers(1, 3)),
        lambda xp, x: [warpers.top_k(xp, *x)],
        lambda x: transformers.TopKLogitsWarper(x[0], min_tokens_to_keep=x[1]),
    ),
    "top_p": (
        st.tuples(SHARE, st.integers(1, 3)),
        lambda xp, x: [warpers.top_p(xp, *x)],
        lambda x: transformers.TopPLogitsWarper(x[0], min_tokens_to_keep=x[1]),
    ),
    "min_p": (
        st.tuples(SHARE, st.integers(1, 3)),
        lambda xp, x: [warpers.min_p(xp, *x)],
        lambda x: transformers.MinPLogitsWarper(x[0], min_tokens_to_keep=x[1]),
    ),
    "typical_p": (
        st.tuples(SHARE, st.integers(1, 3)),
        lambda xp, x: [warpers.typical_p(xp, *x)],
        lambda x: transformers.TypicalLogitsWarper(x[0], min_tokens_to_keep=x[1]),
    ),
    "epsilon_cutoff": (
        st.tuples(SHARE, st.integers(1, 3)),
        lambda xp, x: [warpers.epsilon_cutoff(xp, *x)],
        lambda x: transformers.EpsilonLogitsWarper(x[0], min_tokens_to_keep=x[1]),
    ),
    "eta_cutoff": (
        st.tuples(SHARE, st.integers(1, 3)),
        lambda xp, x: [warpers.eta_cutoff(xp, *x)],
        lambda x: transformers.EtaLogitsWarper(x[0], min_tokens_to_keep=x[1]),
    ),
    "renormalize_logits": (
        st.none(),
        lambda xp, x: [warpers.renormalise(xp)],
        lambda x: transformers.LogitNormalization(),
    ),
    "sequence_bias": (
        st.lists(
            st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.floats(-5, 5)), min_size=1, max_size=4
        ),
        lambda xp, x: tokens.sequence_bias(xp, x, VOCABULARY),
        lambda x: transformers.SequenceBiasLogitsProcessor([list(pair) for pair in x]),
    ),
    "exponential_decay_length_penalty": (
        st.tuples(st.integers(0, 6), st.floats(0.5, 2), TOKENS),
        lambda xp, x: [tokens.length_decay(xp, x[0], x[1], x[2], VOCABULARY, 2)],
        lambda x: transformers.ExponentialDecayLengthPenalty(x[:2], x[2], 2),
    ),
}


@pytest.fixture
def as_array(zoo):
    return zoo.as_array


@pytest.mark.parametrize("name", PAIRS)
def test_processor_equals_the_one_of_transformers(name, zoo, as_array):
    values_of, make_ours, make_theirs = PAIRS[name]

    @settings(deadline=None, max_examples=25)
    @given(values=values_of, ids=IDS, seed=SEED)
    def check(values, ids, seed):
        ids = np.array(ids)
        rows, at = ids.shape
        scores = np.random.default_rng(seed).normal(0, 3, (rows, VOCABULARY)).astype(np.float32)
        expected = make_theirs(values)(torch.tensor(ids), torch.tensor(scores)).numpy()
        # the same from a buffer with room, and garbage in it
        buffer = np.concatenate([ids, np.random.default_rng(seed).integers(0, 4, (rows, 3))], 1)
        for xp in (zoo.TorchArrays(), zoo.NumpyArrays()):
            ours = make_ours(xp, values)
            for held in (ids, buffer):
                got = process(xp, ours, as_array(xp, scores), as_array(xp, held), at)
                np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-5, atol=1e-6)
        # a position that is an array, as inside a compiled loop
        xp = zoo.StrictArrays()
        arrays = (as_array(xp, x) for x in (scores, buffer, np.array(at)))
        np.testing.assert_allclose(
            np.asarray(process(xp, make_ours(xp, values), *arrays)), expected, rtol=1e-5, atol=1e-6
        )
        # rows of different age in one batch
        ages = np.random.default_rng(seed).integers(1, at + 1, (rows, 1))
        mixed = process(xp, make_ours(xp, values), *(as_array(xp, x) for x in (scores, buffer, ages)))
        for row, age in enumerate(ages[:, 0].tolist()):
            arguments = as_array(xp, scores[row : row + 1]), as_array(xp, buffer[row : row + 1]), age
            alone = process(xp, make_ours(xp, values), *arguments)
            np.testing.assert_allclose(np.asarray(mixed)[row], np.asarray(alone)[0], rtol=1e-5, atol=1e-6)

    check()


@pytest.mark.parametrize("ages", [[1, 1], [1, 3], [2, 4], [3, 3], [4, 6]])
def test_processors_that_cannot_act_are_left_out(ages, zoo):
    xp = zoo.NumpyArrays()
    windows = [(0, float("inf")), (0, 2), (0, 3), (2, 4), (3, float("inf")), (5, 6)]
    chain = [only(tokens.forbid(xp, [token], 6), *window) for token, window in enumerate(windows)]
    arguments = np.ones((2, 6), np.float32), np.zeros((2, 8), np.int64), np.array(ages)[:, None]
    acting = processors.acting(chain, min(ages), max(ages))
    np.testing.assert_array_equal(process(xp, acting, *arguments), process(xp, chain, *arguments))
    assert len(acting) == sum(
        any(first <= age < last for age in range(ages[0], ages[1] + 1)) for first, last in windows
    )
    assert acting[0].last == float("inf") and (ages != [1, 1] or all(own.first == 0 for own in acting))


def test_window_of_a_processor(xp, as_array):
    one = Processor("one", lambda scores, ids, at: scores + 1, 2, 4)
    scores, ids = as_array(xp, np.zeros((1, 2), np.float32)), as_array(xp, np.zeros((1, 9), int))
    for position in (int, lambda at: as_array(xp, np.array(at))):
        got = [np.asarray(process(xp, [one], scores, ids, position(at))) for at in range(6)]
        assert [x[0, 0] for x in got] == [0, 0, 1, 1, 0, 0]


def test_top_p_of_equal_scores_keeps_them_all(xp, as_array):
    scores = as_array(xp, np.array([[1.0, 1.0, 0.0]], np.float32))
    kept = np.asarray(warpers.top_p(xp, 0.3).apply(scores, None, 1))
    np.testing.assert_array_equal(kept, np.array([[1, 1, -np.inf]], np.float32))


# these look at the source beside the rows' own tokens
OF_SOURCE = {
    "encoder_repetition_penalty": (
        st.floats(0.1, 5),
        tokens.encoder_repetition_penalty,
        lambda x, source: transformers.generation.EncoderRepetitionPenaltyLogitsProcessor(x, source),
    ),
    "encoder_no_repeat_ngram_size": (
        st.integers(1, 4),
        tokens.encoder_no_repeat_ngram,
        lambda x, source: transformers.EncoderNoRepeatNGramLogitsProcessor(x, source),
    ),
}


@pytest.mark.parametrize("name", OF_SOURCE)
def test_processor_of_the_source_equals_the_one_of_transformers(name, zoo, as_array):
    values_of, make_ours, make_theirs = OF_SOURCE[name]

    @settings(deadline=None, max_examples=25)
    @given(value=values_of, ids=IDS, length=st.integers(1, 8), padding=st.integers(0, 2), seed=SEED)
    def check(value, ids, length, padding, seed):
        ids, draw = np.array(ids), np.random.default_rng(seed)
        rows, at = ids.shape
        source = draw.integers(0, 4, (rows, length))
        scores = draw.normal(0, 3, (rows, VOCABULARY)).astype(np.float32)
        expected = make_theirs(value, torch.tensor(source))(torch.tensor(ids), torch.tensor(scores)).numpy()
        padded = np.concatenate([source, np.full((rows, padding), -1)], 1)
        for xp in (zoo.TorchArrays(), zoo.NumpyArrays(), zoo.StrictArrays()):
            arrays = (as_array(xp, x) for x in (scores, ids, np.array(at), padded))
            got = process(xp, [make_ours(xp, value)], *arrays)
            np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-5, atol=1e-6)

    check()


def test_what_the_groups_before_chose_is_made_less_likely(xp, as_array):
    scores, chosen = np.zeros((2, 5), np.float32), np.array([[1, 1, 4], [0, 2, 3]])
    arrays = (as_array(xp, x) for x in (scores, np.zeros((2, 3), int)))
    got = process(xp, [tokens.diversity(xp, 0.5)], *arrays, 3, None, as_array(xp, chosen))
    assert np.asarray(got).tolist() == [[0, -1, 0, 0, -0.5], [-0.5, 0, -0.5, -0.5, 0]]


def test_scores_that_are_no_numbers_or_infinite_become_finite(xp, as_array):
    scores = np.array([[np.nan, np.inf, -np.inf, 2.0]], np.float32)
    theirs = transformers.InfNanRemoveLogitsProcessor()(None, torch.tensor(scores)).numpy()
    got = process(xp, [warpers.remove_invalid(xp)], as_array(xp, scores), as_array(xp, np.zeros((1, 1), int)), 1)
    np.testing.assert_array_equal(np.asarray(got), theirs)


def test_an_end_token_that_is_forbidden_stays_so_however_long_the_row(xp, as_array):
    """The oracle adds infinity times a number there, and gets none."""
    decay = tokens.length_decay(xp, 1, 1.5, [1], 3, 1)
    scores = as_array(xp, np.array([[0.0, -np.inf, 1.0]], np.float32))
    got = process(xp, [decay], scores, as_array(xp, np.zeros((1, 9), int)), 9)
    np.testing.assert_array_equal(np.asarray(got), np.array([[0, -np.inf, 1]], np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_bias", {(3, 11): 1.0}),
        ("suppress_tokens", [3, 11]),
        ("bad_words_ids", [[1, 11]]),
        ("forced_eos_token_id", 11),
    ],
)
def test_ids_outside_the_vocabulary_are_named(name, value, zoo):
    config = GenerationConfig(**{name: value}, eos_token_id=2, pad_token_id=0)
    plan = zoo.resolve(config, {}, prompt_length=1, encoder_decoder=True)
    with pytest.raises(ValueError, match=rf"{name} has token ids outside the vocabulary: \[11\].*0 to 10"):
        processors.processors_for(zoo.TorchArrays(), config, plan, VOCABULARY)


@pytest.mark.parametrize(
    ("setting", "message"), [({"temperature": 0.0}, "temperature=0.0"), ({"top_k": -1}, "top_k=-1")]
)
def test_sampling_settings_that_make_no_sense(setting, message, zoo):
    config = GenerationConfig(**setting, do_sample=True, eos_token_id=2, pad_token_id=0)
    plan = zoo.resolve(config, {}, prompt_length=1, encoder_decoder=True)
    with pytest.raises(ValueError, match=message):
        processors.processors_for(zoo.TorchArrays(), config, plan, VOCABULARY)


def test_order_is_that_of_transformers(zoo):
    config = GenerationConfig(
        repetition_penalty=1.2,
        no_repeat_ngram_size=2,
        bad_words_ids=[[5], [2], [5, 6]],
        min_length=4,
        forced_bos_token_id=3,
        forced_eos_token_id=2,
        sequence_bias={(4,): 1.0},
        num_beams=4,
        num_beam_groups=2,
        diversity_penalty=1.0,
        encoder_repetition_penalty=1.5,
        encoder_no_repeat_ngram_size=2,
        remove_invalid_values=True,
        exponential_decay_length_penalty=(2, 1.1),
        renormalize_logits=True,
        typical_p=0.9,
        epsilon_cutoff=0.01,
        eta_cutoff=0.01,
        suppress_tokens=[7],
        begin_suppress_tokens=[8],
        temperature=0.5,
        top_p=0.9,
        min_p=0.1,
        eos_token_id=2,
        pad_token_id=0,
    )
    plan = zoo.resolve(config, {}, prompt_length=1, encoder_decoder=True)
    plan = dataclasses.replace(plan, sample=True)  # groups are not sampled; here stands the order of all
    same = [Processor(name, lambda scores, ids, at: scores) for name in ("prefix", "own")]
    chain = processors.processors_for(zoo.TorchArrays(), config, plan, VOCABULARY, prefix=same[0], custom=same[1:])
    assert [x.name for x in chain] == [
        "sequence_bias",
        "diversity_penalty",
        "encoder_repetition_penalty",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "bad_words_ids",
        "eos_token_id",
        "prefix",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "own",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "renormalize_logits",
    ]
