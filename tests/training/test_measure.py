"""Metrics against the libraries' own ways to them; loss, intervals and the paired test; `warmstart evaluate`."""

import json

import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from cli.helpers import command
from tiny_models import END
from training.conftest import made, write_json_lines
from warmstart.training import measure
from warmstart.training.examples import Limits, load_examples
from warmstart.training.pairs import Data

TEXTS = st.lists(st.tuples(*[st.text("abc de", max_size=20)] * 2), min_size=1, max_size=8)


@settings(deadline=None)  # the first call imports
@given(TEXTS)
def test_scores_are_those_of_the_libraries(pairs):
    texts, references = ([pair[side] for pair in pairs] for side in (0, 1))
    found = measure.scores(measure.parts(texts, references))
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score, abs=1e-9)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score, abs=1e-9)
    same = [text.strip() == reference.strip() for text, reference in pairs]
    assert found["exact"] == pytest.approx(100 * sum(same) / len(same))


def test_perfect_and_wrong_texts():
    right = ["the cat sat on the mat today", "a dog ran over the hill"]
    found = measure.scores(measure.parts(right, right))
    assert set(found) == set(measure.METRICS) and all(value == pytest.approx(100) for value in found.values())
    assert all(value < 2 for value in measure.scores(measure.parts(["xyz", "q"], right)).values())
    with pytest.raises(ValueError, match="1 texts and 2 references"):
        measure.parts(["a"], right)


def test_interval_of_a_mean_is_that_of_theory():
    """Exact match of 400 texts, 30 % right: 1.96 standard errors to both sides."""
    counted = {"exact": np.array([[100.0]] * 120 + [[0.0]] * 280)}
    low, high = measure.interval(measure.bootstrap(counted)["exact"])
    error = 196 * (0.3 * 0.7 / 400) ** 0.5
    assert low == pytest.approx(30 - error, abs=0.8) and high == pytest.approx(30 + error, abs=0.8)


def test_paired_test_sees_what_intervals_alone_do_not():
    draw = np.random.default_rng(0)
    difficulty = draw.uniform(0, 100, (200, 1))
    one, better = {"exact": difficulty}, {"exact": difficulty + 2 + draw.normal(0, 1, (200, 1))}
    same = {"exact": difficulty + draw.normal(0, 5, (200, 1))}
    drawn = [measure.bootstrap(parts)["exact"] for parts in (one, better, same)]
    intervals = [measure.interval(values) for values in drawn]
    assert intervals[1][0] < intervals[0][1]  # they overlap
    assert measure.significance(drawn[1], drawn[0], float(better["exact"].mean() - difficulty.mean())) < 0.01
    assert measure.significance(drawn[2], drawn[0], float(same["exact"].mean() - difficulty.mean())) > 0.05
    assert measure.significance(drawn[0], drawn[0], 0.0) == 1.0


def test_loss_is_the_token_weighted_mean_without_smoothing(reads, writes, tmp_path):
    examples = load_examples(Data(write_json_lines(tmp_path / "p.jsonl", made(30))), reads, writes, END, Limits(12, 6))
    model = tiny_models.pair("bert", "gpt2").train()
    total = count = 0.0
    for row in range(30):
        batch = {"input_ids": examples.source(row), "labels": examples.labels(row)}
        with torch.no_grad():
            loss = model.eval()(**{name: torch.tensor(ids.tolist())[None] for name, ids in batch.items()}).loss.item()
        total, count = total + loss * len(batch["labels"]), count + len(batch["labels"])
    model.train()
    for budget in (20, 500):
        assert measure.held_out_loss(model, examples, budget) == pytest.approx(total / count, abs=1e-5)
    assert model.training


def test_texts_stand_in_the_order_of_their_sources(reads, writes, tmp_path):
    examples = load_examples(Data(write_json_lines(tmp_path / "p.jsonl", made(30))), reads, writes, END, Limits(12, 6))
    model = tiny_models.pair("bert", "gpt2")
    together = measure.written(model, examples, writes, 150, {"max_new_tokens": 5})
    alone = [
        measure.written(model, examples.select(np.array([row])), writes, 150, {"max_new_tokens": 5})[0]
        for row in range(30)
    ]
    assert together == alone and len(set(together)) > 5


# warmstart evaluate ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    return write_json_lines(tmp_path / "test.jsonl", made(20))


def test_evaluate_prints_each_metric_with_its_interval_and_writes_predictions(folder, pairs, tmp_path):
    out = tmp_path / "written.jsonl"
    ran = command("evaluate", folder, "--data", pairs, "-o", out, "--device", "cpu", "--draws", 200, "--limit", 15)
    assert (ran.code, ran.error) == (0, None), ran.err
    for name in ("ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU", "chrF", "exact match", "loss"):
        assert name in ran.out
    assert "15 pairs; in brackets the 95 % interval over 200 draws" in ran.out and "[" in ran.out
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["source"], line["target"]) for line in lines] == made(20)[:15] and "output" in lines[0]


def test_evaluate_compares_two(folder, pairs, tmp_path, reads, writes):
    other = tiny_models.pair("bert", "gpt2", spread=0.4, seed=3)
    other.generation_config.max_new_tokens = 6
    other.save_pretrained(tmp_path / "other", encoder_tokenizer=reads, decoder_tokenizer=writes)
    words = ("--data", pairs, "--device", "cpu", "--draws", 200, "--json")
    figures = json.loads(command("evaluate", folder, tmp_path / "other", *words).out)
    assert [one["model"] for one in figures["models"]] == [str(folder), str(tmp_path / "other")]
    for name, between in figures["differences"].items():
        scores = [one["metrics"][name]["score"] for one in figures["models"]]
        assert between["difference"] == pytest.approx(scores[1] - scores[0])
        assert between["interval"][0] <= between["difference"] <= between["interval"][1] and 0 < between["p"] <= 1
    same = json.loads(command("evaluate", folder, folder, *words).out)
    assert all(between["difference"] == 0 and between["p"] == 1 for between in same["differences"].values())
    shown = command("evaluate", folder, tmp_path / "other", *words[:-1]).out
    assert "difference" in shown.splitlines()[0] and " p" in shown.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", 0), "--limit 0"),
        (("--set", "num_return_sequences=2"), "one text is measured for each source"),
        (("--source-column", "text"), "there is no column 'text'"),
    ],
)
def test_evaluate_refuses(folder, pairs, words, message):
    ran = command("evaluate", folder, "--data", pairs, "--device", "cpu", *words)
    assert ran.code == 2 and message in ran.err
    ran = command("evaluate", folder, folder, folder, "--data", pairs)
    assert ran.code == 2 and "3 models are given" in ran.err
