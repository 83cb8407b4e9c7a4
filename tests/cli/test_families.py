"""`warmstart families` and docs/families.md list every family, and what they say of it is true."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from warmstart import AutoConfig
from warmstart.checkpoint.names import written_as
from warmstart.cli.parts import places
from warmstart.families import MODULES, family
from warmstart.families.encoder_decoder import set_side
from warmstart.families.listing import LEFT_OUT

ROOT = Path(__file__).parents[2]


def test_the_command_lists_every_family(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    listed = json.loads(run("families", "--json").out)
    assert [row["model_type"] for row in listed] == sorted(MODULES)
    shown = run("families").out.splitlines()
    for row, line in zip(listed, shown[1:], strict=True):
        words = line.split()
        assert words[:3] == [row["model_type"], *("yes" if row[side] else "no" for side in ("encoder", "decoder"))]


def test_the_page_holds_the_same_table():
    path = ROOT / "tools" / "write_families.py"
    spec = importlib.util.spec_from_file_location("write_families", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert page == tool.page_text(page), "run `make families`"
    for model_type in MODULES:
        assert page.count(f"| `{model_type}` |") == 1
    assert not LEFT_OUT.keys() & MODULES.keys() and all(f"**Left out**: `{name}`" in page for name in LEFT_OUT)
    with pytest.raises(ValueError, match="must hold the lines"):
        tool.page_text("no table")


@pytest.mark.parametrize("model_type", MODULES)
def test_what_is_listed_is_true(run, model_type):
    """A side that is listed has a stack, the decoder's with cross-attention; one that is not is refused by name."""
    row = next(row for row in json.loads(run("families", "--json").out) if row["model_type"] == model_type)
    for side in ("encoder", "decoder"):
        config = AutoConfig.for_model(model_type)
        if not row[side]:
            with pytest.raises(ValueError, match=f"{model_type} can only be the"):
                set_side(config, side)
            continue
        set_side(config, side)
        spec = family(model_type).spec(config, side == "decoder")
        assert (spec.cross_attention is not None) == (side == "decoder")
    # What is added has a name of its own in files; what is the family's own stands where the reference has it.
    names = [name for name in family(model_type).names if "cross_attention" in name]
    assert bool(names) == row["decoder"]
    assert row["cross_attention"] == (
        "" if not row["decoder"] else "added" if family(model_type).adds_cross_attention else "own"
    )


@pytest.mark.parametrize("model_type", MODULES)
def test_inspect_knows_every_weight(model_type):
    entry = family(model_type)
    for side in ("encoder", "decoder"):
        if not getattr(entry, side):
            continue
        config = AutoConfig.for_model(model_type)
        set_side(config, side)
        spec = entry.spec(config, side == "decoder")
        names = [name.replace("{}", "0") for name in entry.names_of(config, spec)]
        names = [name if name.endswith((".weight", ".bias")) else f"{name}.weight" for name in names]
        place_of = places(config)
        for ours, stored in written_as(names, config, spec).items():
            assert place_of(stored.name).part is not None, ours
