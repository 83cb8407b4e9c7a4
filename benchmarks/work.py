"""What one contender does in a process of its own: `python -m benchmarks.work '{"work": ..., "library": ...}'`.

Both libraries are driven by the same lines; only the name of the module differs. Nothing heavy is imported at the top,
since the import itself is one of the things that are measured. The last line printed is JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import probes
from benchmarks.tasks import DROPOUT, PAIRS, SIZES, Size

Result = dict[str, Any]


def import_class(library: str, **_: Any) -> Result:
    """The import line of a user."""
    probe = probes.Probe()
    module = importlib.import_module(library)
    if library != "torch":
        _ = module.EncoderDecoderModel
    return probe.stop()


def load(library: str, folder: str, **_: Any) -> Result:
    """From a folder to a model; afterwards, what memory it holds then and once every weight was read."""
    module = _library(library)
    for path in Path(folder).iterdir():  # into the page cache
        path.read_bytes()
    before = probes.memory()
    probes.reset_peak()
    probe = probes.Probe()
    model = module.EncoderDecoderModel.from_pretrained(folder)
    result = probe.stop()
    loaded = probes.memory()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    means = [float(weight.abs().mean()) for name, weight in weights.items() if "embed" in name]
    for weight in weights.values():
        weight.sum()
    read = probes.memory()
    return result | {
        "weights_mb": sum(weight.numel() * weight.element_size() for weight in weights.values()) / 1e6,
        "own_mb": loaded["own_mb"] - before["own_mb"],
        "peak_mb": loaded["peak_mb"] - before["resident_mb"],
        "own_read_mb": read["own_mb"] - before["own_mb"],
        "resident_read_mb": read["resident_mb"] - before["resident_mb"],
        "check": max(means),
    }


def forward(
    library: str, folder: str, size: Size, pair: str, padded: bool = False, samples: int = 2, **_: Any
) -> Result:
    """The loss and logits of one batch, without gradients."""
    import torch

    model = _library(library).EncoderDecoderModel.from_pretrained(folder)
    inputs = batch(size, pair, padded)
    with torch.no_grad():
        result = _median(lambda: model(**inputs), samples)
        return result | {"check": round(float(model(**inputs).loss), 4)}


def train(library: str, folder: str, size: Size, pair: str, dropout: float, samples: int = 1, **_: Any) -> Result:
    """One step: forward, backward, AdamW, gradients set free."""
    import torch

    module = _library(library)
    config = module.EncoderDecoderConfig.from_pretrained(folder)
    for side, family in zip((config.encoder, config.decoder), PAIRS[pair], strict=True):
        for name in DROPOUT[family]:
            setattr(side, name, dropout)
    model = module.EncoderDecoderModel.from_pretrained(folder, config=config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(inputs: dict[str, Any]) -> float:
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    first = step(batch(replace(size, batch=1), pair))  # makes the optimizer's state
    before = probes.memory()
    probes.reset_peak()
    result = _median(lambda: step(batch(size, pair)), samples, warm_up=False)
    result["peak_mb"] = probes.memory()["peak_mb"] - before["resident_mb"]
    return result | {"check": round(first, 4) if dropout == 0 else None}


def generate(library: str, folder: str, size: Size, pair: str, beams: int, **_: Any) -> Result:
    """Text of a set length from one batch."""
    import torch

    model = _library(library).EncoderDecoderModel.from_pretrained(folder)
    inputs = batch(size, pair)
    inputs.pop("labels")
    length = {"max_new_tokens": size.target, "min_new_tokens": size.target, "do_sample": False}
    with torch.no_grad():
        model.generate(**inputs, max_new_tokens=2, num_beams=beams, do_sample=False)
        probe = probes.Probe()
        tokens = model.generate(**inputs, num_beams=beams, **length)
        return probe.stop() | {"check": int(tokens.sum())}


WORK: dict[str, Callable[..., Result]] = {
    function.__name__: function for function in (import_class, load, forward, train, generate)
}


def batch(size: Size, pair: str, padded: bool = False) -> dict[str, Any]:
    """The same random ids each time: (batch, source) with their mask, and labels (batch, target)."""
    import torch

    encoder, decoder = PAIRS[pair]
    generator = torch.Generator().manual_seed(0)

    def ids(length: int, vocabulary: int) -> Any:
        return torch.randint(5, vocabulary, (size.batch, length), generator=generator)

    source, labels = ids(size.source, size.vocabulary[encoder]), ids(size.target, size.vocabulary[decoder])
    mask = torch.ones_like(source)
    if padded:
        lengths = torch.linspace(size.source // 4, size.source, size.batch).long()
        mask = (torch.arange(size.source) < lengths[:, None]).long()
        source = source * mask  # the encoder's padding id is 0
    return {"input_ids": source, "attention_mask": mask, "labels": labels}


def _library(name: str) -> Any:
    """The library and its model class, all that is imported lazily included."""
    module = importlib.import_module(name)
    _ = module.EncoderDecoderModel
    return module


def _median(function: Callable[[], Any], samples: int, warm_up: bool = True) -> Result:
    """The median of some samples, after one that does not count."""
    if warm_up:
        function()
    results = []
    for _ in range(samples):
        probe = probes.Probe()
        function()
        results.append(probe.stop())
    return {name: probes.median([result[name] for result in results]) for name in results[0]}


def main() -> None:
    """Do the work that the argument asks for, and print its figures."""
    given = json.loads(sys.argv[1])
    given["size"] = SIZES[given["size"]]
    print(json.dumps(WORK[given.pop("work")](**given)))


if __name__ == "__main__":
    main()
