"""The page of a training: whole, without a network, with what happened on it."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import tiny_models
from tiny_models import END
from training.conftest import made, write_json_lines
from warmstart.training import svg
from warmstart.training.examples import Limits, load_examples, texts
from warmstart.training.log import read_log
from warmstart.training.loop import train
from warmstart.training.pairs import Data
from warmstart.training.recipe import Recipe
from warmstart.training.run import Run

VOID = {"meta", "line", "circle", "rect", "polyline", "br"}


class Tags(HTMLParser):
    """What is open and what was said; a page that closes another tag than the last fails."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_tells_the_training(reads, writes, tmp_path):
    pairs = [*made(40), ("w1 <b>w2</b> & w3", "w4")]
    data = Data(write_json_lines(tmp_path / "p.jsonl", pairs))
    examples = load_examples(data, reads, writes, END, Limits(12, 6))
    held = examples.select(np.array([40, 1, 2, 3]))
    model = tiny_models.pair("bert", "gpt2", spread=0.05)
    model.generation_config.max_new_tokens = 5
    run = Run(tmp_path / "out", steps=4, batch_tokens=120, evaluate_every=2, log_every=1, cpu=True)
    train(model, (reads, writes), examples, held, texts(data, held.column("rows")), run, Recipe())
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert not tags.open and not re.search(r"https?://|src=|@import|<script|<link", page)
    text = " ".join(tags.text)
    for said in ("4 steps, 41 pairs", "validation", "cross-attention", "ROUGE-L", "Source lengths", "Target lengths"):
        assert said in text
    assert "w1 <b>w2</b> & w3" in text and [f"step {step}" in text for step in (0, 2, 4)] == [True] * 3
    assert page.count('<div class="map">') == 3 and "←" in text
    first = next(event for event in read_log(tmp_path / "out") if event.get("samples"))
    assert first["step"] == 0 and len(first["samples"]) == 4


def test_charts_put_points_where_they_belong():
    chart = svg.lines({"a": [(0, 0.0), (10, 5.0)], "b": [(5, 10.0)]}, "x", "y")
    places = [tuple(map(float, pair)) for pair in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x0 < x2 < x1 and x2 - x0 == pytest.approx(x1 - x2, abs=0.2)
    assert y0 > y1 > y2 and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    bars = re.findall(r"<title>(\d+) to (\d+): (\d+)</title>", svg.histogram(np.array([1, 1, 1, 4]), "x"))
    assert [int(count) for *_, count in bars] == [3, 0, 0, 1]
    shades = re.findall(r'fill-opacity="([\d.]+)"', svg.heat_map(np.array([[0.0, 0.5], [1.0, 0.25]]), "ab", "cd"))
    assert shades == ["0.03", "0.50", "1.00", "0.25"]
    assert svg.lines({}, "x", "y") == "" and svg.histogram(np.array([]), "x") == ""
