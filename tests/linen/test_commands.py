"""`warmstart generate --framework flax` and `warmstart inspect` on what the Flax models save."""

import pytest

from cli.conftest import TEXTS
from cli.conftest import checkpoints as checkpoints  # the folder of tiny pairs
from cli.helpers import command
from warmstart import FlaxEncoderDecoderModel

SETTINGS = ("--max-new-tokens", 4)


@pytest.fixture(scope="module")
def lines(checkpoints):
    """What a command prints for the texts, by its options."""

    def run(*options):
        ran = command("generate", *options, *SETTINGS, stdin="\n".join(TEXTS[:3]) + "\n")
        assert (ran.code, ran.error) == (0, None), ran.err
        return ran.out

    return run


def test_generate_gives_what_torch_gives(checkpoints, lines):
    assert lines(checkpoints / "pair", "--framework", "flax") == lines(checkpoints / "pair")


def test_folders_of_flax_files_are_read_and_inspected(checkpoints, lines, tmp_path):
    import shutil

    shutil.copytree(checkpoints / "pair", tmp_path / "pair")
    FlaxEncoderDecoderModel.from_pretrained(tmp_path / "pair").save_pretrained(
        tmp_path / "pair", safe_serialization=False
    )
    assert lines(tmp_path / "pair", "--framework", "flax") == lines(checkpoints / "pair")
    shown, wanted = (command("inspect", folder) for folder in (tmp_path / "pair", checkpoints / "pair"))
    assert shown.code == wanted.code == 0, shown.err
    assert "flax_model.msgpack" in shown.out


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--threads", "2"), "--threads is torch's"), (("--device", "abacus"), "--device abacus cannot be used")],
)
def test_what_jax_has_not_is_refused(options, message, checkpoints):
    ran = command("generate", checkpoints / "pair", "--framework", "flax", *options, stdin="a\n")
    assert ran.code == 2 and message in ran.err
