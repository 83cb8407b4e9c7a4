"""The loop: it learns; accumulation, evaluation, what is kept, early stopping, precision, what is refused."""

import dataclasses
import json
from itertools import pairwise

import pytest
import torch

import tiny_models
from tiny_models import END
from training.conftest import made, write_json_lines
from warmstart import AutoTokenizer, EncoderDecoderModel
from warmstart.torch.layers import Layer
from warmstart.training import loop as module
from warmstart.training import measure, state
from warmstart.training.examples import Limits, load_examples, texts
from warmstart.training.log import read_log
from warmstart.training.loop import train
from warmstart.training.pairs import Data
from warmstart.training.recipe import Recipe
from warmstart.training.run import Run

FAST = Recipe(encoder_rate=5e-3, decoder_rate=5e-3, cross_attention_rate=5e-3, dropout=0.0)
LEARNS = Recipe(encoder_rate=0.01, decoder_rate=0.01, cross_attention_rate=0.01, cross_attention_first=0.0)
LIMITS = Limits(12, 6)


@pytest.fixture(scope="module")
def data(tmp_path_factory, reads, writes):
    """Examples for training and validation, and the references of the latter."""
    folder = tmp_path_factory.mktemp("data")
    sets = []
    for name, pairs in (("train", made(400, longest=4)), ("dev", made(30, seed=1, longest=4))):
        where = Data(write_json_lines(folder / f"{name}.jsonl", pairs))
        sets.append((where, load_examples(where, reads, writes, END, LIMITS)))
    references = texts(sets[1][0], sets[1][1].column("rows"))
    return sets[0][1], sets[1][1], references


@pytest.fixture
def fit(data, reads, writes, tmp_path):
    def go(run=None, recipe=FAST, model=None, resume=False, validation=True, **options):
        model = tiny_models.pair("bert", "gpt2", spread=0.05) if model is None else model
        model.generation_config.max_new_tokens = 6
        run = Run(
            **{"output": tmp_path / "out", "steps": 20, "batch_tokens": 120, "evaluate_every": 1000, "cpu": True}
            | (run or {})
        )
        held = data[1:] if validation else (None, [])
        return train(model, (reads, writes), data[0], *held, run, recipe, resume=resume, **options), model

    return go


