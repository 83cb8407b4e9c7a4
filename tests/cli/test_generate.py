"""`warmstart generate`: results in order, whatever the batches; lines in and lines out; errors at file and line."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from cli.conftest import TEXTS
from cli.helpers import change_json, command
from warmstart import AutoTokenizer, EncoderDecoderModel
from warmstart.cli.records import Format, read_records, windows
from warmstart.torch.generation import refill
from warmstart.torch.generation.refill import padded

LINES = [TEXTS[0], "", TEXTS[1], TEXTS[2], "  ", TEXTS[3], TEXTS[4], TEXTS[5]]
SHORT = ("--max-new-tokens", 5)


@pytest.fixture(scope="module")
def pair(checkpoints):
    return checkpoints / "pair"


@pytest.fixture(scope="module")
def answer(pair):
    """What the library generates for one text alone."""
    model = EncoderDecoderModel.from_pretrained(pair)
    source, target = AutoTokenizer.from_pretrained(pair), AutoTokenizer.from_pretrained(pair / "decoder_tokenizer")

    def one(text, **settings):
        ids = model.generate(
            source([text], truncation=True, return_tensors="pt").input_ids, **{"max_new_tokens": 5, **settings}
        )
        return [text.strip() for text in target.batch_decode(ids, skip_special_tokens=True)]

    return one


@pytest.fixture
def file(tmp_path):
    def write(content, name="texts.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def lines_of(shown: str) -> list[str]:
    return shown.split("\n")[:-1]


def on_lines(texts: list[str]) -> list[str]:
    return [" ".join(text.splitlines()) for text in texts]


def wanted(answer, **settings):
    return [answer(text, **settings)[0] if text.strip() else "" for text in LINES]


def test_results_differ_from_text_to_text(answer):
    assert len({answer(text)[0] for text in TEXTS}) > 3  # else order could not be seen to be right


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_results_are_those_of_each_text_alone_in_order(run, pair, answer, file, monkeypatch, size):
    monkeypatch.setattr("warmstart.cli.generate.BATCHES_IN_WINDOW", 2)
    ran = run("generate", pair, file("\n".join(LINES)), *SHORT, "--batch-size", size)
    assert lines_of(ran.out) == on_lines(wanted(answer))
    assert ran.err == ""


def test_texts_of_a_window_go_in_by_length(run, pair, file, monkeypatch):
    lengths = []

    def watched(requests, model):
        lengths.append([len(request.ids) for request in requests])
        return padded(requests, model)

    monkeypatch.setattr(refill, "padded", watched)
    run("generate", pair, file("\n".join(TEXTS)), *SHORT, "--batch-size", 2)
    flat = [length for batch in lengths for length in batch]
    assert max(map(len, lengths)) == 2 and flat == sorted(flat, reverse=True) and len(set(flat)) > 3


def test_drafts_and_stop_strings_have_the_tokenizers(run, pair, answer, file):
    """The sides of this pair have vocabularies of their own, so that a draft's source is encoded again."""
    plain = [answer(text)[0] for text in TEXTS]
    ran = run("generate", pair, file("\n".join(TEXTS)), *SHORT, "--set", "prompt_lookup_num_tokens=4")
    assert lines_of(ran.out) == on_lines(plain)
    letter = next(letter for text in plain for letter in text[:-1] if letter.isalnum())
    ran = run("generate", pair, file("\n".join(TEXTS)), *SHORT, "--set", f'stop_strings=["{letter}"]')
    stopped = lines_of(ran.out)
    for text, whole in zip(stopped, on_lines(plain), strict=True):
        assert whole.startswith(text) and (text == whole or letter in text)
    assert stopped != on_lines(plain)


@pytest.mark.parametrize("name", ["-", None])
def test_standard_input_is_read(run, pair, answer, name):
    words = ["generate", pair, *([name] if name else []), *SHORT]
    assert lines_of(run(*words, stdin="\n".join(LINES) + "\n").out) == on_lines(wanted(answer))


def test_nothing_in_nothing_out(run, pair):
    assert run("generate", pair, *SHORT, stdin="").out == ""
    assert run("generate", pair, *SHORT, stdin="\n").out == "\n"


