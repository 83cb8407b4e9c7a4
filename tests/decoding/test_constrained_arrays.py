"""Constrained beam search with its state in arrays takes the steps of the one that keeps lists."""

import numpy as np
import pytest

from warmstart.decoding import constrained, constrained_arrays
from warmstart.decoding.beams import BeamSettings
from warmstart.decoding.constraints import constraints_of

SOURCES, BEAMS, VOCABULARY, END = 2, 3, 9, 8


@pytest.mark.parametrize("words", [[[4, 5]], [[4], [[5, 6], [7]]], [[1, 2, 1], [3, 2]]])
@pytest.mark.parametrize("early", [True, False, "never"])
def test_arrays_hold_what_lists_hold(words, early, zoo):
    xp, wanted = zoo.NumpyArrays(), constraints_of(None, words)
    settings = BeamSettings(BEAMS, 1, 8, 2 * BEAMS, 0, 1.0, early)
    prompt = np.array([[1], [2]])
    lists = [constrained.Search.of(row, i * BEAMS, BEAMS) for i, row in enumerate(prompt.tolist())]
    arrays = constrained_arrays.start(xp, prompt, settings)
    arrays = arrays._replace(**{name: x.tolist() for name, x in arrays._asdict().items() if name != "at"})
    draw = np.random.default_rng(0)
    for _ in range(settings.max_length - 1):
        scores = np.log(draw.dirichlet(np.ones(VOCABULARY), SOURCES * BEAMS)).astype(np.float32)
        sums = np.array([[beam.score for beam in search.beams] for search in lists], np.float32)
        total = scores.reshape(SOURCES, BEAMS, -1) + sums[:, :, None]
        best, index = (x.tolist() for x in xp.top_k(total.reshape(SOURCES, -1), settings.candidates))
        for i, search in enumerate(lists):
            found = [(x, at // VOCABULARY, at % VOCABULARY) for x, at in zip(best[i], index[i], strict=True)]
            constrained.step(
                search, found, lambda beam, token, of=total[i]: float(of[beam, token]), settings, wanted, [END]
            )
        of_words = total[:, :, constrained_arrays.words_of(wanted)].tolist()
        arrays = constrained_arrays.on_host(arrays, best, index, of_words, VOCABULARY, settings, wanted, [END])
        assert [[beam[: arrays.at] for beam in ids] for ids in arrays.ids] == [
            [x.tokens for x in s.beams] for s in lists
        ]
        assert arrays.scores == [[beam.score for beam in search.beams] for search in lists]
        assert arrays.done == [search.done for search in lists]
    ids, scores, origins = constrained_arrays.finish_on_host(arrays, settings, wanted, 2)
    expected = [item for search in lists for item in constrained.finish(search, settings, wanted, 2)]
    for row, score, path, (wanted_score, beam) in zip(ids, scores, origins, expected, strict=True):
        assert row[: len(beam.tokens)] == beam.tokens and score == wanted_score
        assert tuple(path[: len(beam.origins)]) == beam.origins and set(path[len(beam.origins) :]) <= {-1}
