"""A stream of pairs: every pair comes in each epoch, nothing is kept, and it goes on where it stood."""

import itertools

import numpy as np
import pytest
import torch

import tiny_models
from cli.helpers import command
from tiny_models import END
from training.conftest import made, write_json_lines
from warmstart import EncoderDecoderModel
from warmstart.training.examples import Asked, Limits, load_examples
from warmstart.training.loop import train
from warmstart.training.pairs import Data
from warmstart.training.recipe import Recipe
from warmstart.training.run import Run
from warmstart.training.stream import Stream


@pytest.fixture
def stream(reads, writes, tmp_path):
    data = Data(write_json_lines(tmp_path / "p.jsonl", made(2500)))

    def make(budget=4000, at_once=1200):
        return Stream(Asked(data, reads, writes, END, Limits(12, 6), False), budget, 0, at_once)

    return make


def rows(batch):
    examples, places = batch
    return examples.column("rows")[places].tolist()


def test_every_pair_comes_once_in_an_epoch_as_it_is(stream, reads, writes):
    one = stream()
    steps = list(itertools.takewhile(lambda step: one.batch(step) and one.place[1] == 0, itertools.count()))
    again = stream()
    seen = [rows(again.batch(step)) for step in steps]
    assert sorted(itertools.chain(*seen)) == list(range(2500)) and seen[0] != sorted(seen[0])
    stored = load_examples(one.asked.data, reads, writes, END, Limits(12, 6))
    third = stream()
    for step in (0, 3, steps[-1]):
        examples, places = third.batch(step)
        for place in places[:3].tolist():
            row = int(examples.column("rows")[place])
            assert np.array_equal(examples.source(place), stored.source(row))
            assert np.array_equal(examples.labels(place), stored.labels(row))
    with pytest.raises(ValueError, match="step 0 has gone by"):
        third.batch(0)


def test_it_goes_on_from_its_place(stream):
    one = stream()
    wanted = [rows(one.batch(step)) for step in range(20)]
    first = stream()
    first.batch(11)
    later = stream()
    later.seek(first.place)
    assert first.place[0] > 0 and [rows(later.batch(step)) for step in range(11, 20)] == wanted[11:]


class Killed(BaseException):
    pass


def test_a_training_from_a_stream_goes_on_bit_for_bit_and_keeps_no_copy(stream, reads, writes, tmp_path):
    def fit(output, watch=lambda event: None):
        model = tiny_models.pair("bert", "gpt2", spread=0.05)
        run = Run(tmp_path / output, steps=8, batch_tokens=4000, save_every=3, log_every=1, cpu=True)
        train(model, (reads, writes), stream(), None, [], run, Recipe(), resume=True, watch=watch)

    def kill(event):
        if event["step"] == 7:
            raise Killed

    fit("whole")
    with pytest.raises(Killed):
        fit("cut", kill)
    fit("cut")
    one, other = (EncoderDecoderModel.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert {path.name for path in tmp_path.iterdir()} == {"p.jsonl", "whole", "cut"}


def test_the_command(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs, held = (write_json_lines(tmp_path / f"{name}.jsonl", made(40)) for name in ("p", "v"))
    asked = ("train", folder, pairs, "-o", "out", "--cpu", "--stream", "--cache-dir", "kept", "--batch-tokens", 200)
    ran = command(*asked, "--steps", 3)
    assert ran.code == 2 and "--stream reads no pair ahead" in ran.err
    ran = command(*asked, "--validation", held)
    assert ran.code == 2 and "--stream: how many pairs" in ran.err
    ran = command(*asked, "--validation", held, "--steps", 3, "--samples", 4, "--lora", 2, "--tensorboard")
    assert ran.code == 0, ran.err
    assert "as far as it was read" in ran.out and len(list((tmp_path / "kept").iterdir())) == 1  # the validation pairs
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1