def test_windows_line_ends_and_a_byte_order_mark_are_no_text():
    lines = [b"\xef\xbb\xbfone\r\n", b"two\r\n", b"\r\n", b"three\xe2\x80\xa8same line"]
    records = list(read_records(lines, "a.txt", Format.auto, "text"))
    assert [record.text for record in records] == ["one", "two", "", "three\u2028same line"]
    assert [record.size for record in records] == [len(line) for line in lines]


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (
            ["--num-beams", 3, "--length-penalty", 2.0, "--early-stopping", "true"],
            {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
        ),
        (
            ["--num-beams", 2, "--no-repeat-ngram-size", 1, "--early-stopping", "never"],
            {"num_beams": 2, "no_repeat_ngram_size": 1, "early_stopping": "never"},
        ),
        (["--repetition-penalty", 5.0, "--min-length", 6], {"repetition_penalty": 5.0, "min_length": 6}),
        (["--set", "suppress_tokens=[5, 6]", "--set", "num-beams=2"], {"suppress_tokens": [5, 6], "num_beams": 2}),
    ],
)
def test_decoding_options_are_those_of_the_library(run, pair, answer, file, words, settings):
    ran = run("generate", pair, file("\n".join(LINES)), *SHORT, *words)
    assert lines_of(ran.out) == on_lines(wanted(answer, **settings))


def test_the_seed_decides_what_is_drawn(run, pair, file):
    words = ["generate", pair, file("\n".join(TEXTS)), *SHORT, "--do-sample", "--temperature", 2.0, "--top-k", 40]
    outs = [run(*words, "--seed", seed).out for seed in (1, 1, 2)]
    assert outs[0] == outs[1] != outs[2]


def test_several_results_are_lines_one_after_another(run, pair, answer, file):
    words = ["--num-beams", 3, "--num-return-sequences", 2]
    ran = run("generate", pair, file("\n".join(LINES)), *SHORT, *words)
    each = [answer(text, num_beams=3, num_return_sequences=2) if text.strip() else ["", ""] for text in LINES]
    assert lines_of(ran.out) == on_lines([text for texts in each for text in texts])


RECORDS = [{"id": n, "text": text, "ünï": ["kept", None]} for n, text in enumerate(LINES)]


def test_json_lines_keep_their_other_fields(run, pair, answer, file):
    rows = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    rows.insert(2, "")
    shown = lines_of(run("generate", pair, file("\n".join(rows)), *SHORT).out)
    assert shown.pop(2) == ""
    assert [json.loads(line) for line in shown] == [
        {**record, "output": text} for record, text in zip(RECORDS, wanted(answer), strict=True)
    ]
    assert "ünï" in shown[0]


def test_fields_of_json_lines_can_be_named_and_results_be_a_list(run, pair, answer, file):
    path = file("\n".join(json.dumps({"body": text, "text": 1}) for text in TEXTS), "texts.jsonl")
    fields = ["--input-field", "body", "--output-field", "text", "--num-beams", 2, "--num-return-sequences", 2]
    shown = lines_of(run("generate", pair, path, *SHORT, *fields).out)
    assert [json.loads(line)["text"] for line in shown] == [
        answer(text, num_beams=2, num_return_sequences=2) for text in TEXTS
    ]


def test_format_text_takes_json_as_text(run, pair, answer):
    line = '{"text": "Close it."}'
    assert lines_of(run("generate", pair, "--format", "text", *SHORT, stdin=line).out) == on_lines(answer(line))


def test_a_half_surrogate_in_another_field_is_written_as_it_came(run, pair):
    shown = run("generate", pair, *SHORT, stdin='{"text": "", "other": "\\ud83d"}').out
    assert shown == '{"text": "", "other": "\\ud83d", "output": ""}\n'


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"one\ntw\xfco\n", "a.txt", "a.txt, line 2: byte 3 is 0xfc, which is not UTF-8; convert it first"),
        (b'{"text": "a"}\nnot json\n', "a.txt", "a.txt, line 2: not JSON ("),
        (b"[\n", "a.json", "a.json, line 1: not JSON ("),
        (b'{"text": "a"}\n["b"]\n', "a.jsonl", "a.jsonl, line 2: a JSON list where an object is expected"),
        (b'{"body": "a", "id": 1}\n', "a.jsonl", "a.jsonl, line 1: there is no field 'text'; there is body, id: name"),
        (b'{"text": null}\n', "a.jsonl", "a.jsonl, line 1: the field 'text' is null, not a text"),
        (b'{"text": "\\ud83d"}\n', "a.jsonl", "a.jsonl, line 1: the field 'text' has half of a surrogate pair"),
        (b"[" * 100_000, "a.jsonl", "a.jsonl, line 1: not JSON ("),
    ],
)
def test_a_bad_line_is_told_by_file_and_number(refused, pair, file, content, name, said):
    path = file(content, name)
    assert refused("generate", pair, path, *SHORT).startswith(f"{path.parent}/{said}")


