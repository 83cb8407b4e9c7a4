"""What holds for every command: help, version, bad use, errors and how a process ends."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from cli.helpers import command

COMMANDS = ["create", "train", "generate", "evaluate", "inspect", "families", "demo"]


def test_help_lists_the_commands(run):
    for words in ([], ["--help"], ["-h"]):
        shown = run(*words).out
        assert all(f"│ {name}" in shown for name in COMMANDS), shown


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", [80, 120])
def test_help_of_a_command_fits_the_terminal(run, monkeypatch, name, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run(name, "--help").out.splitlines()
    assert max(map(len, lines)) <= width
    assert f"Usage: warmstart {name}" in lines[1]
    assert not any("…" in line or line.rstrip(" │").endswith("-") for line in lines if line.startswith("│")), lines


def test_help_groups_the_options_of_generate(run):
    shown = run("generate", "--help").out
    places = [shown.index(f"─ {panel} ─") for panel in ("Texts", "Decoding", "Sampling", "Model and machine")]
    assert places == sorted(places)
    assert places[1] < shown.index("--num-beams") < places[2] < shown.index("--top-p") < places[3]
    assert "warmstart generate my-model articles.txt -o summaries.txt" in shown


def test_version(run):
    assert run("--version").out == f"warmstart {importlib.metadata.version('warmstart')}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "No such command 'nope'. (see warmstart --help)"),
        (["--bogus"], "No such option: --bogus (see warmstart --help)"),
        (["create", "--bogus"], "No such option: --bogus (see warmstart create --help)"),
        (["create", "-o", "x"], "Missing option '--encoder'. (see warmstart create --help)"),
        (["inspect"], "Missing argument 'DIR|ID'. (see warmstart inspect --help)"),
        (["generate", "x", "--seed", "many"], "Invalid value for '--seed'"),
        (["generate", "x", "--dtype", "int4"], "'int4' is not one of 'float32', 'bfloat16', 'float16', 'int8', 'auto'"),
    ],
)
def test_bad_use_is_one_line_and_exit_code_2(refused, words, said):
    assert said in refused(*words)


def test_an_unexpected_error_keeps_its_traceback(checkpoints, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("warmstart.cli.facts.facts_of", fail)
    assert isinstance(command("inspect", checkpoints / "pair").error, RuntimeError)


def test_traceback_shows_where_an_expected_error_was_raised(tmp_path):
    assert isinstance(command("--traceback", "inspect", tmp_path).error, FileNotFoundError)


def test_an_interrupt_ends_with_130(checkpoints, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("warmstart.cli.facts.facts_of", interrupt)
    ran = command("inspect", checkpoints / "pair")
    assert (ran.code, ran.err, ran.error) == (130, "warmstart: interrupted\n", None)


def test_help_loads_no_framework_and_nothing_that_reads_files():
    code = (
        "import sys\nfrom warmstart.cli import main\nsys.argv = ['warmstart', 'generate', '--help']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print(*sorted({'torch', 'numpy', 'tokenizers', 'safetensors', 'huggingface_hub'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "")


def test_without_torch_the_extra_is_named_and_inspect_works(checkpoints, tmp_path):
    hidden = "import sys; sys.modules['torch'] = None\nfrom warmstart.cli import main\nmain()"

    def ran(*words):
        words = [sys.executable, "-c", hidden, *map(str, words)]
        return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    done = ran("generate", checkpoints / "pair")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert 'pip install "warmstart[torch]"' in done.stderr
    words = ("--encoder", checkpoints / "bert", "--decoder", checkpoints / "gpt2", "-o", tmp_path / "new")
    done = ran("create", *words)
    assert done.returncode == 2 and 'pip install "warmstart[torch]"' in done.stderr
    done = ran("inspect", checkpoints / "pair")
    assert done.returncode == 0 and "encoder-decoder" in done.stdout, done


def test_demo_is_told_what_was_asked(run, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr("warmstart.cli.demo.run", lambda output, **options: told.append((output, options)))
    run("demo", "-o", tmp_path / "out", "--steps", 3, "--seed", 5, "--minutes", 0.5)
    ((output, options),) = told
    assert output == tmp_path / "out" and options.pop("console").file is not None
    assert options == {"minutes": 0.5, "steps": 3, "seed": 5}


def test_demo_refuses_a_folder_with_other_things(refused, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert f"{tmp_path} holds other files" in refused("demo", "-o", tmp_path)
