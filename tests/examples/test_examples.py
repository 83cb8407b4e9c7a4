"""Each example runs as it stands, learns, and leaves a model that opens."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.conftest import folder, made, reads, write_json_lines, writes  # noqa: F401 (fixtures)
from warmstart import EncoderDecoderModel

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "package"), [("bare_loop", "torch"), ("trainer", "transformers"), ("lightning_loop", "lightning")]
)
@pytest.mark.filterwarnings("default")  # what other people's trainers warn of
def test_a_loop_learns_and_saves(name, package, folder, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    pairs = write_json_lines(tmp_path / "pairs.jsonl", made(200))
    words = [str(folder), pairs, "-o", str(tmp_path / "out"), "--steps", "20", "--rate", "0.02"]
    words += ["--batch-tokens", "200", "--source-length", "12", "--target-length", "6"]
    losses = importlib.import_module(f"examples.{name}").main(words)
    assert len(losses) == 20 and sum(losses[-3:]) < 0.95 * sum(losses[:3])
    assert EncoderDecoderModel.from_pretrained(tmp_path / "out")


def test_the_order_is_told_beside_the_papers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    paper = importlib.import_module("examples.leveraging_checkpoints.paper")
    theirs = {name: figures[2] for name, figures in paper.XSUM.items()}
    text = paper.beside(theirs, {name: -value for name, value in theirs.items()})
    assert "| bertshare | 31.1 | 2 | 38.52 / 16.12 / 31.13 | 2 |" in text and text.count("+1.00 (XSum)") == 2
    gains = {"bert2rnd": [1.0, 2.0], "rnd2gpt": [1.0, 1.5], "bert2bert": [-1.0, 2.0], "gpt": []}
    changes = [(name, name, "rnd2rnd") for name in gains]
    assert paper.agreement(changes, lambda new, old: gains[new]) == (
        "The order agrees with the paper's: bert2rnd (+1.50 here, +6.56 there). It does not: rnd2gpt (+1.25 here, "
        "-1.94 there). Within a deviation of nothing here, so that nothing can be said: bert2bert (+0.50 here, +5.81 "
        "there)."
    )
    assert paper.ranks([5.0, 7.0, 5.0]) == [2.5, 1.0, 2.5]


@pytest.mark.slow
def test_the_paper_at_pocket_scale(tmp_path):
    pytest.importorskip("matplotlib")
    words = [sys.executable, "-m", "examples.leveraging_checkpoints", "-o", tmp_path / "out", "--smoke"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT)))}
    ran = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} >= {"results.json", "table.md", "plot.svg", "plot.png"}
    assert "| bertshare | 1 |" in ran.stdout and "| bertshare - bert2bert |" in ran.stdout
    assert "38.52 / 16.12 / 31.13" in ran.stdout and "Rank correlation of the paper's order" in ran.stdout
    before = (out / "cells" / "gpt-0.json").read_bytes()
    (out / "cells" / "rnd2rnd-0.json").unlink()
    again = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert again.stdout.startswith("seed 0 rnd2rnd") and again.stdout.count("seed 0") == 1  # the other cells are there
    assert (out / "cells" / "gpt-0.json").read_bytes() == before
    other = subprocess.run([*words[:-1], "--steps", "3"], capture_output=True, text=True, env=environment)
    assert other.returncode and "was begun with steps 2, not 3; give another folder" in other.stderr
