"""Checkpoints of a training: a model's folder with the state beside it, whole or not there.

A step's random numbers and its place in the data follow from the seed and the number of the step, so a checkpoint holds
neither: it holds the weights, the optimizer's state, the step, and what was best so far.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from warmstart.folder import finish_saves, write_folder
from warmstart.training import lora

FOLDER = "checkpoints"
_STATE, _OPTIMIZER = "training.json", "optimizer.pt"
_NAME = re.compile(r"step-(\d+)")


@dataclass
class State:
    """How far a training is: steps done, the best evaluations as (value, step), and evaluations since the best.

    `losses` and `counted` are what was summed since the last line of the log; `place` is where a stream stands.
    """

    step: int = 0
    best: list[tuple[float, int]] = field(default_factory=list)
    without_gain: int = 0
    losses: float = 0.0
    counted: int = 0
    place: tuple[int, int, int] | None = None


def checkpoints(output: str | Path) -> list[Path]:
    """The whole checkpoints of a training's folder, the earliest first."""
    folder = Path(output, FOLDER)
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    for path in found:
        finish_saves(path)
    whole = [path for path in found if (path / _STATE).is_file()]
    return sorted(whole, key=lambda path: int(path.name.partition("-")[2]))


def save(
    output: str | Path, model: Any, tokenizers: tuple[Any, Any], optimizer: dict[str, Any], state: State, settings: Any
) -> Path:
    """Write a checkpoint of a step. The file that makes it one is written last, when all others are on disk."""
    folder = Path(output, FOLDER, f"step-{state.step}")
    if (folder / _STATE).is_file():
        return folder
    if learnt := lora.adapters(model):
        optimizer = optimizer | {"adapters": learnt}
    with lora.merged(model):
        model.save_pretrained(folder, encoder_tokenizer=tokenizers[0], decoder_tokenizer=tokenizers[1])
    said = json.dumps({"state": asdict(state), "settings": settings}, indent=2).encode()
    write_folder(folder, {_OPTIMIZER: lambda path: torch.save(optimizer, path)})
    write_folder(folder, {_STATE: said})
    return folder


def forget(output: str | Path, keep: set[int]) -> None:
    """Delete the checkpoints of other steps; each stops being one before it is deleted."""
    for path in Path(output, FOLDER).iterdir():
        match = _NAME.fullmatch(path.name)
        if match and int(match[1]) not in keep:
            (path / _STATE).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that a checkpoint was made with.

    Raises:
        ValueError: the file is broken.
    """
    return dict(_read(folder)["settings"])


def load(folder: Path, model: Any) -> tuple[State, dict[str, Any]]:
    """Put a checkpoint's weights into a model; gives the state, and the optimizer's as it was saved.

    Raises:
        ValueError: the checkpoint is of another architecture, or a file is broken.
    """
    stored = type(model).from_pretrained(folder)
    with lora.merged(model):
        shapes = [{name: tuple(x.shape) for name, x in one.state_dict().items()} for one in (stored, model)]
    if shapes[0] != shapes[1]:
        differ = [name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)]
        raise ValueError(
            f"{folder} is a checkpoint of another architecture: {len(differ)} weights differ from the model's, such as "
            f"{differ[0]} ({shapes[0].get(differ[0], 'none')} against {shapes[1].get(differ[0], 'none')}); give the "
            "model that this training began with"
        )
    said = _read(folder)["state"]
    if said["place"] is not None:
        said["place"] = tuple(said["place"])
    said["best"] = [(float(value), int(step)) for value, step in said["best"]]
    try:
        optimizer = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{folder / _OPTIMIZER} cannot be read: {str(error).splitlines()[0]}") from error
    if "adapters" in optimizer:
        lora.load(model, stored.state_dict(), optimizer["adapters"])
    else:
        model.load_state_dict(stored.state_dict())
    return State(**said), optimizer


def weights(folder: Path, kind: Any) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by name."""
    return dict(kind.from_pretrained(folder).state_dict())


def _read(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / _STATE).read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{folder / _STATE} is not JSON ({error}); delete {folder} to go on without it") from error