def test_it_learns_and_the_best_model_stands_in_the_folder(fit, data, tmp_path):
    """The target is the source's first two words: cross-attention has to find them."""
    told = []
    result, _ = fit({"steps": 150, "batch_tokens": 400, "evaluate_every": 50}, LEARNS, watch=told.append)
    events = read_log(tmp_path / "out")
    assert told == events
    losses = [event["validation_loss"] for event in events if "validation_loss" in event]
    assert len(losses) == 3 and losses[-1] < 0.7 * losses[0]
    assert events[-1]["exact"] > 20 and events[-1]["rougeL"] > 45 and events[-1]["samples"]
    assert result.best == (min(losses), result.best[1])
    kept = EncoderDecoderModel.from_pretrained(tmp_path / "out")
    assert measure.held_out_loss(kept, data[1], 400) == pytest.approx(min(losses), abs=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w0")["input_ids"] == [1, 5, 2]
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-150"]
    assert "checks" in events[0] and "another one moves the logits" in events[0]["checks"]["source"]


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_close(one, other, bound):
    assert max(float((one[name] - other[name]).abs().max()) for name in one) <= bound


def test_accumulation_changes_nothing(fit, tmp_path):
    def losses(name):
        return [event["loss"] for event in read_log(tmp_path / name) if "loss" in event]

    whole = fit({"steps": 4, "output": tmp_path / "whole"})[1]
    for parts in (2, 4, 8, 64):
        split = fit({"steps": 4, "accumulate": parts, "output": tmp_path / f"{parts} parts"})[1]
        assert losses(f"{parts} parts") == pytest.approx(losses("whole"), abs=1e-6), parts
        assert_close(weights(whole), weights(split), 1e-4)  # Adam makes much of gradients that are rounding errors


def test_gradient_checkpointing_changes_nothing(fit, tmp_path):
    one = fit({"steps": 3, "output": tmp_path / "a"})[1]
    other = fit({"steps": 3, "gradient_checkpointing": True, "output": tmp_path / "b"})[1]
    assert_close(weights(one), weights(other), 1e-6)
    assert not other.is_gradient_checkpointing


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it
def test_compile_changes_nothing_and_leaves_a_plain_model(fit, tmp_path, monkeypatch):
    """The layers' graphs are what is captured; a backend that computes them as they are takes no compiler's time."""
    compiled, real = [], torch.nn.Module.compile

    def compile_(self, **options):
        compiled.append((type(self), options))
        real(self, backend="aot_eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    one = fit({"steps": 3, "output": tmp_path / "a"}, validation=False)[1]
    assert not compiled
    other = fit({"steps": 3, "compile": True, "output": tmp_path / "b"}, validation=False)[1]
    assert compiled == [(Layer, {"dynamic": True})] * 4
    assert_close(weights(one), weights(other), 1e-4)
    assert all(layer._compiled_call_impl is None for stack in other.stacks() for layer in stack.layers)


def test_adapters_in_shards_are_refused(fit, tmp_path):
    with pytest.raises(ValueError, match=r"shard with lora: .* leave one of the two out"):
        fit({"shard": True}, dataclasses.replace(FAST, lora=2))
    assert not (tmp_path / "out").exists()


def test_the_first_phase_trains_cross_attention_alone(fit):
    model = tiny_models.pair("bert", "gpt2", spread=0.05)
    before, moved = weights(model), {}

    def look(event):
        if "loss" in event:
            moved[event["step"]] = {
                name for name, value in model.named_parameters() if not torch.equal(value, before[name])
            }

    recipe = dataclasses.replace(FAST, cross_attention_first=0.5)
    fit({"steps": 4, "log_every": 1}, recipe, model, validation=False, watch=look)
    own = {name for name, _ in model.named_parameters() if "cross_attention" in name or "enc_to_dec_proj" in name}
    assert [moved[step] == own for step in (1, 2, 3, 4)] == [True, True, False, False]
    assert moved[4] == {name for name, _ in model.named_parameters()}


def test_frozen_parts_stay_as_they_were(fit):
    model = tiny_models.pair("bert", "gpt2", spread=0.05)
    before = weights(model)
    fit({"steps": 5}, dataclasses.replace(FAST, freeze=("encoder",)), model, validation=False)
    same = {name for name, value in weights(model).items() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.startswith("encoder.")}


def test_bf16_learns_nearly_the_same(fit, tmp_path):
    exact = fit({"steps": 4, "output": tmp_path / "a", "samples": 0})[0]
    rounded = fit({"steps": 4, "samples": 0, "precision": "bf16", "output": tmp_path / "b"})[0]
    difference = abs(exact.last["validation_loss"] - rounded.last["validation_loss"])
    assert 0 < difference < 0.02 * exact.last["validation_loss"]


def test_early_stopping_and_the_best_of_several(fit, tmp_path):
    values = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "held_out_loss", lambda *_: next(values))
        result, model = fit({"steps": 50, "evaluate_every": 3, "patience": 2})
    assert result.steps == 12 and result.best == (2.0, 6)
    kept = EncoderDecoderModel.from_pretrained(tmp_path / "out")
    assert any(not torch.equal(value, weights(kept)[name]) for name, value in weights(model).items())
    again, _ = fit({"steps": 50, "evaluate_every": 3, "patience": 2}, resume=True)
    assert again.steps == 12  # it has ended


def test_texts_may_be_as_long_as_the_longest_target_unless_the_model_says(fit, data, reads, writes, tmp_path):
    model = tiny_models.pair("bert", "gpt2", spread=0.05)
    run = Run(tmp_path / "own", steps=1, batch_tokens=120, cpu=True)
    train(model, (reads, writes), *data, run, FAST)
    assert EncoderDecoderModel.from_pretrained(tmp_path / "own").generation_config.max_new_tokens == 3
    fit({"steps": 1})  # there it is set to 6
    assert EncoderDecoderModel.from_pretrained(tmp_path / "out").generation_config.max_new_tokens == 6


def test_best_by_a_metric_of_texts(fit):
    found = iter([{"rougeL": 10.0}, {"rougeL": 30.0}, {"rougeL": 20.0}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "scores", lambda counted: next(found))
        result, _ = fit({"steps": 6, "evaluate_every": 2, "best": "rougeL"})
    assert result.best == (-30.0, 4)


def test_average_of_the_best_checkpoints(fit, data, tmp_path):
    fit({"steps": 60, "evaluate_every": 10, "average": 3}, dataclasses.replace(FAST, schedule="constant"))
    events = read_log(tmp_path / "out")
    losses = {event["step"]: event["validation_loss"] for event in events if "validation_loss" in event}
    averaged = events[-1]
    assert averaged["averaged"] == sorted(losses, key=losses.get)[:3]
    folders = [tmp_path / "out" / "checkpoints" / f"step-{step}" for step in averaged["averaged"]]
    assert {path.name for path in folders} <= {path.name for path in state.checkpoints(tmp_path / "out")} | {"step-60"}
    held = [weights(EncoderDecoderModel.from_pretrained(folder)) for folder in folders]
    kept = weights(EncoderDecoderModel.from_pretrained(tmp_path / "out"))
    if averaged["averaged_loss"] < min(losses.values()):
        assert_close({name: sum(one[name] for one in held) / 3 for name in kept}, kept, 1e-6)
    else:
        assert_close(held[0], kept, 0)


def test_without_validation_the_last_model_is_kept(fit, tmp_path):
    result, model = fit({"steps": 5}, validation=False)
    assert result.best is None
    assert_close(weights(EncoderDecoderModel.from_pretrained(tmp_path / "out")), weights(model), 0)


def test_epochs_and_steps(fit, data):
    order = module.Order(data[0], 400, 0)
    result, _ = fit({"steps": None, "epochs": 2, "batch_tokens": 400}, validation=False)
    assert result.steps == order.steps(2) == len(order.batches(0)) + len(order.batches(1))


def test_the_log_says_rates_and_rises_in_steps(fit, tmp_path):
    fit({"steps": 20, "log_every": 5}, validation=False)
    events = [event for event in read_log(tmp_path / "out") if "rates" in event]
    assert [event["step"] for event in events] == [5, 10, 15, 20]
    assert all(set(event["rates"]) == {"encoder", "decoder", "cross_attention"} for event in events)
    assert all(one["seconds"] <= other["seconds"] for one, other in pairwise(events))
    assert all(event["target_tokens"] > 0 for event in events)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "int8"}, "precision 'int8' is not known; use one of fp32, bf16, fp16"),
        ({"best": "bleurt"}, "best 'bleurt' is not known"),
        ({"batch_tokens": 0}, "batch_tokens 0: give a whole number"),
        ({"seed": -1}, "seed -1: give a whole number, 0 or more"),
        ({"average": 0}, "average 0: give a whole number, 1 or more"),
        ({"best": "bleu", "samples": 0}, "samples=0 writes none"),
        ({"precision": "fp16", "cpu": True}, "precision 'fp16' needs a GPU, and none is used here; bf16 computes on"),
    ],
)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        Run("out", **fields)


