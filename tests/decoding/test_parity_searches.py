"""Groups of beams, constrained beams and contrastive search against their references, over settings drawn at random."""

import random

import pytest
import torch

search_reference = pytest.importorskip("search_reference")  # what it drives is gone from version 5

AT_ONCE = 10
MODELS = (0, 1, 3, 5, 7)


def some_tokens(draw, zoo, count):
    return draw.sample(range(4, zoo.VOCABULARY), count)


def draw_case(seed, zoo, searches):
    """Sources, inputs beside them and settings, without those of the search itself."""
    draw = random.Random(seed)
    ids, mask = zoo.sources(seed)
    inputs, at = {"attention_mask": mask}, 1
    if draw.random() < 0.25:
        inputs["decoder_input_ids"] = torch.tensor([[zoo.START, *some_tokens(draw, zoo, 2)] for _ in ids])
        at = 3
    settings = {"suppress_tokens": [zoo.PAD], "max_length": draw.randint(at + 2, at + 7)}
    settings["eos_token_id"] = [zoo.END, *some_tokens(draw, zoo, draw.choice([0, 1, 3]))]
    options = {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": draw.randint(2, 3),
        "encoder_no_repeat_ngram_size": draw.randint(2, 3),
        "min_length": at + 2,
        "sequence_bias": [[some_tokens(draw, zoo, draw.choice([1, 2])), draw.uniform(-3, 3)]],
        "renormalize_logits": True,
        "bad_words_ids": [some_tokens(draw, zoo, 2)],
    }
    settings.update({name: value for name, value in options.items() if draw.random() < 0.2})
    if searches == "beams":
        for name, values in {
            "early_stopping": [True, False, "never"],
            "length_penalty": [0.0, 0.6, 1.0, 2.0],
        }.items():
            if draw.random() < 0.7:
                settings[name] = draw.choice(values)
    return draw, ids, inputs, settings


def check_beams(zoo, ours, sequences, scores, ends):
    """Equal up to the end token, whose id the reference replaces by the first; else two must have had one score."""
    torch.testing.assert_close(ours.sequences_scores, scores, rtol=1e-4, atol=1e-4)
    return _until_end(ours.sequences, ends, zoo.PAD) == _until_end(sequences, ends, zoo.PAD)


def _until_end(sequences, ends, pad):
    rows = []
    for row in sequences.tolist():
        kept = row[:1]
        for token in row[1:]:
            if token in ends or token == pad:
                break
            kept.append(token)
        rows.append(kept)
    return rows


def run(zoo, number, ids, inputs, settings):
    wanted = {"return_dict_in_generate": True, "output_scores": True}
    model = zoo.shared("encoder_decoder", number)
    out = model.generate(ids, **inputs, **settings, **wanted)
    assert torch.equal(model.generate(ids, **inputs, **settings), out.sequences)
    return out


@pytest.mark.parametrize("first", range(0, 120, AT_ONCE))
def test_groups_of_beams(first, zoo):
    same = 0
    for seed in range(first, first + AT_ONCE):
        draw, ids, inputs, settings = draw_case(seed, zoo, "beams")
        groups = draw.randint(2, 3)
        beams = groups * draw.randint(1, 3)
        settings.update(num_beams=beams, num_beam_groups=groups, diversity_penalty=draw.choice([0.3, 1.0, 5.0]))
        settings["num_return_sequences"] = draw.randint(1, beams)
        number = MODELS[seed % len(MODELS)]
        given = {**settings, **{x: y for x, y in inputs.items() if x != "attention_mask"}}
        expected = search_reference.group_beam_search(zoo.encoder_decoder(number), ids, inputs["attention_mask"], given)
        same += check_beams(zoo, run(zoo, number, ids, inputs, settings), *expected, settings["eos_token_id"])
    assert same >= AT_ONCE - 1


@pytest.mark.parametrize("first", range(0, 120, AT_ONCE))
def test_constrained_beams(first, zoo):
    same = 0
    for seed in range(first, first + AT_ONCE):
        draw, ids, inputs, settings = draw_case(seed, zoo, "beams")
        beams = draw.randint(2, 5)
        settings.update(num_beams=beams, num_return_sequences=draw.randint(1, beams))
        words = [token for token in some_tokens(draw, zoo, 12) if token not in settings["eos_token_id"]][:6]
        settings["force_words_ids"] = draw.choice(
            [
                [words[:1]],
                [words[:2]],
                [words[:1], words[1:3]],
                [[words[:2], words[2:3]]],
                [[words[:1], words[1:3]], words[3:5]],
            ]
        )
        number = MODELS[seed % len(MODELS)]
        given = {**settings, **{x: y for x, y in inputs.items() if x != "attention_mask"}}
        expected = search_reference.constrained_beam_search(
            zoo.encoder_decoder(number), ids, inputs["attention_mask"], given
        )
        same += check_beams(zoo, run(zoo, number, ids, inputs, settings), *expected, settings["eos_token_id"])
    assert same >= AT_ONCE - 1


@pytest.mark.parametrize("first", range(0, 60, AT_ONCE))
def test_contrastive_search(first, zoo):
    for seed in range(first, first + AT_ONCE):
        draw, ids, inputs, settings = draw_case(seed, zoo, "rows")
        settings.update(penalty_alpha=draw.choice([0.2, 0.6, 0.9]), top_k=draw.randint(2, 6))
        number = MODELS[seed % len(MODELS)]
        given = {**settings, **{x: y for x, y in inputs.items() if x != "attention_mask"}}
        expected = search_reference.contrastive_search(
            zoo.encoder_decoder(number), ids, inputs["attention_mask"], given
        )
        assert torch.equal(run(zoo, number, ids, inputs, settings).sequences, expected)
