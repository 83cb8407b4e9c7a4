"""Where a pair looks: weights that sum to one and hide padding, as a figure whose numbers are the model's."""

import pytest
import torch

import tiny_models
from warmstart.torch.attention_maps import cross_attention


@pytest.mark.parametrize("pair", [("bert", "gpt2"), ("gpt2", "bart")])
def test_weights_sum_to_one_and_none_is_on_padding(pair):
    model, batch = tiny_models.pair(*pair).train(), tiny_models.batch()
    weights = cross_attention(model, batch["input_ids"], batch["labels"].clamp(min=0), batch["attention_mask"])
    layers, rows, _, target, source = weights.shape
    assert (layers, rows, target, source) == (2, 3, 6, 7) and model.training
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    assert float(weights[:, 2, ..., -2:].max()) < 1e-6 < float(weights[:, 2, ..., :-2].min())


def test_the_figure_shows_the_weights_each_token_was_chosen_by():
    pytest.importorskip("matplotlib")
    model, batch = tiny_models.pair(), tiny_models.batch()
    source, target = batch["input_ids"][:1], torch.tensor([[1, 7, 8, 9]])
    weights = cross_attention(model, source, target)[:, 0]
    for options, wanted in (
        ({}, weights.mean((0, 1))),
        ({"layer": 1}, weights[1].mean(0)),
        ({"layer": 0, "head": 1}, weights[0, 1]),
    ):
        figure = model.plot_cross_attention(source, target, **options)
        shown = torch.tensor(figure.axes[0].images[0].get_array().data)
        assert torch.allclose(shown, wanted[:3], atol=1e-6)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["7", "8", "9"]
    written = model.plot_cross_attention(source, attention_mask=batch["attention_mask"][:1])
    assert len(written.axes[0].get_xticklabels()) == 7
    with pytest.raises(ValueError, match="3 sources are given"):
        model.plot_cross_attention(batch["input_ids"])
    with pytest.raises(ValueError, match="layer 2: the decoder has 2"):
        model.plot_cross_attention(source, target, layer=2)


def test_all_that_a_decoder_has_positions_for_is_shown():
    pytest.importorskip("matplotlib")
    target = torch.tensor([[1, *[7] * tiny_models.POSITIONS]])  # the last token needs no position
    figure = tiny_models.pair().plot_cross_attention(tiny_models.batch()["input_ids"][:1], target)
    assert figure.axes[0].images[0].get_array().shape[0] == tiny_models.POSITIONS
