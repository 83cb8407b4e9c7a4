"""Tokenized pairs: frames, limits, what is left out, the cache, the report."""

import numpy as np
import pytest

from tiny_models import END
from training.conftest import WORDS, made, write_json_lines
from warmstart.training import examples as module
from warmstart.training.examples import Limits, load_examples, report, texts
from warmstart.training.pairs import Data

LIMITS = Limits(source=12, target=6)


@pytest.fixture
def load(reads, writes):
    return lambda data, limits=LIMITS, **options: load_examples(data, reads, writes, END, limits, **options)


def test_sources_have_their_frame_and_labels_end(load, tmp_path, reads):
    examples = load(Data(write_json_lines(tmp_path / "p.jsonl", [("w0 w1 w2", "w3 w4"), ("w5", "w6")])))
    assert [examples.source(row).tolist() for row in range(2)] == [[1, 5, 6, 7, 2], [1, 10, 2]]
    assert [examples.labels(row).tolist() for row in range(2)] == [[8, 9, END], [11, END]]
    assert examples.lengths("source").tolist() == [5, 3] and examples.lengths("target").tolist() == [3, 2]


def test_what_is_cut_or_empty_is_counted(load, tmp_path):
    long = " ".join(WORDS[:20])
    pairs = [(long, "w1"), ("w1", long), ("", "w1"), ("w1", " "), ("w1 w2", "w3 w4 w5 w6 w7")]
    examples = load(Data(write_json_lines(tmp_path / "p.jsonl", pairs)))
    counts = examples.counts
    assert (counts.rows, counts.pairs) == (5, 3)
    assert (counts.cut_sources, counts.cut_targets, counts.empty_sources, counts.empty_targets) == (1, 1, 1, 1)
    assert examples.lengths("source").max() == LIMITS.source and examples.lengths("target").max() == LIMITS.target
    assert all(examples.labels(row)[-1] == END for row in range(3))
    assert examples.column("rows").tolist() == [0, 1, 4]
    assert texts(Data(str(tmp_path / "p.jsonl")), [4, 0])[0].target == "w3 w4 w5 w6 w7"


def test_bad_rows_are_counted_when_asked(load, tmp_path):
    path = tmp_path / "p.jsonl"
    write_json_lines(path, made(3))
    path.write_text(path.read_text() + "{broken\n" * 7)
    with pytest.raises(ValueError, match="line 4: not JSON"):
        load(Data(str(path)))
    counts = load(Data(str(path)), skip_bad=True).counts
    assert (counts.rows, counts.pairs, counts.bad, len(counts.first_bad)) == (10, 3, 7, 5)
    path.write_text("{broken\n" * 2)
    with pytest.raises(ValueError, match=r"none of 2 rows is a pair; the first: .*line 1"):
        load(Data(str(path)), skip_bad=True)


def test_no_pair_left(load, tmp_path):
    data = Data(write_json_lines(tmp_path / "p.jsonl", [("w1", ""), ("w2", "")]))
    with pytest.raises(ValueError, match=r"2 targets and 0 sources are empty; is 'target' the target's column"):
        load(data)


def test_limits_that_leave_no_room(load, tmp_path):
    data = Data(write_json_lines(tmp_path / "p.jsonl", made(2)), prefix="w1 w2 w3 ")
    with pytest.raises(ValueError, match="2 tokens around the text and 3 of the prefix, and none of the text"):
        load(data, Limits(5, 6))
    assert len(load(data, Limits(6, 6))) == 2
    with pytest.raises(ValueError, match="holds its end and no text"):
        load(data, Limits(12, 1))


def test_tokenized_once(load, tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    write_json_lines(path, made(5))
    first = load(Data(str(path)), cache=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_tokenized", lambda *_: pytest.fail("tokenized again"))
        again = load(Data(str(path)), cache=tmp_path / "cache")
        assert all((again.columns[name] == first.columns[name]).all() for name in first.columns)
        for other in ({"limits": Limits(11, 6)}, {"data": Data(str(path), prefix="w1 ")}):
            with pytest.raises(pytest.fail.Exception):
                load(**{"data": Data(str(path)), "cache": tmp_path / "cache", **other})
    write_json_lines(path, made(6))
    assert len(load(Data(str(path)), cache=tmp_path / "cache")) == 6
    assert not list((tmp_path / "cache").glob(".writing-*"))


def test_an_error_half_way_leaves_no_cache(load, tmp_path):
    path = tmp_path / "p.jsonl"
    write_json_lines(path, made(1500))
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(ValueError, match="line 1501"):
        load(Data(str(path)), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_many_pairs_are_where_they_belong(load, tmp_path, reads):
    pairs = made(2500)
    examples = load(Data(write_json_lines(tmp_path / "p.jsonl", pairs)))
    for row in (0, 999, 1000, 1001, 2499):
        assert examples.source(row).tolist() == reads(pairs[row][0])["input_ids"]
        assert examples.labels(row).tolist() == [*reads(pairs[row][1], add_special_tokens=False)["input_ids"], END]


def test_validation_share_never_has_a_source_of_training(load, tmp_path):
    pairs = [(source, target) for source, target in made(400, longest=4) for target in (target, "w9")]
    examples = load(Data(write_json_lines(tmp_path / "p.jsonl", pairs)))
    training, validation = examples.held_out(0.1)
    assert len(training) + len(validation) == len(examples) and 40 < len(validation) < 130
    said = report(training, validation)["validation"]
    assert said["sources_in_training"] == 0
    again = examples.held_out(0.1)[1]
    assert np.array_equal(again.index, validation.index)


def test_one_source_is_held_out_of_few_pairs(load, tmp_path):
    examples = load(Data(write_json_lines(tmp_path / "p.jsonl", made(5))))
    assert [len(part) for part in examples.held_out(1e-6)] == [4, 1]
    assert [len(part) for part in examples.held_out(0.0)] == [5, 0]


def test_report_counts_duplicates(load, tmp_path):
    train, dev = made(50), made(20, seed=1)
    train_data = Data(write_json_lines(tmp_path / "a.jsonl", [*train, *train[:3]]))
    dev_data = Data(write_json_lines(tmp_path / "b.jsonl", [*dev, *train[:2], (train[5][0], "w9 w9 w9")]))
    training, validation = load(train_data), load(dev_data)
    said = report(training, validation, validation.counts)
    assert said["duplicates"] == 3
    assert said["validation"]["in_training"] == 2 and said["validation"]["sources_in_training"] == 3
    assert said["source_tokens"]["longest"] == training.lengths("source").max()


def test_targets_are_written_as_the_tokenizer_writes(load, writes, tmp_path, monkeypatch):
    """Marian's tokenizer has other pieces for what it writes than for what it reads."""
    monkeypatch.setattr(
        type(writes),
        "_encode_target",
        lambda self, text, pair, options: self.encode_plus(["w9"] * len(text), **options),
    )
    examples = load(Data(write_json_lines(tmp_path / "p.jsonl", [("w0 w1", "w3 w4")])))
    assert examples.labels(0).tolist() == [14, END]
    assert examples.source(0).tolist() == [1, 5, 6, 2]
