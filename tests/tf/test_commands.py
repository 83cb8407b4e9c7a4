"""`warmstart generate --framework tf`, `warmstart inspect` of what is saved here, the code of docs/tensorflow.md."""

import re
import shutil

from cli.conftest import TEXTS
from cli.conftest import checkpoints as checkpoints  # the folder of tiny pairs
from cli.helpers import command
from test_guides import ROOT
from test_guides import checkpoints as guide_checkpoints
from warmstart import TFEncoderDecoderModel

__all__ = ["guide_checkpoints"]


def lines(*options):
    """What the command prints for the texts."""
    ran = command("generate", *options, "--max-new-tokens", 4, stdin="\n".join(TEXTS[:3]) + "\n")
    assert (ran.code, ran.error) == (0, None), ran.err
    return ran.out


def test_generate_gives_what_torch_gives_and_h5_is_inspected(checkpoints, tmp_path):
    wanted = lines(checkpoints / "pair")
    shutil.copytree(checkpoints / "pair", tmp_path / "pair")
    model = TFEncoderDecoderModel.from_pretrained(tmp_path / "pair")
    model.save_pretrained(tmp_path / "pair", safe_serialization=False)
    assert not (tmp_path / "pair" / "model.safetensors").exists()
    assert lines(tmp_path / "pair", "--framework", "tf") == wanted
    shown = command("inspect", tmp_path / "pair")
    assert shown.code == 0 and "tf_model.h5" in shown.out, shown.err


def test_the_code_of_the_page_runs(guide_checkpoints):
    text = (ROOT / "docs/tensorflow.md").read_text(encoding="utf-8")
    names = {}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M), 1):
        exec(compile(block, f"docs/tensorflow.md, block {number}", "exec"), names)
    losses = names["history"].history["loss"]
    assert losses[-1] < losses[0] and names["served"].shape[0] == 2
