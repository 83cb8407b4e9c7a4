"""The demo from beginning to end, on a few files and with a few steps."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from warmstart import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, EncoderDecoderModel
from warmstart.demo import run
from warmstart.demo.corpus import read_package
from warmstart.demo.loop import Budget
from warmstart.demo.recipe import SPECIAL_TOKENS, Recipe, encode, pretrain_encoder, train_tokenizer
from warmstart.demo.report import FIRST, RANDOM, WARM, Result
from warmstart.demo.story import SHARES, Clock

VERBS = ["read", "write", "open", "close", "count", "sort", "merge", "split", "parse", "print"]
THINGS = [
    *("file", "line", "word", "page", "name", "list", "table", "image", "folder", "message"),
    *("row", "column", "cell", "key", "value", "user", "group", "event", "date", "token"),
]
TINY = Recipe(vocabulary=150, layers=1, hidden=16, heads=2, batch=8)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Twenty packages of ten functions."""
    folder = tmp_path_factory.mktemp("packages")
    found = []
    for thing in THINGS:
        package = folder / f"{thing}s"
        package.mkdir()
        functions = (
            f'def {verb}_{thing}({thing}):\n    """{verb.title()} all of the {thing}."""\n    return {thing}.{verb}()\n'
            for verb in VERBS
        )
        (package / "code.py").write_text("\n".join(functions))
        found.append((package.name, package))
    return found


def run_tiny(output, packages, **options):
    return run(output, packages=packages, test_pairs=20, recipe=TINY, **{"steps": 3, "minutes": 5, **options})


@pytest.fixture(scope="module")
def shown():
    return io.StringIO()


@pytest.fixture(scope="module")
def result(tmp_path_factory, packages, shown):
    before = torch.get_rng_state()
    made = run_tiny(tmp_path_factory.mktemp("demo") / "out", packages, console=Console(file=shown, width=100))
    torch.set_rng_state(before)
    return made


def test_the_folder_holds_a_model_that_summarises(result):
    model = EncoderDecoderModel.from_pretrained(result.model)
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    sources = [example.source for example in result.examples[:4]]
    batch = tokenizer(sources, padding=True, truncation=True, return_tensors="pt")
    ids = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    written = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert written == [example.written[WARM] for example in result.examples[:4]]
    assert batch["input_ids"].shape[1] <= TINY.source_length
    assert model.generation_config.no_repeat_ngram_size == 2


def test_the_two_checkpoints_are_ordinary_folders(result):
    encoder = AutoModelForMaskedLM.from_pretrained(result.folder / "bert")
    decoder = AutoModelForCausalLM.from_pretrained(result.folder / "gpt2")
    assert (encoder.config.model_type, decoder.config.model_type) == ("bert", "gpt2")
    for side in ("bert", "gpt2"):
        assert len(AutoTokenizer.from_pretrained(result.folder / side)) == encoder.config.vocab_size


def test_both_fine_tunings_have_the_same_steps(result):
    assert result.trainings[WARM]["steps"] == result.trainings[RANDOM]["steps"] == 3
    assert result.trainings[WARM]["loss"] != result.trainings[RANDOM]["loss"]


def test_no_test_text_is_in_training(result):
    assert result.corpus["train"] == 180 - sum(result.corpus["left_out"].values())
    assert {example.package for example in result.examples} == set(result.corpus["test_packages"])


def test_the_report_says_what_was_measured(result):
    report = json.loads((result.folder / "report.json").read_text())
    assert set(report["scores"]) == {FIRST, RANDOM, WARM}
    assert all(0 <= score <= 100 for scores in report["scores"].values() for score in scores.values())
    assert len(report["examples"]) == 20 == report["corpus"]["test"]
    assert report["held_out_loss"][WARM] > 0
    assert report["machine"]["torch"] == torch.__version__
    text = (result.folder / "report.txt").read_text()
    assert all(example.reference in text for example in result.examples)


def test_the_terminal_shows_scores_and_the_command_to_go_on_with(result, shown):
    text = shown.getvalue()
    assert "from_encoder_decoder_pretrained" in text
    assert f"{result.scores[WARM]['rougeL']:.1f}" in text
    assert result.command in text.replace("\n", "")
    assert result.command.endswith(f"| warmstart generate {result.model} -")


def test_the_verdict_follows_the_figures(result):
    def says(low, high):
        fields = {**result.__dict__, "gain": (low, high)}
        return " ".join(Result(**fields).to_text().split())

    assert "the warm start is better: +1.0 to +3.0" in says(1.0, 3.0)
    assert "the warm start is worse: -3.0 to -1.0" in says(-3.0, -1.0)
    assert "neither better nor worse beyond chance: -1.0 to +1.0" in says(-1.0, 1.0)


def test_steps_and_a_seed_fix_what_is_learned(packages):
    pairs = [pair for name, path in packages for pair in read_package(name, path, 99)]
    tokenizer = train_tokenizer(pairs, TINY)
    examples = encode(tokenizer, pairs, TINY)

    def loss(seed):
        torch.manual_seed(seed)
        return pretrain_encoder(tokenizer, examples, TINY, Budget(steps=3), seed, lambda *news: None)[1].loss

    assert loss(0) == loss(0) != loss(1)


def test_word_pieces_are_numbered_in_order(packages):
    pairs = [pair for name, path in packages for pair in read_package(name, path, 99)]
    tokenizer = train_tokenizer(pairs, TINY)
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert tuple(pieces[:5]) == SPECIAL_TOKENS
    assert pieces[5:] == sorted(pieces[5:])
    assert (
        tokenizer.decode(tokenizer.encode("def Read_file(file):"), skip_special_tokens=True)
        == "def read _ file ( file ) :"
    )


def test_a_second_run_replaces_the_first(result, packages, tmp_path):
    run_tiny(tmp_path / "out", packages, steps=1)
    again = run_tiny(tmp_path / "out", packages, steps=2)
    assert json.loads((again.folder / "report.json").read_text())["trainings"][WARM]["steps"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [({"minutes": 0}, "minutes=0"), ({"steps": 0}, "steps=0"), ({"minutes": float("nan")}, "minutes=nan")],
)
def test_bad_settings_are_refused(tmp_path, packages, options, message):
    with pytest.raises(ValueError, match=message):
        run_tiny(tmp_path / "out", packages, **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path, packages):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds other files"):
        run_tiny(tmp_path, packages)
    with pytest.raises(FileExistsError, match="is a file"):
        run_tiny(tmp_path / "thesis.tex", packages)
    with pytest.raises(NotADirectoryError, match=r"cannot be made: '.*thesis\.tex' is a file"):
        run_tiny(tmp_path / "thesis.tex" / "out", packages)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_too_little_text_is_said(tmp_path, packages):
    with pytest.raises(FileNotFoundError, match="in 1 packages"):
        run_tiny(tmp_path / "out", packages[:1])


def test_time_that_one_training_did_not_use_goes_to_the_others(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("warmstart.demo.story.time.perf_counter", lambda: now[0])
    clock, spent = Clock(100, None), []
    for name in list(SHARES)[:-1]:
        spent.append(clock.budget(name).seconds)
        now[0] += spent[-1]
    assert spent == pytest.approx([100 * share for share in list(SHARES.values())[:-1]])
    assert Clock(0.001, None).budget("BERT").seconds == 1.0
    assert Clock(100, 7).budget("BERT").steps == 7


def test_a_missing_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['rouge_score'] = None\n"
        "from warmstart.demo import run\n"
        "try: run('out')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert 'needs rouge_score, which is not installed: pip install "warmstart[train]"' in done.stdout, done.stderr