def test_no_folder_is_overwritten(fit, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(json.dumps({}))
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="is not empty and holds no training"):
            fit(resume=resume)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file"):
        fit({"output": tmp_path / "file"})
    fit({"steps": 2, "output": tmp_path / "one"}, validation=False)
    with pytest.raises(FileExistsError, match="holds a training; go on with it"):
        fit({"steps": 2, "output": tmp_path / "one"}, validation=False)


def test_a_model_that_fails_the_check_is_not_trained(fit, tmp_path):
    model = tiny_models.pair("bert", "gpt2")
    for layer in model.decoder.layers:
        torch.nn.init.zeros_(layer.cross_attention.output.weight)
        torch.nn.init.zeros_(layer.cross_attention.output.bias)
    with pytest.raises(ValueError, match="the decoder does not see the encoder"):
        fit(model=model)
    assert state.checkpoints(tmp_path / "out") == []


def test_a_loss_that_is_no_number_ends_with_the_last_checkpoint(fit, tmp_path):
    model = tiny_models.pair("bert", "gpt2", spread=0.05)

    def spoil(event):
        if event["step"] == 10 and "loss" in event:
            with torch.no_grad():
                model.decoder.layers[0].mlp.up.weight[0, 0] = float("nan")  # after its loss, before its checkpoint

    with pytest.raises(
        ValueError, match=r"the loss or a weight is nan at step 10; the last good checkpoint is .*step-5"
    ):
        fit({"save_every": 5}, model=model, validation=False, watch=spoil)
    good = EncoderDecoderModel.from_pretrained(state.checkpoints(tmp_path / "out")[-1])
    assert all(bool(value.isfinite().all()) for value in good.state_dict().values())


def test_too_little_memory_is_said_with_what_to_change(fit, monkeypatch):
    def full(self):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(module._Loop, "step", full)
    with pytest.raises(ValueError, match=r"120 tokens in 2 parts does not fit in memory; .*accumulate 4"):
        fit({"accumulate": 2})