def test_a_bad_line_of_standard_input_is_told_too(refused, pair):
    assert refused("generate", pair, *SHORT, stdin=b"\xff").startswith("standard input, line 1: byte 1 is 0xff")


def test_lines_are_read_as_they_are_needed():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield b"a text\n"

    found = windows(read_records(endless(), "x", Format.auto, "text"), 4)
    assert [len(next(found)) for _ in range(3)] == [4, 4, 4]
    assert len(taken) == 12


def test_long_texts_are_cut_with_a_note(run, pair, answer, file):
    long = " ".join(["numbers"] * 200)
    ran = run("generate", pair, file(f"{long}\nClose it.\n"), *SHORT)
    assert ran.err == "warmstart: note: 1 of 2 texts have more than 48 tokens; the rest of each was not read\n"
    assert lines_of(ran.out) == on_lines(answer(long) + answer("Close it."))
    ran = run("generate", pair, file(f"{long}\n{TEXTS[0]}\n"), *SHORT, "--max-source-length", 4)
    assert "2 of 2 texts have more than 4 tokens" in ran.err


def test_an_end_that_nobody_chose_is_told(run, pair, copy_of):
    assert "results end after 20 tokens; --max-new-tokens N changes that" in run("generate", pair, stdin="").err
    folder = copy_of("pair")
    change_json(folder / "generation_config.json", max_new_tokens=7)
    assert run("generate", folder, stdin="").err == ""


def test_a_setting_without_effect_is_told_once(run, pair, file):
    ran = run("generate", pair, file("\n".join(TEXTS)), *SHORT, "--temperature", 2, "--batch-size", 2)
    assert ran.err == "warmstart: warning: temperature has no effect without do_sample=True\n"


def test_the_output_file_is_written_whole(run, pair, answer, file, tmp_path):
    out = tmp_path / "out.txt"
    out.write_text("old")
    out.chmod(0o640)
    assert run("generate", pair, file("\n".join(LINES)), *SHORT, "-o", out).out == ""
    assert lines_of(out.read_text()) == on_lines(wanted(answer))
    assert stat.S_IMODE(out.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.txt", "texts.txt"]


def test_the_file_that_is_read_may_be_the_one_that_is_written(run, pair, answer, file):
    path = file("\n".join(LINES))
    run("generate", pair, path, *SHORT, "-o", path, "--batch-size", 1)
    assert lines_of(path.read_text()) == on_lines(wanted(answer))


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError])
def test_an_output_file_that_is_not_whole_is_not_there(pair, file, tmp_path, monkeypatch, end):
    written = []

    def fail(record, outputs, field):
        written.append(1)
        if len(written) > 2:
            raise end
        return b"result\n"

    monkeypatch.setattr("warmstart.cli.records.written", fail)
    out = tmp_path / "out.txt"
    ran = command("generate", pair, file("\n".join(TEXTS)), *SHORT, "-o", out, "--batch-size", 1)
    assert len(written) == 3
    assert ran.code == {KeyboardInterrupt: 130, RuntimeError: 1}.get(end, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt"]


def test_a_pipe_is_written_as_it_goes(run, pair, answer, tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    run("generate", pair, *SHORT, "-o", pipe, stdin="Close it.\n")
    reader.join(20)
    assert lines_of(read[0]) == on_lines(answer("Close it."))
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-beams", 0], "num_beams=0: it must be a whole number, 1 or more"),
        (["--num-return-sequences", 2], "num_return_sequences=2 with num_beams=1 and do_sample=False"),
        (["--max-new-tokens", 25], "results of 26 tokens are more than the decoder's 24 positions take"),
        (["--min-length", 9], "min_length is 9 tokens, more than max_new_tokens plus the prompt, 6"),
        (["--early-stopping", "maybe"], "'maybe' is not one of 'true', 'false', 'never'"),
        (["--set", "beams=2"], "--set beams=2: there is no setting 'beams'"),
        (["--set", "output_scores=true"], "there is no setting 'output_scores'"),
        (["--set", "num_beams=2", "--num-beams", 2], "num_beams is given as an option and with --set; give it once"),
        (["--set", "num_beams=2", "--set", "num-beams=3"], "num_beams is set twice"),
        (["--set", "dola_layers=low"], "dola_layers='low' is not supported"),
        (["--batch-size", 0], "--batch-size 0: give a whole number, 1 or more"),
        (["--max-source-length", 49], "--max-source-length 49 is more than the encoder's 48 positions"),
        (["--max-source-length", 1], "max_length=1 is too short"),
        (["--device", "abacus"], "--device abacus cannot be used: "),
        (["--framework", "jax"], "'jax' is not"),
        (["-o", "no/folder/out.txt"], "no/folder/out.txt cannot be written: there is no folder "),
        (["-o", "."], ". cannot be written: it is a folder; give the name of a file"),
    ],
)
def test_bad_options_are_refused(refused, pair, words, said):
    assert said in refused("generate", pair, *SHORT[: 2 * ("--max-new-tokens" not in words)], *words, stdin="a text")


