"""Rothe et al. (2020) at pocket scale: `python -m examples.leveraging_checkpoints -o DIR`.

Pre-trains a small BERT, a RoBERTa-style model and a GPT-2 on the texts of the functions on this machine, each text
alone; fine-tunes every system with the same steps and seeds to write a function's summary line; writes `results.json`,
`table.md` and `plot.svg`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from examples.leveraging_checkpoints import paper, systems
from warmstart.demo import recipe as make
from warmstart.demo.corpus import package_folders, read_package
from warmstart.demo.score import rouge
from warmstart.demo.split import Split, split_by_package

MEASURES = ("rouge1", "rouge2", "rougeL")


def main() -> None:
    """Read the command line, run, write."""
    arguments = parse()
    start, recipe = time.perf_counter(), make.Recipe(hidden=arguments.hidden, vocabulary=arguments.vocabulary)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    split = read(arguments)
    tokenizer = make.train_tokenizer(split.train, recipe)
    train, test = (make.encode(tokenizer, pairs, recipe) for pairs in (split.train, split.test))
    texts = [*train.sources, *([tokenizer.cls_token_id, *row] for row in train.labels)]
    folders = {kind: arguments.output / kind for kind in ("bert", "roberta", "gpt")}
    for kind, folder in folders.items():
        if (folder / "config.json").is_file():
            print(f"{kind}: {folder} is there already", flush=True)
            continue
        trained = systems.pretrain(kind, tokenizer, texts, recipe, arguments.pretraining_steps, folder)
        print(f"{kind}: {trained.steps} steps, {trained.seconds:.0f} s, loss {trained.loss:.2f}", flush=True)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in systems.SYSTEMS}
    for seed in range(arguments.seeds):
        for name in systems.SYSTEMS:
            model = systems.build(name, folders, seed)
            trained = systems.fine_tune(model, tokenizer, train, recipe, arguments.steps, seed)
            written = systems.write(model, tokenizer, test, recipe)
            found = {key: statistics.mean(values) for key, values in rouge(written, split.test).items()}
            found |= {"loss": systems.loss_of(model, test, tokenizer.pad_token_id), "seconds": trained.seconds}
            found["different"] = len(set(written))
            results[name].append(found)
            (arguments.output / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
            print(f"seed {seed} {name}: ROUGE-L {found['rougeL']:.2f}, loss {found['loss']:.3f}", flush=True)
    said = {
        "train": len(split.train),
        "test": len(split.test),
        "hidden": arguments.hidden,
        "packages": len({pair.package for pair in split.train}),
        "steps": arguments.steps,
        "pretraining_steps": arguments.pretraining_steps,
        "seconds": time.perf_counter() - start,
        "results": results,
    }
    write(arguments.output, said)


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


def read(arguments: argparse.Namespace) -> Split:
    """The corpus of `warmstart demo`, without copies, the test pairs from packages of their own."""
    packages = [one for one in package_folders() if not arguments.packages or one[0] in arguments.packages]
    pairs = [pair for name, path in packages for pair in read_package(name, path, 2000, 0)]
    return split_by_package(pairs, arguments.test_pairs, 0)


def write(folder: Path, said: dict[str, Any]) -> None:
    """The figures, the table beside the paper's, and the plot."""
    (folder / "results.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table(said), encoding="utf-8")
    plot(said["results"], folder / "plot.svg")
    print(table(said))


def table(said: dict[str, Any]) -> str:
    """Means and standard deviations over the seeds, the paper's ROUGE-L, and where the order agrees."""
    results = said["results"]
    lines = [
        f"Width {said['hidden']}; {said['train']:,} pairs of {said['packages']} packages, {said['test']} test pairs of "
        f"others; {said['pretraining_steps']} steps of pre-training, {said['steps']} of fine-tuning; "
        f"{said['seconds']:,.0f} s.",
        "",
        "| | ROUGE-1 | ROUGE-2 | ROUGE-L | loss | different | " + " | ".join(paper.TABLE) + " |",
        "| --- " * (6 + len(paper.TABLE)) + "|",
    ]
    for name, runs in results.items():
        row = [spread([run[key] for run in runs]) for key in MEASURES]
        row += [spread([run["loss"] for run in runs], 2), f"{mean(runs, 'different'):.0f}"]
        row += [f"{figures[name][2]:.1f}" if name in figures else "" for figures in paper.TABLE.values()]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    ours = {name: mean(runs, "rougeL") for name, runs in results.items()}
    deviation = max(
        (statistics.stdev([run["rougeL"] for run in runs]) for runs in results.values() if len(runs) > 1), default=0.0
    )
    for name, figures in paper.TABLE.items():
        found = paper.agreement(ours, {system: scores[2] for system, scores in figures.items()}, deviation)
        counts = ", ".join(f"{len(pairs)} {what}" for what, pairs in found.items())
        lines += ["", f"Beside {name}, pairs of systems by ROUGE-L: {counts} (within {deviation:.1f})."]
        if found["the other way"]:
            lines.append("The other way here: " + "; ".join(found["the other way"]) + ".")
    return "\n".join(lines) + "\n"


def mean(runs: list[dict[str, float]], key: str) -> float:
    """The mean over the seeds."""
    return statistics.mean(run[key] for run in runs)


def spread(values: list[float], digits: int = 1) -> str:
    """Mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def plot(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Each system's ROUGE-L, a dot for each seed, beside the paper's."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = list(results)[::-1]
    figure, axes = pyplot.subplots(1, 1 + len(paper.TABLE), sharey=True, figsize=(12, 3.6), layout="constrained")
    for row, name in enumerate(names):
        values = [run["rougeL"] for run in results[name]]
        axes[0].barh(row, statistics.mean(values), color="#9db8d9")
        axes[0].plot(values, [row] * len(values), "o", color="#1f3d63", markersize=4)
    axes[0].set_title("here: functions, summary line")
    for place, (title, figures) in zip(axes[1:], paper.TABLE.items(), strict=True):
        place.barh(range(len(names)), [figures[name][2] if name in figures else 0 for name in names], color="#d9c39d")
        place.set_title(f"Rothe et al. 2020: {title}")
    axes[0].set_yticks(range(len(names)), names)
    for place in axes:
        place.set_xlabel("ROUGE-L")
        place.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
