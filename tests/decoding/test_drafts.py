"""Drafts change what a call costs and nothing else: greedy search token for token, sampling by distribution."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart.decoding import drafts
from warmstart.torch.runner import ModuleRunner

DRAWS = 4000


def by_hand(source, ids, at, size, count):
    """The continuation of the longest of the last tokens that stood somewhere before, first in the source."""
    own = ids[:at]
    for held in range(min(size, at), 0, -1):
        tail = own[at - held :]
        for text in (source, own):
            for start in range(len(text) - held):
                if text[start : start + held] == tail:
                    return text[start + held : start + held + count]
    return []


tokens = st.lists(st.integers(0, 3), max_size=9)


@settings(deadline=None, max_examples=200)
@given(source=st.none() | tokens, parts=st.lists(tokens, max_size=3), size=st.integers(1, 3), count=st.integers(1, 4))
def test_look_up_finds_the_longest_match(source, parts, size, count):
    row, own = drafts.Copying(None if source is None else drafts.Text(size, source), size), []
    for part in parts:
        row.own.extend(part)
        own += part
        assert row.look_up(count)[0] == by_hand(source or [], own, len(own), size, count)


def drafted_tokens(rows, size, passes, right):
    """The drafts of each pass, where a row always finds its last `size` tokens, of which so many are then right."""
    row, patience, found = drafts.Copying(None, size), drafts.patience(rows), []
    row.look_up = lambda count: (list(range(count)), size)
    for _ in range(passes):
        found.append(len(row.draft(10, patience)))
        row.learn(found[-1], min(found[-1], right))
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 8, 64])
def test_drafts_that_are_wrong_cost_a_twentieth_at_most(rows, size):
    found = drafted_tokens(rows, size, 400, right=0)
    assert any(found)
    assert sum(found) * rows / (drafts.LINES + rows) <= 0.05 * len(found)


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_drafts_that_are_right_become_long(rows):
    found = drafted_tokens(rows, 2, 60, right=10)
    assert found[-20:] == [10] * 20
    if rows <= 8:
        assert found[3:] == [10] * 57


def test_drafts_are_as_long_as_what_is_right():
    assert set(drafted_tokens(8, 2, 60, right=2)[30:]) <= {4, 5, 6}


def test_what_is_accepted_or_drawn_instead_has_the_models_distribution(xp, zoo):
    """Leviathan et al. 2023, appendix A.1: the two ways to a token sum to its probability."""
    draw = np.random.default_rng(0)
    target, drafted = (draw.dirichlet(np.full(6, 0.5), 5).astype(np.float32) for _ in range(2))
    total, refused = np.zeros((5, 6)), np.zeros(5)
    for token in range(6):
        tokens = np.full(5, token)
        for uniform in (np.arange(1000) + 0.5) / 1000:
            arguments = (target, drafted, tokens, np.full(5, uniform, np.float32))
            taken, rest = (np.asarray(x) for x in drafts.accept(xp, *(zoo.as_array(xp, x) for x in arguments)))
            total[:, token] += drafted[:, token] * taken / 1000
            refused += drafted[:, token] * ~taken / 1000
            if uniform > 0.05 and type(xp).__name__ != "NumpyArrays":
                break  # the sum once is enough
    if type(xp).__name__ == "NumpyArrays":
        np.testing.assert_allclose(total + refused[:, None] * rest, target, atol=2e-3)
    np.testing.assert_allclose(rest.sum(1), 1, rtol=1e-5)


def draw_settings(draw, zoo, at):
    options = {
        "repetition_penalty": 0.6,  # repeats: then drafts are right
        "no_repeat_ngram_size": 3,
        "encoder_repetition_penalty": 2.0,
        "min_length": at + 3,
        "bad_words_ids": [draw.sample(range(4, zoo.VOCABULARY), 2)],
        "sequence_bias": [[[draw.randrange(4, zoo.VOCABULARY)], 2.0]],
        "use_cache": True,
        "return_dict_in_generate": True,
    }
    settings = {name: value for name, value in options.items() if draw.random() < 0.3}
    settings["eos_token_id"] = [zoo.END, *draw.sample(range(4, zoo.VOCABULARY), draw.choice([0, 1, 3]))]
    return {**settings, "suppress_tokens": [zoo.PAD], "max_length": at + draw.randint(3, 14)}


def tokens_of(out):
    return out if isinstance(out, torch.Tensor) else out.sequences


@pytest.mark.parametrize("first", range(0, 60, 15))
def test_greedy_search_is_the_same_with_drafts(first, zoo):
    for seed in range(first, first + 15):
        draw = random.Random(seed)
        kind = draw.choice(["encoder_decoder", "encoder_decoder", "causal"])
        ids, mask = zoo.sources(seed, side="left" if kind == "causal" else "right")
        options = draw_settings(draw, zoo, ids.shape[1] if kind == "causal" else 1)
        model = zoo.shared(kind, seed % 4)
        expected = tokens_of(model.generate(ids, attention_mask=mask, **options))
        lookup = {"prompt_lookup_num_tokens": draw.randint(1, 6), "max_matching_ngram_size": draw.randint(1, 3)}
        assert torch.equal(tokens_of(model.generate(ids, attention_mask=mask, **options, **lookup)), expected)
        for other in {seed % 4, (seed + 2) % 4}:  # itself, whose drafts are right, and another
            assisted = {"assistant_model": zoo.shared(kind, other), "num_assistant_tokens": draw.randint(1, 6)}
            given = model.generate(ids, attention_mask=mask, **options, **assisted)
            assert torch.equal(tokens_of(given), expected)


def test_outputs_are_the_same_with_drafts(zoo):
    ids, mask = zoo.sources(5, rows=2)
    model = zoo.shared("encoder_decoder", 1)
    wanted = dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits"), True)
    wanted |= {"output_attentions": True, "output_hidden_states": True, "max_length": 8, "eos_token_id": None}
    expected = model.generate(ids, attention_mask=mask, **wanted)
    for more in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": zoo.shared("encoder_decoder", 1)}):
        out = model.generate(ids, attention_mask=mask, **wanted, **more)
        assert list(out) == list(expected)
        for name in set(out) - {"past_key_values"}:
            _check_equal(out[name], expected[name])


def _check_equal(mine, other):
    if isinstance(mine, tuple):
        assert len(mine) == len(other)
        for x, y in zip(mine, other, strict=True):
            _check_equal(x, y)
    else:
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.fixture
def passes(monkeypatch):
    """How many positions each pass of the decoder computes."""
    monkeypatch.setattr("warmstart.torch.runner.can_run", lambda *arguments: False)
    seen, logits = [], ModuleRunner.logits

    def spy(runner, ids, keep=1):
        seen.append(ids.shape[1] - runner.length)
        return logits(runner, ids, keep)

    monkeypatch.setattr(ModuleRunner, "logits", spy)
    return seen


def test_a_copied_source_takes_few_passes(zoo, passes):
    """A processor makes the model copy: then drafts from the source are right, and a pass gives several tokens."""
    ids = torch.tensor([[*range(4, 24), zoo.END]])

    def copy(held, scores):
        return torch.full_like(scores, float("-inf")).index_fill(1, ids[0, held.shape[1] - 1], 0.0)

    model = zoo.shared("encoder_decoder", 1)
    options = {"max_length": 25, "logits_processor": [copy], "prompt_lookup_num_tokens": 8}
    out = model.generate(ids, **options)
    assert out[0, 1:].tolist() == ids[0].tolist()
    assert len(passes) <= 5


def test_drafts_that_are_wrong_pause(zoo, passes):
    ids, mask = zoo.sources(3, rows=2)
    model = zoo.shared("encoder_decoder", 0)
    model.generate(ids, attention_mask=mask, eos_token_id=None, max_length=40, suppress_tokens=[zoo.PAD])
    plain = sum(passes)
    passes.clear()
    options = {"repetition_penalty": 5.0, "prompt_lookup_num_tokens": 4}
    model.generate(ids, attention_mask=mask, eos_token_id=None, max_length=40, suppress_tokens=[zoo.PAD], **options)
    assert sum(passes) <= 1.6 * plain


def joint_distribution(model, ids, mask, length, top_k, temperature):
    """Of each sequence of tokens behind the start token: by the model's own probabilities."""
    states = model.encode(input_ids=ids, attention_mask=mask)
    found = {}

    def go(tokens, chance):
        if len(tokens) == length or (len(tokens) > 1 and tokens[-1] == 3):
            found[tuple(tokens)] = chance
            return
        logits = model(encoder_outputs=states, attention_mask=mask, decoder_input_ids=torch.tensor([tokens])).logits
        values, likely = (logits[0, -1] / temperature).topk(top_k)
        for value, token in zip(torch.softmax(values, 0).tolist(), likely.tolist(), strict=True):
            go([*tokens, token], chance * value)

    with torch.no_grad():
        go([2], 1.0)
    return found


