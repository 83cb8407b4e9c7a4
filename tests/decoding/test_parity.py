"""The whole of `generate` against `transformers`, token for token, over settings drawn at random."""

import random

import pytest
import torch

CASES = 210
LONGEST = 9


def some_tokens(draw, zoo, count):
    return draw.sample(range(4, zoo.VOCABULARY), count)


def draw_settings(draw, zoo, prompt_length):
    """Settings under their names in `transformers`; the pad token never comes, which decoders there mask themselves."""
    settings = {"suppress_tokens": [zoo.PAD, *some_tokens(draw, zoo, draw.randint(0, 2))]}

    def maybe(chance, **values):
        if draw.random() < chance:
            settings.update(values)

    length = draw.randint(prompt_length + 1, LONGEST)
    settings.update({"max_length": length} if draw.random() < 0.7 else {"max_new_tokens": length - prompt_length})
    maybe(0.8, eos_token_id=[zoo.END, *some_tokens(draw, zoo, draw.randint(1, 10))])
    maybe(0.3, **draw.choice([{"min_length": length - 1}, {"min_new_tokens": (length - prompt_length) // 2 or 1}]))
    maybe(0.3, no_repeat_ngram_size=draw.randint(1, 4))
    maybe(0.3, repetition_penalty=draw.choice([0.7, 1.2, 2.0]))
    maybe(0.2, begin_suppress_tokens=some_tokens(draw, zoo, 3))
    words = [some_tokens(draw, zoo, draw.choice([1, 1, 2, 3])) for _ in range(4)]
    maybe(0.2, bad_words_ids=[*words, [zoo.END]])
    maybe(0.1, forced_bos_token_id=5)
    maybe(0.1, forced_eos_token_id=draw.choice([zoo.END, [zoo.END, 9]]))
    maybe(0.2, use_cache=False)
    if draw.random() < 0.6:
        beams = draw.randint(2, 5)
        settings.update(num_beams=beams, num_return_sequences=draw.randint(1, beams))
        maybe(0.7, early_stopping=draw.choice([True, "never"]))
        maybe(0.7, length_penalty=draw.choice([-1.0, 0.0, 0.6, 2.0]))
    if draw.random() < 0.3:
        settings.update(do_sample=True)
        if "num_beams" not in settings:
            settings.update(num_return_sequences=draw.randint(1, 3))
        maybe(0.5, temperature=draw.choice([0.5, 1.5, 3.0]))
        maybe(0.7, top_k=draw.choice([0, 3, 10]))
        maybe(0.5, top_p=draw.choice([0.3, 0.8, 0.95]))
        maybe(0.3, min_p=draw.choice([0.02, 0.2]))
    return settings


def check_same(theirs, ours, settings):
    """Equal tokens; where beams differ, two sequences must have had the same score."""
    if theirs.sequences.shape == ours.sequences.shape and bool((theirs.sequences == ours.sequences).all()):
        if settings.get("num_beams", 1) > 1:
            torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, rtol=1e-4, atol=1e-4)
            assert torch.equal(ours.beam_indices, theirs.beam_indices.long())
        for name in ("scores", "logits"):
            assert len(ours[name]) == len(theirs[name])
            for mine, other in zip(ours[name], theirs[name], strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
        return True
    assert settings.get("num_beams", 1) > 1 and not settings.get("do_sample"), (theirs.sequences, ours.sequences)
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, rtol=1e-5, atol=1e-5)
    return False


def run_both(kind, number, zoo, seed, ids, settings, **inputs):
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    model, our_model = getattr(zoo, kind)(number), zoo.ours(kind, number)
    torch.manual_seed(seed)
    theirs = model.generate(ids, **inputs, **settings, **wanted)
    torch.manual_seed(seed)
    return theirs, our_model.generate(ids, **inputs, **settings, **wanted)


def draw_case(seed, zoo):
    """Source ids, the inputs beside them, and settings; one case in four has a prompt for the decoder."""
    draw = random.Random(seed)
    ids, mask = zoo.sources(seed)
    if draw.random() < 0.75:
        return ids, {"attention_mask": mask}, draw_settings(draw, zoo, 1)
    starts = draw.random() < 0.5
    prompt = torch.tensor([[zoo.START] * starts + some_tokens(draw, zoo, 4 - starts) for _ in ids])
    return ids, {"attention_mask": mask, "decoder_input_ids": prompt}, draw_settings(draw, zoo, 5 - starts)


@pytest.mark.parametrize("seed", range(CASES))
def test_encoder_decoder_generates_the_same_tokens(seed, zoo):
    ids, inputs, settings = draw_case(seed, zoo)
    check_same(*run_both("encoder_decoder", seed % 6, zoo, seed, ids, settings, **inputs), settings)


@pytest.mark.parametrize("seed", range(24))
def test_causal_model_generates_the_same_tokens(seed, zoo):
    draw = random.Random(seed)
    ids, mask = zoo.sources(seed, longest=6, side="left")
    settings = draw_settings(draw, zoo, ids.shape[1])
    theirs, ours = run_both("causal", seed % 4, zoo, seed, ids, settings, attention_mask=mask)
    check_same(theirs, ours, settings)


def test_the_cases_cover_every_setting(zoo):
    drawn = [draw_case(seed, zoo)[2] for seed in range(CASES)]
    counts = {name: sum(name in settings for settings in drawn) for settings in drawn for name in settings}
    assert len(counts) == 22
    assert min(counts.values()) >= 10, counts