def test_a_file_that_is_not_there_is_told_before_the_model_is_loaded(refused, pair, monkeypatch):
    monkeypatch.setattr("warmstart.cli.engine.load_model", None)
    assert refused("generate", pair, "no/texts.txt") == "no/texts.txt: No such file or directory"


def test_a_model_of_one_side_is_refused(refused, checkpoints):
    said = refused("generate", checkpoints / "bert", stdin="")
    assert (
        said
        == f"{checkpoints / 'bert'} is a bert, not an encoder-decoder; make one with warmstart create --encoder ..."
    )


def test_a_missing_token_id_is_told_with_its_option(run, refused, copy_of):
    folder = copy_of("pair")
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["decoder"]):
        for name in ("decoder_start_token_id", "bos_token_id"):
            part[name] = None
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    said = refused("generate", folder, stdin="a")
    assert said == f"{folder} has no decoder_start_token_id; give it with --set decoder_start_token_id=ID"
    run("generate", folder, "--set", "decoder_start_token_id=0", stdin="a")


def test_corrupt_weights_are_told(refused, copy_of):
    folder = copy_of("pair")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "is not a sound safetensors file" in refused("generate", folder, *SHORT, stdin="a")


def test_the_tokenizer_of_the_results_can_be_named(run, checkpoints, copy_of, answer):
    folder = copy_of("pair")
    for path in (folder / "decoder_tokenizer").iterdir():
        path.unlink()
    ran = run("generate", folder, *SHORT, stdin="Close it.")
    assert "has no decoder_tokenizer/, and its sides have vocabularies of 150 and 300" in ran.err
    ran = run("generate", folder, *SHORT, "--decoder-tokenizer", checkpoints / "gpt2", stdin="Close it.")
    assert (lines_of(ran.out), ran.err) == (on_lines(answer("Close it.")), "")


# A process with all of the command but the model, which is what takes long to load. A shell that runs the tests in the
# background has its children ignore interrupts; this one listens.
ECHO = """
import signal
from unittest.mock import patch
signal.signal(signal.SIGINT, signal.default_int_handler)
from warmstart.cli import engine, main
def answer(model, tokenizers, size, longest, call, texts, done): return [[text] for text in texts], 0
with patch.multiple(engine, load_model=lambda *_: None, longest_source=lambda *_: None, answer=answer): main()
"""


def test_a_process_ends_cleanly_when_nobody_reads_or_when_interrupted(pair, file):
    many = file("Close it.\n" * 1_000_000)
    words = [sys.executable, "-c", ECHO, *map(str, ("generate", pair, many, *SHORT, "--batch-size", 1))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes) as unread, subprocess.Popen(words, **pipes) as interrupted:
        assert (unread.stdout.readline(), interrupted.stdout.readline()) == ("Close it.\n", "Close it.\n")
        unread.stdout.close()
        assert (unread.wait(60), unread.stderr.read()) == (141, "")
        interrupted.send_signal(signal.SIGINT)
        assert len(interrupted.stdout.read()) < 10 * 999_999
        assert (interrupted.wait(60), interrupted.stderr.read()) == (130, "warmstart: interrupted\n")