@pytest.mark.parametrize("way", ["lookup", "assistant", "itself"])
def test_sampling_has_the_same_distribution_with_drafts(way, zoo):
    """Chi-square over whole sequences, below what chance exceeds once in a million (Wilson and Hilferty 1931)."""
    model = zoo.shared("encoder_decoder", 0)
    ids, mask = torch.tensor([[7, 8, 9, 7, 8, 9, 11]]), torch.ones(1, 7).long()
    length, top_k, temperature = 5, 3, 3.0
    expected = joint_distribution(model, ids, mask, length, top_k, temperature)
    options = {"do_sample": True, "top_k": top_k, "temperature": temperature, "max_length": length}
    more = {
        "lookup": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
        "assistant": {"assistant_model": zoo.shared("encoder_decoder", 2), "num_assistant_tokens": 3},
        "itself": {"assistant_model": model, "num_assistant_tokens": 3},
    }[way]
    if way == "lookup":  # what is looked up must come now and then
        ids = torch.tensor([[token for pair in itertools.pairwise(next(iter(expected))) for token in pair]])
        ids = torch.cat([ids, ids], 1)
        mask = torch.ones_like(ids)
        expected = joint_distribution(model, ids, mask, length, top_k, temperature)
    torch.manual_seed(0)
    out = model.generate(ids, attention_mask=mask, num_return_sequences=DRAWS, **options, **more)
    counts = dict.fromkeys(expected, 0)
    for row in out.tolist():
        end = row.index(3) + 1 if 3 in row else len(row)
        counts[tuple(row[:end])] += 1
    common = [x for x in expected if expected[x] * DRAWS >= 5]
    observed = np.array([*(counts[x] for x in common), DRAWS - sum(counts[x] for x in common)])
    wanted = np.array([*(expected[x] for x in common), 1 - sum(expected[x] for x in common)]) * DRAWS
    observed, wanted = observed[wanted > 1], wanted[wanted > 1]
    assert len(common) > 20
    freedom = len(observed) - 1
    chi_square = ((observed - wanted) ** 2 / wanted).sum()
    spread = 2 / (9 * freedom)
    assert chi_square < freedom * (1 - spread + 4.75 * spread**0.5) ** 3


