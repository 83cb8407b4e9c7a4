"""Rothe et al. (2020, arXiv:1907.12461) at pocket scale: `python -m examples.leveraging_checkpoints -o DIR`.

Pre-trains a small BERT, a RoBERTa-style model and a GPT-2 on the texts of the functions on this machine, each text
alone; fine-tunes every system with the same steps and seeds to write a function's summary line; writes `results.json`,
`table.md`, `plot.svg` and `plot.png` after each fine-tuning. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from examples.leveraging_checkpoints import systems, table
from warmstart.demo import recipe as make
from warmstart.demo.corpus import Pair, package_folders, read_package
from warmstart.demo.score import rouge
from warmstart.demo.split import split_by_package

SETTINGS = ("steps", "pretraining_steps", "test_pairs", "hidden", "vocabulary", "packages")


def main() -> None:
    """Read the command line, run what is not there yet, write."""
    arguments = parse()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    check_settings(arguments)
    pairs = read(arguments)
    recipe = make.Recipe(hidden=arguments.hidden, vocabulary=arguments.vocabulary)
    tokenizer = make.train_tokenizer(pairs["train"], recipe)
    train, test = (make.encode(tokenizer, pairs[part], recipe) for part in ("train", "test"))
    texts = [*train.sources, *([tokenizer.cls_token_id, *row] for row in train.labels)]
    folders = {kind: arguments.output / kind for kind in ("bert", "roberta", "gpt")}
    for kind, folder in folders.items():
        if not (folder / "config.json").is_file():
            trained = systems.pretrain(kind, tokenizer, texts, recipe, arguments.pretraining_steps, folder)
            print(f"{kind}: {trained.steps} steps, {trained.seconds:.0f} s, loss {trained.loss:.2f}", flush=True)
    for seed in range(arguments.seeds):
        for name in systems.SYSTEMS:
            cell = arguments.output / "cells" / f"{name}-{seed}.json"
            if cell.is_file():
                continue
            model = systems.build(name, folders, seed)
            trained = systems.fine_tune(model, tokenizer, train, recipe, arguments.steps, seed)
            written = systems.write(model, tokenizer, test, recipe)
            found = {key: statistics.mean(values) for key, values in rouge(written, pairs["test"]).items()}
            found |= {"loss": systems.loss_of(model, test, tokenizer.pad_token_id), "seconds": trained.seconds}
            put(cell, found | {"different": len(set(written))})
            print(f"seed {seed} {name}: ROUGE-L {found['rougeL']:.2f}, loss {found['loss']:.3f}", flush=True)
            show(arguments, pairs)
    print(show(arguments, pairs))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.leveraging_checkpoints", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder to write into")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each system (3)")
    parser.add_argument("--steps", type=int, default=250, help="of each fine-tuning (250)")
    parser.add_argument("--pretraining-steps", type=int, default=600, help="of each pre-training (600)")
    parser.add_argument("--test-pairs", type=int, default=200, help="functions of packages not trained on (200)")
    parser.add_argument("--hidden", type=int, default=128, help="width of every model (128)")
    parser.add_argument("--vocabulary", type=int, default=2000, help="word pieces (2000)")
    parser.add_argument("--packages", nargs="+", help="read these alone, such as asyncio numpy (all there are)")
    parser.add_argument("--threads", type=int, help="processor cores to use (all)")
    parser.add_argument("--smoke", action="store_true", help="few steps of tiny models, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.packages = ["asyncio", "email", "http", "json", "logging"]
        arguments.hidden, arguments.vocabulary = 16, 300
        arguments.seeds, arguments.steps, arguments.pretraining_steps, arguments.test_pairs = 1, 2, 2, 10
    return arguments


def check_settings(arguments: argparse.Namespace) -> None:
    """Refuse to go on with other settings than the folder was begun with.

    Raises:
        SystemExit: names the setting.
    """
    place, now = arguments.output / "settings.json", {name: getattr(arguments, name) for name in SETTINGS}
    if not place.is_file():
        put(place, now)
        return
    before = json.loads(place.read_text(encoding="utf-8"))
    for name, value in now.items():
        if before[name] != value:
            raise SystemExit(
                f"{arguments.output} was begun with {name} {before[name]}, not {value}; give another folder"
            )


def read(arguments: argparse.Namespace) -> dict[str, list[Pair]]:
    """The corpus of `warmstart demo`, without copies, the test pairs from packages of their own; kept in the folder."""
    place = arguments.output / "pairs.json"
    if not place.is_file():
        packages = [one for one in package_folders() if not arguments.packages or one[0] in arguments.packages]
        every = [pair for name, path in packages for pair in read_package(name, path, 2000, 0)]
        split = split_by_package(every, arguments.test_pairs, 0)
        put(place, {part: [asdict(pair) for pair in getattr(split, part)] for part in ("train", "test")})
    kept = json.loads(place.read_text(encoding="utf-8"))
    return {part: [Pair(**pair) for pair in pairs] for part, pairs in kept.items()}


def show(arguments: argparse.Namespace, pairs: dict[str, list[Pair]]) -> str:
    """Write what the cells so far say; gives the table."""
    results: dict[str, list[dict[str, float]]] = {}
    for name in systems.SYSTEMS:
        cells = [arguments.output / "cells" / f"{name}-{seed}.json" for seed in range(arguments.seeds)]
        if found := [json.loads(cell.read_text(encoding="utf-8")) for cell in cells if cell.is_file()]:
            results[name] = found
    said: dict[str, Any] = {
        **{name: getattr(arguments, name) for name in SETTINGS},
        "train": len(pairs["train"]),
        "test": len(pairs["test"]),
        "packages": len({pair.package for pair in pairs["train"]}),
        "results": results,
    }
    put(arguments.output / "results.json", said)
    text = table.text(said)
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    table.plot(results, [arguments.output / name for name in ("plot.svg", "plot.png")])
    return text


def put(place: Path, value: Any) -> None:
    """Write a file that is whole or not there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(part, place)


if __name__ == "__main__":
    main()
