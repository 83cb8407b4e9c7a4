"""Beam search and greedy search by themselves: against every sequence there is, and without any framework."""

import ast
import itertools
import pathlib

import numpy as np
import pytest

import warmstart.decoding
from warmstart.decoding import beams, groups, sampling
from warmstart.decoding.scores import process
from warmstart.decoding.stopping import stopping
from warmstart.decoding.tokens import diversity

PAD, END, START = 0, 1, 2
VOCABULARY = 5


class Chain:
    """A toy model: the scores of the next token depend on the source, the position and the last token."""

    def __init__(self, sources, length, seed, forbidden=()):
        shape = (sources, length, VOCABULARY, VOCABULARY)
        logits = np.random.default_rng(seed).normal(0, 2, shape)
        logits[..., list(forbidden)] = -np.inf
        self.log_probabilities = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)

    def scores(self, ids, at, per_source):
        """(r, v) for ids (r, n)."""
        rows = np.arange(len(ids))
        return self.log_probabilities[rows // per_source, at - 1, ids[rows, at - 1]]

    def all_sequences(self, source, length, penalty):
        """Every sequence that ends with END or at the length, best first: pairs of score and tokens."""
        found = []
        for count in range(1, length):
            for tokens in itertools.product(range(VOCABULARY), repeat=count):
                if END in tokens[:-1] or (tokens[-1] != END and count < length - 1):
                    continue
                before = (START, *tokens)
                score = sum(self.log_probabilities[source, i, before[i], token] for i, token in enumerate(tokens))
                if np.isfinite(score):
                    found.append((score / count**penalty, tokens))
        return sorted(found, reverse=True)


def is_hidden(xp):
    return type(xp).__name__ == "StrictArrays"


def search(xp, zoo, chain, sources, settings, per_step=lambda state: None):
    prompt = zoo.as_array(xp, np.full((sources, 1), START))
    stop = stopping(xp, [END], settings.max_length)
    state = beams.start(xp, prompt, settings)
    if is_hidden(xp):  # in a compiled loop the position is an array as well
        state = state._replace(at=zoo.as_array(xp, np.array(state.at)))
    while True:
        ids = np.asarray(state.ids).reshape(-1, settings.max_length)
        scores = chain.scores(ids, int(np.asarray(state.at)), settings.beams)
        state = beams.step(xp, state, zoo.as_array(xp, scores), settings, xp.top_k, stop)
        per_step(state)
        if not np.asarray(state.going):
            return state


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_beams_that_cover_everything_find_the_best_of_all_sequences(penalty, seed, xp, zoo):
    sources, length = 2, 5
    chain = Chain(sources, length, seed, forbidden=[PAD, START])
    # two tokens may go on and one end: 2 * 2 * 2 unfinished sequences, with 3 candidates each
    settings = beams.BeamSettings(24, 1, length, 48, PAD, penalty, "never")
    state = search(xp, zoo, chain, sources, settings)
    ids, scores, _, longest = (np.asarray(x) for x in beams.finish(xp, state, 6))
    assert ids.shape == (12, length) and int(longest) <= length - 1
    for source in range(sources):
        for rank, (score, tokens) in enumerate(chain.all_sequences(source, length, penalty)[:6]):
            row = source * 6 + rank
            assert scores[row] == pytest.approx(score, rel=1e-5)
            assert ids[row].tolist() == [START, *tokens, *[PAD] * (length - 1 - len(tokens))]


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_origins_tell_where_each_token_was_appended(early_stopping, xp, zoo):
    chain, steps = Chain(3, 7, seed=1), []
    settings = beams.BeamSettings(4, 1, 7, 8, PAD, 1.0, early_stopping)
    state = search(xp, zoo, chain, 3, settings, lambda state: steps.append(np.asarray(state.ids).reshape(12, 7)))
    ids, scores, origins, _ = (np.asarray(x) for x in beams.finish(xp, state, 4))
    for row, tokens in enumerate(ids):
        count = int((origins[row] >= 0).sum())
        for i in range(1, count):  # before step i the row of origin held the tokens so far
            assert steps[i - 1][origins[row, i]][: i + 1].tolist() == tokens[: i + 1].tolist()
        total = sum(
            chain.log_probabilities[row // 4, i, token, tokens[i + 1]] for i, token in enumerate(tokens[:count])
        )
        assert scores[row] == pytest.approx(total / count, rel=1e-5)


def test_one_source_at_a_time_gives_the_same(xp, zoo):
    chain = Chain(4, 8, seed=5)
    settings = beams.BeamSettings(3, 1, 8, 6, PAD)
    together = np.asarray(beams.finish(xp, search(xp, zoo, chain, 4, settings), 2)[0])
    for source in range(4):
        alone = Chain(1, 8, seed=0)
        alone.log_probabilities = chain.log_probabilities[source : source + 1]
        ids = np.asarray(beams.finish(xp, search(xp, zoo, alone, 1, settings), 2)[0])
        assert ids.tolist() == together[2 * source : 2 * source + 2].tolist()


def merged(xp, states, per_row):
    """Several states as one, whose rows differ in age; `per_row` rows of ids belong to each position."""
    fields = {}
    for name in states[0]._fields:
        parts = [getattr(state, name) for state in states]
        if name == "at":
            ages = [np.full((len(np.asarray(state.ids)) // per_row, 1), int(np.asarray(state.at))) for state in states]
            fields[name] = np.concatenate(ages)
        elif name == "rows":
            fields[name] = np.arange(sum(len(np.asarray(part)) for part in parts))
        elif name == "going":
            fields[name] = np.any([np.asarray(part) for part in parts])
        else:
            fields[name] = np.concatenate([np.asarray(part) for part in parts])
    return fields


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_sources_of_different_age_share_a_batch(early_stopping, xp, zoo):
    length, ahead = 8, (0, 1, 4)
    chain, settings = Chain(3, length, seed=5), beams.BeamSettings(3, 1, length, 6, PAD, 1.0, early_stopping)
    stop = stopping(xp, [END], length)
    ones, alone = [], []
    for source, steps in enumerate(ahead):
        one = Chain(1, length, seed=0)
        one.log_probabilities = chain.log_probabilities[source : source + 1]
        alone.append(np.asarray(beams.finish(xp, search(xp, zoo, one, 1, settings), 2)[0]).tolist())
        state = beams.start(xp, zoo.as_array(xp, np.full((1, 1), START)), settings)
        for at in range(1, 1 + steps):
            scores = one.scores(np.asarray(state.ids).reshape(-1, length), at, 3)
            state = beams.step(xp, state, zoo.as_array(xp, scores), settings, xp.top_k, stop)
        ones.append(state)
    fields = merged(xp, ones, 1)
    state = beams.Beams(**{name: zoo.as_array(xp, value) for name, value in fields.items()})
    for _ in range(length - 1):
        at = np.repeat(np.asarray(state.at), 3).clip(max=length - 1)
        scores = np.stack(
            [
                chain.log_probabilities[row // 3, at[row] - 1, ids[at[row] - 1]]
                for row, ids in enumerate(np.asarray(state.ids).reshape(-1, length))
            ]
        )
        state = beams.step(xp, state, zoo.as_array(xp, scores), settings, xp.top_k, stop)
    assert np.asarray(state.done).all()
    ids = np.asarray(beams.finish(xp, state, 2)[0])
    assert [ids[2 * source : 2 * source + 2].tolist() for source in range(3)] == alone


def test_a_source_that_is_done_finds_no_more(xp, zoo):
    chain, seen = Chain(4, 9, seed=6), []
    settings = beams.BeamSettings(3, 1, 9, 6, PAD, 1.0, False)
    search(xp, zoo, chain, 4, settings, lambda state: seen.append((np.asarray(state.done), np.asarray(state.found))))
    ends = 0
    for (done, found), (_, later) in itertools.pairwise(seen):
        np.testing.assert_array_equal(found[done[:, 0]], later[done[:, 0]])
        ends += int(done.sum())
    assert ends > 0


def test_all_namespaces_search_alike(zoo):
    chain = Chain(3, 9, seed=2)
    settings = beams.BeamSettings(4, 1, 9, 8, PAD, 0.7)
    results = [
        [np.asarray(x) for x in beams.finish(xp, search(xp, zoo, chain, 3, settings), 4)]
        for xp in (zoo.NumpyArrays(), zoo.StrictArrays(), zoo.TorchArrays())
    ]
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=1e-5)


def test_state_keeps_its_shapes_and_types(xp, zoo):
    """What `lax.while_loop` and `tf.while_loop` ask of a loop's state."""
    settings = beams.BeamSettings(4, 1, 6, 8, PAD, 1.0, True)
    start = beams.start(xp, zoo.as_array(xp, np.full((2, 1), START)), settings)
    shapes = {name: (tuple(x.shape), x.dtype) for name, x in start._asdict().items() if name != "at"}
    seen = []
    search(
        xp,
        zoo,
        Chain(2, 6, seed=3),
        2,
        settings,
        lambda state: seen.append(
            {name: (tuple(x.shape), x.dtype) for name, x in state._asdict().items() if name != "at"}
        ),
    )
    assert len(seen) > 1 and all(step == shapes for step in seen)


def group_search(xp, zoo, chain, sources, settings, count, penalty):
    prompt = zoo.as_array(xp, np.full((sources, 1), START))
    state, stop = groups.start(xp, prompt, settings, count), stopping(xp, [END], settings.max_length + 1)
    each = settings.beams * count
    if is_hidden(xp):
        state = state._replace(at=zoo.as_array(xp, np.array(state.at)))

    def score(log, ids, rows, chosen):
        return process(xp, [diversity(xp, penalty)], log, ids, state.at, None, chosen)

    while True:
        ids = np.asarray(groups.ids_of(xp, state))
        at = int(np.asarray(state.at))
        state = groups.step(xp, state, zoo.as_array(xp, chain.scores(ids, at, each)), settings, score, stop)
        if not np.asarray(state.going) or at + 1 == settings.max_length:
            return state


def test_a_group_alone_and_without_a_penalty_covers_all_sequences(xp, zoo):
    chain = Chain(2, 5, seed=0, forbidden=[PAD, START])
    settings = beams.BeamSettings(24, 1, 5, 48, PAD, 1.0, "never")
    state = group_search(xp, zoo, chain, 2, settings, 1, 0.0)
    ids, scores, _, _ = (np.asarray(x) for x in groups.finish(xp, state, settings, 6))
    for source in range(2):
        for rank, (score, tokens) in enumerate(chain.all_sequences(source, 5, 1.0)[:6]):
            assert scores[source * 6 + rank] == pytest.approx(score, rel=1e-5)
            assert ids[source * 6 + rank].tolist() == [START, *tokens, *[PAD] * (4 - len(tokens))]


def test_groups_of_one_beam_choose_what_the_others_did_not(xp, zoo):
    chain = Chain(3, 6, seed=7, forbidden=[PAD, START, END])
    settings = beams.BeamSettings(1, 1, 6, 2, PAD)
    state = group_search(xp, zoo, chain, 3, settings, 2, 1e4)
    ids = np.asarray(groups.ids_of(xp, state)).reshape(3, 2, 6)
    assert (ids[:, 0, 1:] != ids[:, 1, 1:]).all()


def test_all_namespaces_search_with_groups_alike(zoo):
    chain = Chain(3, 8, seed=3)
    settings = beams.BeamSettings(2, 1, 8, 4, PAD, 0.7)
    results = [
        [np.asarray(x) for x in groups.finish(xp, group_search(xp, zoo, chain, 3, settings, 3, 0.8), settings, 4)]
        for xp in (zoo.NumpyArrays(), zoo.StrictArrays(), zoo.TorchArrays())
    ]
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=1e-5)


def test_greedy_takes_the_likeliest_token_until_the_end(xp, zoo):
    chain = Chain(4, 8, seed=4)
    state = sampling.start(xp, zoo.as_array(xp, np.full((4, 1), START)), 8, PAD)
    stop = stopping(xp, [END], 8)
    shapes = (tuple(state.ids.shape), state.ids.dtype, tuple(state.done.shape), state.done.dtype)
    if is_hidden(xp):
        state = state._replace(at=zoo.as_array(xp, np.array(1)))
    for at in range(1, 8):
        scores = chain.scores(np.asarray(state.ids), at, 1)
        state = sampling.step(xp, state, zoo.as_array(xp, scores), xp.argmax, stop, PAD)
        assert (tuple(state.ids.shape), state.ids.dtype, tuple(state.done.shape), state.done.dtype) == shapes
    assert np.asarray(state.done).all()
    lengths = set()
    for row, ids in enumerate(np.asarray(state.ids).tolist()):
        expected = [START]
        while expected[-1] != END and len(expected) < 8:
            at = len(expected)
            expected.append(int(chain.log_probabilities[row, at - 1, expected[-1]].argmax()))
        lengths.add(len(expected))
        assert ids == expected + [PAD] * (8 - len(expected))
    assert len(lengths) > 1, "the rows should end at different lengths, or padding is not seen"


def test_rows_of_different_age_share_a_batch(xp, zoo):
    chain, length = Chain(4, 8, seed=4), 8
    stop = stopping(xp, [END], length)
    state = sampling.start(xp, zoo.as_array(xp, np.full((4, 1), START)), length, PAD)
    ages = np.ones((4, 1), int)
    state = state._replace(at=zoo.as_array(xp, ages))
    for turn in range(2 * length):
        # every other row waits now and then, as one would that came later
        at = np.asarray(state.at).clip(max=length - 1)
        scores = chain.log_probabilities[np.arange(4), at[:, 0] - 1, np.asarray(state.ids)[np.arange(4), at[:, 0] - 1]]
        moved = sampling.step(xp, state, zoo.as_array(xp, scores), xp.argmax, stop, PAD)
        waits = (np.arange(4) % 2 == 1) & (turn % 3 == 0)
        parts = []
        for before, after in zip(state, moved, strict=True):
            before, after = np.asarray(before), np.asarray(after)
            parts.append(zoo.as_array(xp, np.where(waits.reshape((4,) + (1,) * (after.ndim - 1)), before, after)))
        state = sampling.Rows(*parts)
    assert np.asarray(state.done).all()
    for row, ids in enumerate(np.asarray(state.ids).tolist()):
        expected = [START]
        while expected[-1] != END and len(expected) < length:
            expected.append(int(chain.log_probabilities[row, len(expected) - 1, expected[-1]].argmax()))
        assert ids == expected + [PAD] * (length - len(expected))


def test_a_rule_of_the_callers_ends_a_row(xp, zoo):
    stop = stopping(xp, [END], 99, [lambda ids, new, at: new == 4])
    ids, new = zoo.as_array(xp, np.zeros((3, 9), int)), zoo.as_array(xp, np.array([END, 4, 3]))
    assert np.asarray(stop(ids, new, 5)).tolist() == [True, True, False]
    assert np.asarray(stop(ids, new, 99)).tolist() == [True, True, True]


def test_decoding_imports_no_framework():
    known = {"__future__", "collections", "dataclasses", "difflib", "math", "typing", "warnings", "warmstart"}
    for path in pathlib.Path(warmstart.decoding.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                root = module.split(".")[0]
                assert root in known, path
                assert not module.startswith(("warmstart.torch", "warmstart.flax", "warmstart.tf")), path