class Letters:
    """A tokenizer of single letters, the ids of which are moved by `shift`."""

    def __init__(self, shift):
        self.shift = shift

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(97 + token - self.shift) for token in ids if token >= self.shift)

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [ord(letter) - 97 + self.shift for letter in text]}


def test_a_source_in_another_vocabulary_is_encoded_again_or_refused(zoo, passes):
    from warmstart import EncoderDecoderConfig, EncoderDecoderModel
    from warmstart.families.bert import BertConfig

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder, decoder = BertConfig(vocab_size=40, **size), BertConfig(vocab_size=31, **size)
    torch.manual_seed(0)
    model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)).eval()
    for name, value in {"decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}.items():
        setattr(model.config, name, value)
    ids = torch.arange(14, 30)[None]  # a, b, c ... with 14 as a

    def copy(held, scores):
        return torch.full_like(scores, float("-inf")).index_fill(1, torch.tensor([4 + held.shape[1] - 1]), 0.0)

    options = {"max_length": 14, "logits_processor": copy, "prompt_lookup_num_tokens": 6}
    with pytest.raises(
        ValueError, match=r"vocabulary of 40 is not the decoder's of 31: pass tokenizer=.*encoder_tokenizer"
    ):
        model.generate(ids, **options)
    passes.clear()
    out = model.generate(ids, **options, tokenizer=Letters(4), encoder_tokenizer=Letters(14))
    assert out[0, 1:].tolist() == list(range(4, 17))
    assert len(passes) < 7


def test_a_draft_model_with_a_tokenizer_of_its_own_is_refused(zoo):
    model = zoo.shared("encoder_decoder", 1)
    with pytest.raises(ValueError, match="a draft model must have the model's own tokenizer"):
        model.generate(torch.tensor([[5, 6]]), assistant_model=model, assistant_tokenizer=Letters(4))


@pytest.mark.parametrize(
    ("other", "message"),
    [(("causal", 0), "vocabulary"), (None, "assistant_model is a str; give a model that can generate")],
)
def test_a_draft_model_that_does_not_fit_is_refused(other, message, zoo):
    assistant = "bert" if other is None else zoo.ours(*other)
    if other is not None:
        assistant.resize_token_embeddings(50)
    ids, mask = zoo.sources(3, rows=2)
    with pytest.raises(ValueError, match=message):
        zoo.shared("encoder_decoder", 1).generate(ids, attention_mask=mask, assistant_model=assistant)


def test_a_decoder_alone_may_draft_for_a_pair(zoo):
    ids, mask = zoo.sources(3, rows=3)
    model, options = zoo.shared("encoder_decoder", 1), {"max_length": 12, "suppress_tokens": [zoo.PAD]}
    expected = model.generate(ids, attention_mask=mask, **options)
    given = model.generate(ids, attention_mask=mask, **options, assistant_model=zoo.shared("causal", 1))
    assert torch.equal(given, expected)
