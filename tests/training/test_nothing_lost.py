"""A training that is killed, interrupted, or out of disk goes on bit for bit as if nothing had happened."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

import tiny_models
from tiny_models import END
from training.conftest import made, write_json_lines
from warmstart import EncoderDecoderModel
from warmstart.training import state
from warmstart.training.examples import Limits, load_examples
from warmstart.training.log import read_log
from warmstart.training.loop import train
from warmstart.training.pairs import Data
from warmstart.training.recipe import Recipe
from warmstart.training.run import Run
from warmstart.training.stopping import Interrupted, asked_to_stop

RECIPE = Recipe(encoder_rate=5e-3, decoder_rate=5e-3, cross_attention_rate=5e-3, cross_attention_first=0.3)


@pytest.fixture(scope="module")
def examples(tmp_path_factory, reads, writes):
    place = write_json_lines(tmp_path_factory.mktemp("data") / "p.jsonl", made(100))
    return load_examples(Data(place), reads, writes, END, Limits(12, 6))


@pytest.fixture
def fit(examples, reads, writes, tmp_path):
    def go(output="out", resume=True, watch=lambda event: None, recipe=RECIPE, model=None, **run):
        if model is None:
            dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
            model = tiny_models.pair(tiny_models.config("bert", **dropout), "gpt2", spread=0.05)
        fields = {"steps": 12, "batch_tokens": 120, "log_every": 4, "evaluate_every": 4, "save_every": 3, "cpu": True}
        held = examples.select(range(10)) if run.pop("validation", False) else None
        run = Run(tmp_path / output, **fields | run)
        return train(model, (reads, writes), examples, held, [], run, recipe, resume=resume, watch=watch)

    return go


def state_of(folder: Path) -> dict[str, object]:
    """All that a training left, but how long it took."""
    last = state.checkpoints(folder)[-1]
    log = [{name: value for name, value in event.items() if name != "seconds"} for event in read_log(folder)]
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    return {
        "log": log,
        "model": load_file(folder / "model.safetensors"),
        "last": load_file(last / "model.safetensors"),
        "optimizer": {f"{number}.{name}": x for number, one in optimizer.items() for name, x in one.items()},
        "state": json.loads((last / "training.json").read_text())["state"],
    }


def assert_same(one: dict[str, object], other: dict[str, object]) -> None:
    assert one["log"] == other["log"] and one["state"] == other["state"]
    for name in ("model", "last", "optimizer"):
        assert one[name].keys() == other[name].keys()
        assert all(torch.equal(value, other[name][key]) for key, value in one[name].items()), name


class Killed(BaseException):
    pass


def kill_at(step):
    def watch(event):
        if event["step"] == step and "loss" in event:
            raise Killed

    return watch


def test_ends_at_any_step_and_goes_on_bit_for_bit(fit, tmp_path):
    """Dropout is on, the first phase ends at step 3, a log line spans the checkpoint."""
    fit("whole", validation=True, log_every=1)
    for step in (1, 5, 7, 12):
        cut = f"cut at {step}"
        with pytest.raises(Killed):
            fit(cut, validation=True, watch=kill_at(step), log_every=1)
        fit(cut, validation=True, log_every=1)
        assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / cut))


def test_sums_of_the_log_go_on(fit, tmp_path):
    fit("whole", log_every=5, save_every=3)
    fit("cut", log_every=5, save_every=3)
    shutil.rmtree(tmp_path / "cut")
    with pytest.raises(Killed):
        fit("cut", log_every=5, save_every=3, watch=kill_at(10))
    assert state.checkpoints(tmp_path / "cut")[-1].name == "step-9"
    fit("cut", log_every=5, save_every=3)
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))


def test_another_accumulation_goes_on_the_same(fit, tmp_path):
    """How a step is computed is free: here the losses agree, and no setting is complained of."""
    still = tiny_models.pair("bert", "gpt2", spread=0.05)
    fit("whole", model=still)
    with pytest.raises(Killed):
        fit("cut", model=tiny_models.pair("bert", "gpt2", spread=0.05), watch=kill_at(8))
    fit("cut", model=tiny_models.pair("bert", "gpt2", spread=0.05), accumulate=3)
    losses = [[e["loss"] for e in read_log(tmp_path / name) if "loss" in e] for name in ("whole", "cut")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def first_line(process, folder):
    """Wait until a training has begun to train, so that it gets on; when that was."""
    while process.poll() is None and not (folder / "metrics.jsonl").exists():
        time.sleep(0.01)
    return time.monotonic()


@pytest.mark.slow
def test_killed_at_random_moments(folder, tmp_path):
    """kill -9 in processes of their own, wherever it comes: loading, a step, a save, the end."""
    write_json_lines(tmp_path / "train.jsonl", made(100))
    write_json_lines(tmp_path / "dev.jsonl", made(10, seed=1))
    words = [sys.executable, Path(__file__).with_name("run_training.py"), folder, tmp_path]
    whole = subprocess.Popen([*words, tmp_path / "whole"])
    begin = first_line(whole, tmp_path / "whole")
    assert whole.wait() == 0
    seconds, kills, draw = time.monotonic() - begin, 0, random.Random(time.time_ns())
    for _ in range(30):
        process = subprocess.Popen([*words, tmp_path / "cut"])
        first_line(process, tmp_path / "cut")
        try:
            process.wait(draw.uniform(0.1, 0.7) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        assert process.returncode in (0, -signal.SIGKILL)
        if process.returncode == 0 and kills == 0:  # it was faster than the whole one: once more
            shutil.rmtree(tmp_path / "cut")
        elif process.returncode == 0:
            break
        if kills == 2:
            subprocess.run([*words, tmp_path / "cut"], check=True)
            break
    assert kills
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["copies", "shards"])
def test_two_processes_train_as_one_and_one_goes_on_from_two(kind, folder, tmp_path, monkeypatch):
    """The same batches over gloo: the same losses; what two began one goes on with, and two with what one did."""
    if kind == "shards":
        monkeypatch.setenv("SHARD", "1")
    write_json_lines(tmp_path / "train.jsonl", made(100))
    write_json_lines(tmp_path / "dev.jsonl", made(10, seed=1))
    script = Path(__file__).with_name("run_training.py")
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    subprocess.run([sys.executable, script, folder, tmp_path, tmp_path / "one", "0"], check=True)
    subprocess.run([*together, folder, tmp_path, tmp_path / "two", "0", "8"], check=True)
    assert state.checkpoints(tmp_path / "two")[-1].name == "step-8"
    saved, weights = state.checkpoints(tmp_path / "two")[-1], EncoderDecoderModel.from_pretrained
    assert all(type(x) is torch.Tensor for x in weights(saved).state_dict().values())
    subprocess.run([sys.executable, script, folder, tmp_path, tmp_path / "two", "0", "12"], check=True)
    subprocess.run([*together, folder, tmp_path, tmp_path / "two", "0"], check=True)
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    assert [event["step"] for event in one] == [event["step"] for event in two]
    for name in ("loss", "validation_loss", "target_tokens"):
        found = [[event[name] for event in log if name in event] for log in (one, two)]
        assert found[0] and found[0] == pytest.approx(found[1], abs=1e-5)
    assert [path.name for path in state.checkpoints(tmp_path / "two")] == ["step-15"]


@pytest.mark.slow
def test_the_command_on_two_processes_stops_as_one_and_goes_on(folder, tmp_path):
    """torchrun's processes find each other, end after the same step, and train as one process does."""
    write_json_lines(tmp_path / "train.jsonl", made(100))
    write_json_lines(tmp_path / "dev.jsonl", made(10, seed=1))
    words = ["-m", "warmstart", "train", folder, tmp_path / "train.jsonl", "--validation", tmp_path / "dev.jsonl"]
    words += ["--steps", "30", "--batch-tokens", "150", "--samples", "0", "--save-every", "1", "--evaluate-every", "10"]
    words += ["--cache-dir", tmp_path / "cache", "--threads", "1", "--cpu", "--resume"]
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    subprocess.run([sys.executable, *words, "-o", tmp_path / "one"], check=True)

    process = subprocess.Popen(
        [sys.executable, *together, "-o", tmp_path / "two"],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not state.checkpoints(tmp_path / "two"):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does; torchrun then hands it on once more
    said = process.communicate(timeout=60)[1]
    steps = [line.split("step ")[1].split(";")[0] for line in said.splitlines() if "stopped after" in line]
    assert len(steps) == 2 and steps[0] == steps[1]
    assert [path.name for path in state.checkpoints(tmp_path / "two")] == [f"step-{steps[0]}"]

    subprocess.run([sys.executable, *together, "-o", tmp_path / "two"], check=True)
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    assert [event["step"] for event in one] == [event["step"] for event in two]
    for name in ("loss", "validation_loss", "target_tokens"):
        found = [[event[name] for event in log if name in event] for log in (one, two)]
        assert found[0] and found[0] == pytest.approx(found[1], abs=1e-5)


def test_processes_that_would_train_apart_are_refused(fit, monkeypatch):
    PartialState(cpu=True)  # as it is where it was asked before the processes were known
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, but 1 would train together here"):
        fit()


def test_a_second_signal_ends_at_once_but_not_the_launchers(request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background it is ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), asked_to_stop() as wanted:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the same, handed on
        assert wanted()
        time.sleep(1.1)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")


def test_killed_inside_every_save(fit, tmp_path, monkeypatch):
    """A save is cut off after each of its renames in turn; the training goes on from what is whole."""
    fit("whole", steps=4, evaluate_every=2, save_every=None)
    real = os.rename
    for cut in range(1, 9):
        count = 0

        def rename(*names, cut=cut):
            nonlocal count
            count += 1
            real(*names)
            if count == cut:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            with pytest.raises(Killed):
                fit(f"cut-{cut}", steps=4, evaluate_every=2, save_every=None)
        fit(f"cut-{cut}", steps=4, evaluate_every=2, save_every=None)
        assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / f"cut-{cut}"))
    assert count == 8


