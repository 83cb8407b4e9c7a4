"""The Python in docs/training.md runs as it stands, on tiny files under the names it uses."""

import re
import shutil
from pathlib import Path

from training.conftest import made, write_json_lines

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_code_of_the_page_runs(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    shutil.copytree(folder, "bert2gpt")
    write_json_lines(tmp_path / "pairs.jsonl", made(100), ("article", "summary"))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.S | re.M)
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), {})
    assert blocks and (tmp_path / "summariser" / "model.safetensors").exists()
    assert capsys.readouterr().out.startswith("(")


def test_the_page_names_every_default(monkeypatch):
    """Rates, warm-ups and shares in the table are those of the recipe."""
    from warmstart.training.recipe import Recipe

    text, recipe = PAGE.read_text(encoding="utf-8"), Recipe()
    said = (
        f"encoder {recipe.encoder_rate:g}".replace("e-05", "e-5") + f", cross-attention {recipe.cross_attention_rate:g}"
    )
    assert said.replace("0.001", "1e-3") in text
    assert f"| decoder {recipe.decoder_rate:g}".replace("e-05", "e-5") in text
    shares = [getattr(recipe, f"{part}_warmup") for part in ("encoder", "decoder", "cross_attention")]
    assert "warm-ups of {:.0%}, {:.0%} and {:.0%}".format(*shares).replace("%", " %") in text
    assert f"label smoothing {recipe.label_smoothing}" in text and f"decay {recipe.weight_decay}" in text
    assert f"in the first {recipe.cross_attention_first:.0%}".replace("%", " %") in text
    assert f"gradients no longer than {recipe.clip:g}" in text and recipe.schedule == "linear"
