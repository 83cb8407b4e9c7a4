"""The measures of the demo, against figures worked out by hand."""

from __future__ import annotations

import pytest
import torch

from warmstart import BertConfig, EncoderDecoderConfig, EncoderDecoderModel
from warmstart.demo.corpus import Pair
from warmstart.demo.recipe import Examples, mask_tokens
from warmstart.demo.score import first_sentence, gain_interval, held_out_loss, rouge


def test_rouge_of_words_pairs_and_order():
    pairs = [Pair("p", "f", "", "Return the first name."), Pair("p", "g", "", "Return the first name.")]
    scores = rouge(["return the first name", "name the thing"], pairs)
    assert scores["rouge1"] == pytest.approx([100, 100 * 2 * 2 / (4 + 3)])  # `name` and `the` of 4 and 3 words
    assert scores["rouge2"] == pytest.approx([100, 0])
    assert scores["rougeL"] == pytest.approx([100, 100 * 2 * 1 / (4 + 3)])


@pytest.mark.parametrize(
    ("source", "first"),
    [
        (
            "def f(a: int = (1), b={2: 3}) -> dict[str, int]: x = {1: 2} return x",
            "def f(a: int = (1), b={2: 3}) -> dict[str, int]:",
        ),
        ("async def go( self, url, ): return url", "async def go( self, url, ):"),
        ("def cut(a, b, c", "def cut(a, b, c"),
        ("Area of a box. See also volume.", "Area of a box."),
    ],
)
def test_the_first_sentence_of_code_is_its_header(source, first):
    assert first_sentence(source) == first


def test_the_interval_holds_the_mean_and_narrows_with_more_scores():
    better, other = [5.0, 9.0, 4.0, 8.0] * 10, [3.0, 6.0, 5.0, 4.0] * 10
    low, high = gain_interval(better, other)
    assert low < 2.0 < high
    more = gain_interval(better * 25, other * 25)
    assert more[1] - more[0] < (high - low) / 2


def test_the_held_out_loss_is_the_mean_over_tokens_not_over_batches(monkeypatch):
    torch.manual_seed(0)
    size = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**size), BertConfig(**size))
    config.decoder_start_token_id = 2
    model = EncoderDecoderModel(config=config).eval()
    examples = Examples([[2, 5, 3], [2, 6, 7, 3], [2, 3]], [[5, 3], [6, 7, 8, 5, 3], [3]], [])
    whole = held_out_loss(model, examples)
    monkeypatch.setattr("warmstart.demo.score.BATCH", 1)
    assert held_out_loss(model, examples) == pytest.approx(whole, rel=1e-5)


def test_masking_leaves_special_tokens_alone_and_asks_for_what_was_there():
    ids = torch.randint(0, 50, (40, 60), generator=torch.Generator().manual_seed(1))
    inputs, labels = mask_tokens(ids, mask=4, vocabulary=50, share=0.3, generator=torch.Generator().manual_seed(0))
    asked = labels != -100
    assert torch.equal(labels[asked], ids[asked])
    assert torch.equal(inputs[~asked], ids[~asked])
    assert not asked[ids < 5].any()
    assert asked[ids >= 5].float().mean() == pytest.approx(0.3, abs=0.03)
    assert (inputs[asked] == 4).float().mean() == pytest.approx(0.8, abs=0.04)
    assert (inputs[asked] == ids[asked]).float().mean() == pytest.approx(0.1, abs=0.04)
