"""LoRA: adapters and cross-attention learn, the rest stays; what is kept is a plain model; it goes on bit for bit."""

import pytest
import torch

import tiny_models
from tiny_models import END
from training.conftest import made, write_json_lines
from warmstart import EncoderDecoderModel
from warmstart.training import lora, measure, state
from warmstart.training.examples import Limits, load_examples
from warmstart.training.log import read_log
from warmstart.training.loop import train
from warmstart.training.pairs import Data
from warmstart.training.recipe import Recipe, part_of
from warmstart.training.run import Run

RECIPE = Recipe(lora=2, lora_rate=5e-3, cross_attention_rate=5e-3, cross_attention_first=0.2)
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def examples(tmp_path_factory, reads, writes):
    place = write_json_lines(tmp_path_factory.mktemp("data") / "p.jsonl", made(60))
    return load_examples(Data(place), reads, writes, END, Limits(12, 6))


@pytest.fixture
def fit(examples, reads, writes, tmp_path):
    def go(output="out", model=None, watch=lambda event: None, **run):
        model = tiny_models.pair("bert", "gpt2", spread=0.05) if model is None else model
        run = Run(tmp_path / output, steps=10, batch_tokens=120, evaluate_every=5, log_every=1, cpu=True, **run)
        held = examples.select(range(10))
        return train(model, (reads, writes), examples, held, [], run, RECIPE, resume=True, watch=watch), model

    return go


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_adapters_and_cross_attention_learn_and_a_plain_model_is_kept(fit, examples, tmp_path):
    model = tiny_models.pair("bert", "gpt2", spread=0.05)
    before = weights(model)
    result, model = fit(model=model)
    assert not lora.layers(model) and weights(model).keys() == before.keys()
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    matrices = {
        name
        for name in before
        if part_of(name) != "cross_attention" and ".layers." in name and "norm" not in name and "weight" in name
    }
    assert moved == matrices | {name for name in before if part_of(name) == "cross_attention"}
    kept = EncoderDecoderModel.from_pretrained(tmp_path / "out")
    assert measure.held_out_loss(kept, examples.select(range(10)), 120) == pytest.approx(result.best[0], abs=1e-6)
    losses = [event["loss"] for event in read_log(tmp_path / "out") if "loss" in event]
    assert losses[-1] < losses[0]
    saved = torch.load(state.checkpoints(tmp_path / "out")[-1] / "optimizer.pt", weights_only=True)
    assert sum(x.numel() for x in saved["adapters"].values()) < sum(before[name].numel() for name in matrices)


class Killed(BaseException):
    pass


def test_it_goes_on_bit_for_bit_and_beside_the_same_model_alone(fit, tmp_path):
    def kill(event):
        if event["step"] == 7:
            raise Killed

    fit("whole")
    with pytest.raises(Killed):
        fit("cut", watch=kill)
    with pytest.raises(ValueError, match="learnt beside other weights"):
        fit("cut", model=tiny_models.pair("bert", "gpt2", spread=0.06))
    fit("cut")
    one, other = (EncoderDecoderModel.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_generation_sees_the_adapters():
    """The engine reads matrices, not layers."""
    model, batch = tiny_models.pair("bert", "gpt2"), tiny_models.batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    lora.add(model, 2)
    for name, value in lora.adapters(model).items():
        torch.nn.init.normal_(value, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    with torch.no_grad():
        logits = model(**batch).logits
        with lora.merged(model):
            assert torch.allclose(model(**batch).logits, logits, atol=1e-4)
            one = model.generate(**inputs, max_new_tokens=5)
        lora.fold(model)
        assert torch.equal(model.generate(**inputs, max_new_tokens=5), one)


def test_shared_sides_are_refused():
    with pytest.raises(ValueError, match="encoder and decoder share their weights"):
        lora.add(tiny_models.pair("bert", "bert", tie_encoder_decoder=True), 2)
