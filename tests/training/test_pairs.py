"""Pairs from every form of file, and what is said of files that are not right."""

import csv

import pytest

from training.conftest import write_json_lines
from warmstart.training.pairs import Data, read_pairs

PAIRS = [("one long text", "one"), ('a "quoted", comma', "two"), ("naïve\u2028line", "drei"), ("", "no source")]


def texts(data, **options):
    return [(pair.source, pair.target) for pair in read_pairs(data, **options)]


def write_table(path, pairs, delimiter):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("id", "article", "summary"), *((0, *pair) for pair in pairs)])


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.tsv", "p.parquet", "lines", "saved", "saved-splits"])
def test_every_form_gives_the_same_pairs(name, tmp_path):
    path, columns = tmp_path / name, {"source_column": "article", "target_column": "summary"}
    data = Data(str(path), **columns)
    rows = [{"id": 0, "article": source, "summary": target} for source, target in PAIRS]
    if name == "lines":
        data = Data(str(tmp_path / "a.txt"), targets=str(tmp_path / "b.txt"))
        for place, side in ((data.place, 0), (data.targets, 1)):
            with open(place, "w", encoding="utf-8") as file:
                file.writelines(pair[side] + "\n" for pair in PAIRS)
    elif name.startswith("saved"):
        import datasets

        table = datasets.Dataset.from_list(rows)
        (datasets.DatasetDict({"train": table}) if "splits" in name else table).save_to_disk(str(path))
    elif name == "p.jsonl":
        write_json_lines(path, [(0, *pair) for pair in PAIRS], ("id", "article", "summary"))
    elif name == "p.parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write_table(path, PAIRS, {".csv": ",", ".tsv": "\t"}[path.suffix])
    assert texts(data) == PAIRS


def test_prefix_stands_before_sources_that_are_not_empty(tmp_path):
    place = write_json_lines(tmp_path / "p.jsonl", PAIRS)
    assert texts(Data(place, prefix="sum: ")) == [(f"sum: {s}" if s else "", t) for s, t in PAIRS]


GOOD = '{"source": "a", "target": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", GOOD.encode() + b"{broken\n" + GOOD.encode(), "line 2: not JSON"),
        ("p.jsonl", GOOD.encode() + b'[{"source": "a",\n' + GOOD.encode(), "line 2: not JSON .*an array is not read: "),
        (
            "p.jsonl",
            GOOD.encode() + b'{"source": null, "target": "a"}\n' + GOOD.encode(),
            "line 2: .*nothing .null., no",
        ),
        ("p.jsonl", GOOD.encode() + b'["a"]\n' + GOOD.encode(), "line 2: a JSON list"),
        ("p.jsonl", GOOD.encode() + b'{"source": "a", "targets": "b"}\n' + GOOD.encode(), "line 2.*did you mean 'targ"),
        ("p.jsonl", GOOD.encode() + b'{"source": "a", "target": 5}\n' + GOOD.encode(), "line 2: .*'target' holds '5'"),
        ("p.jsonl", GOOD.encode() + b'{"source": "a\xff", "target": "b"}\n' + GOOD.encode(), "line 2.*0xff.*UTF-8"),
        ("p.jsonl", GOOD.encode() + b'{"source": "\\ud800", "target": ""}\n' + GOOD.encode(), "line 2.*surrogate"),
        ("p.csv", b"source,target\na,b\nonly\na,b\n", "line 3: 1 fields.*2 columns"),
        ("p.csv", b"source,target\na,b\n\xff,c\na,b\n", "line 3.*UTF-8"),
        ("p.csv", b'source,target\na,b\n"x"y,c\na,b\n', "line 3: "),
        ("p.tsv", b"source\ttarget\na\tb\na\na\tb\n", "line 3: 1 fields"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line_or_counted(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    data = Data(str(tmp_path / name))
    with pytest.raises(ValueError, match=rf"{name}, {message}"):
        texts(data)
    bad = []
    assert texts(data, on_bad=bad.append) == [("a", "b")] * 2
    assert len(bad) == 1
    assert [pair.row for pair in read_pairs(data, on_bad=bad.append)] == [0, 2]


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_a_column_that_is_not_there_is_never_skipped(name, tmp_path):
    import pyarrow
    from pyarrow import parquet

    if name == "p.csv":
        (tmp_path / name).write_text("source,taget\na,b\n")
    else:
        parquet.write_table(pyarrow.table({"source": ["a"], "taget": ["b"]}), tmp_path / name)
    with pytest.raises(ValueError, match=r"no column 'target' \(there is source, taget\); did you mean 'taget'"):
        texts(Data(str(tmp_path / name)), on_bad=lambda message: None)


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.tsv"])
def test_an_empty_file(name, tmp_path):
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=rf"{name} holds no pairs: it is empty"):
        texts(Data(str(tmp_path / name)))


@pytest.mark.parametrize("lines", [(3, 2), (2, 3), (0, 1)])
def test_parallel_files_of_different_length(lines, tmp_path):
    for name, count in zip(("a.txt", "b.txt"), lines, strict=True):
        (tmp_path / name).write_text("x\n" * count)
    data = Data(str(tmp_path / "a.txt"), targets=str(tmp_path / "b.txt"))
    with pytest.raises(ValueError, match=rf"a.txt has {lines[0]} lines and .*b.txt has {lines[1]}"):
        texts(data, on_bad=lambda message: None)


def test_files_that_are_not_there_or_of_no_form(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"p\.jsonl is not there"):
        texts(Data(str(tmp_path / "p.jsonl")))
    (tmp_path / "p.docx").write_text("x")
    with pytest.raises(ValueError, match="its ending says nothing"):
        texts(Data(str(tmp_path / "p.docx")))
    (tmp_path / "p.parquet").write_text("x")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        texts(Data(str(tmp_path / "p.parquet")))
    with pytest.raises(FileNotFoundError, match="no-such-data is no file here, and datasets cannot load it"):
        texts(Data("no-such-data"))
    with pytest.raises(ValueError, match="name two columns"):
        Data("p.csv", source_column="a", target_column="a")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "p.parquet").write_text("x")
    with pytest.raises(ImportError, match=r"pyarrow.*pip install \"warmstart\[train\]\""):
        texts(Data(str(tmp_path / "p.parquet")))