def test_ctrl_c_saves_the_step_and_says_so(fit, tmp_path):
    fit("whole")

    def press(event):
        if event["step"] == 8 and "loss" in event:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"stopped after step 8; .*holds a checkpoint of it"):
        fit("cut", watch=press, evaluate_every=12, save_every=None)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in state.checkpoints(tmp_path / "cut")] == ["step-8"]
    fit("cut", evaluate_every=12, save_every=None)
    one, other = (state_of(tmp_path / name) for name in ("whole", "cut"))
    assert all(torch.equal(value, other["last"][name]) for name, value in one["last"].items())


def test_a_full_disk_leaves_the_last_checkpoint(fit, tmp_path, monkeypatch):
    real, calls = torch.save, []

    def full(value, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(value, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"nothing was saved to .*step-4.*No space left"):
            fit("cut")
    assert [path.name for path in state.checkpoints(tmp_path / "cut")] == ["step-3"]
    fit("whole")
    fit("cut")
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "cut"))


def test_a_training_of_other_settings_or_architecture_is_not_gone_on_with(fit, tmp_path):
    with pytest.raises(Killed):
        fit(watch=kill_at(8))
    with pytest.raises(ValueError, match=r"step-\d was made with other settings: batch_tokens was 120 and is 200"):
        fit(batch_tokens=200)
    with pytest.raises(ValueError, match=r"encoder_rate was 0.005 and is 0.1"):
        fit(recipe=dataclasses.replace(RECIPE, encoder_rate=0.1))
    other = tiny_models.pair(tiny_models.config("bert", num_hidden_layers=1), "gpt2")
    with pytest.raises(ValueError, match=r"is a checkpoint of another architecture: \d+ weights differ"):
        fit(model=other)
    last = state.checkpoints(tmp_path / "out")[-1]
    (last / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"optimizer\.pt cannot be read"):
        fit()


def test_a_training_that_has_ended_stays_as_it_is(fit, tmp_path):
    fit(validation=True)
    before = state_of(tmp_path / "out")
    fit(validation=True)
    assert_same(before, state_of(tmp_path / "out"))
    assert EncoderDecoderModel.from_pretrained(tmp_path / "out")
