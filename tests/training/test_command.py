"""`warmstart train` on a command line: what it does and says, and what it refuses."""

import json
import re

import pytest

from cli.helpers import command
from training.conftest import made, write_json_lines
from warmstart import EncoderDecoderModel
from warmstart.training.log import read_log


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_json_lines(tmp_path / "pairs.jsonl", made(200), ("article", "summary"))


COLUMNS = ("--source-column", "article", "--target-column", "summary", "--cpu", "--cache-dir", "tokenized")


def test_from_pairs_to_a_model_that_generates(folder, pairs, tmp_path):
    out = tmp_path / "out"
    ran = command(
        "train", folder, pairs, "-o", out, *COLUMNS, "--steps", 6, "--batch-tokens", 200, "--set", "num_beams=2"
    )
    assert (ran.code, ran.error) == (0, None), ran.err
    assert "padding in batches" in ran.out and re.search(r"all \d+ tensors that are trained have one", ran.out)
    assert "step 6: validation loss" in ran.out and "ROUGE-L" in ran.out and "chrF" in ran.out
    assert EncoderDecoderModel.from_pretrained(out).generation_config.num_beams == 2
    (tmp_path / "texts.txt").write_text("w1 w2 w3\n")
    assert command("generate", out, tmp_path / "texts.txt").code == 0
    again = command("train", folder, pairs, "-o", out, *COLUMNS, "--steps", 6, "--batch-tokens", 200)
    assert (again.code, again.out) == (2, "") and "holds a training; go on with it" in again.err


def test_recipe_and_run_are_taken_from_the_options(folder, pairs, tmp_path):
    options = ("--encoder-rate", 0, "--freeze", "decoder", "--schedule", "constant", "--epochs", 1, "--accumulate", 2)
    more = ("--cross-attention-first", 0, "--dropout", 0.3, "--validation-share", 0, "--precision", "bf16")
    ran = command("train", folder, pairs, "-o", tmp_path / "out", *COLUMNS, *options, *more, "--batch-tokens", 900)
    assert ran.code == 0, ran.err
    kept = EncoderDecoderModel.from_pretrained(tmp_path / "out")
    assert kept.config.encoder.hidden_dropout_prob == kept.config.decoder.resid_pdrop == 0.3
    state = json.loads(next((tmp_path / "out" / "checkpoints").glob("*/training.json")).read_text())
    assert state["settings"]["encoder_rate"] == 0 and state["settings"]["precision"] == "bf16"
    events = [event for event in read_log(tmp_path / "out") if "rates" in event]
    assert set(events[-1]["rates"]) == {"encoder", "cross_attention"}


def test_check_trains_and_writes_nothing(folder, pairs, tmp_path):
    ran = command("train", folder, pairs, "-o", tmp_path / "out", *COLUMNS, "--check")
    assert ran.code == 0 and "another one moves the logits" in ran.out, ran.err
    assert not (tmp_path / "out").exists()


def test_overfit_learns_as_many_pairs_as_there_are(folder, tmp_path):
    pairs = write_json_lines(tmp_path / "few.jsonl", made(3))
    ran = command("train", folder, pairs, "-o", tmp_path / "out", "--overfit", 8)
    assert ran.code == 0 and "3 pairs were learnt by heart: loss 0.0" in ran.out, ran.err
    assert not (tmp_path / "out").exists()


def test_overfit_says_when_it_fails(folder, tmp_path):
    pairs = write_json_lines(tmp_path / "both.jsonl", [("w1 w2", "w1"), ("w1 w2", "w2")])
    ran = command("train", folder, pairs, "-o", tmp_path / "out", "--overfit", 8)
    assert ran.code == 2 and "2 pairs were not learnt by heart" in ran.err and "one source and different" in ran.err
    assert not (tmp_path / "out").exists()


def test_bad_rows_are_refused_or_counted(folder, pairs, tmp_path):
    with open(pairs, "a") as file:
        file.write("{broken\n")
    words = ("train", folder, pairs, "-o", tmp_path / "out", *COLUMNS, "--check")
    ran = command(*words)
    assert ran.code == 2 and f"{pairs}, line 201: not JSON" in ran.err
    ran = command(*words, "--skip-bad")
    assert ran.code == 0 and "left out: no pair" in ran.out and "line 201: not JSON" in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--validation-share", -0.1), "--validation-share -0.1 is not a share from 0 to below 1"),
        (("--validation-share", 1), "--validation-share 1.0 is not a share"),
        (("--validation-split", "dev"), "--validation-split dev: "),
        (("--validation-share", 0, "--patience", 2, "--average", 3), "--patience, --average compares models on valida"),
        (("--targets", "b.txt"), "(.jsonl) holds sources and targets"),
        (("--samples", -1), "samples -1: give a whole number, 0 or more"),
        (("--max-source-length", 99), "--max-source-length 99 is more than the encoder's 40 positions"),
        (("--steps", 0), "steps 0: give a whole number"),
        (("--set", "num_beans=4"), "did you mean 'num_beams'"),
        (("--source-column", "text"), "there is no column 'text'"),
        (("--validation", "dev.jsonl"), "dev.jsonl is not there"),
        (("--overfit", 0), "--overfit 0"),
    ],
)
def test_what_is_refused_before_training(folder, pairs, tmp_path, words, message):
    ran = command("train", folder, pairs, "-o", tmp_path / "out", *COLUMNS, *words)
    assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()


def test_a_stack_alone_is_no_pair(pairs, tmp_path, reads):
    import tiny_models

    tiny_models.saved(tmp_path / "bert", "bert")
    reads.save_pretrained(tmp_path / "bert")
    ran = command("train", tmp_path / "bert", pairs, "-o", tmp_path / "out", *COLUMNS)
    assert ran.code == 2 and "is a bert, not an encoder-decoder; make one with warmstart create" in ran.err


def test_another_models_folder_is_not_overwritten(folder, pairs):
    before = sorted(path.name for path in folder.iterdir())
    ran = command("train", folder, pairs, "-o", folder, *COLUMNS)
    assert ran.code == 2 and "is not empty and holds no training" in ran.err
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("width", [80, 120])
def test_help_fits_the_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = command("train", "--help").out.splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line or line.rstrip(" │").endswith("-") for line in lines if line.startswith("│")), lines
