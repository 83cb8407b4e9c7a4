"""What came out, as a table and a plot: means over the seeds, and what each change of a system brings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.leveraging_checkpoints import paper

MEASURES = ("rouge1", "rouge2", "rougeL")
# The questions of Rothe et al. (2020): what is changed, the system with it, the one without.
CHANGES = (
    ("a BERT encoder", "bert2rnd", "rnd2rnd"),
    ("a BERT decoder", "rnd2bert", "rnd2rnd"),
    ("both", "bert2bert", "rnd2rnd"),
    ("one set of weights for both", "bertshare", "bert2bert"),
    ("RoBERTa in place of BERT", "robertashare", "bertshare"),
    ("a GPT-2 decoder", "rnd2gpt", "rnd2rnd"),
    ("GPT-2 in place of BERT as decoder", "bert2gpt", "bert2bert"),
    ("GPT-2 alone in place of bert2gpt", "gpt", "bert2gpt"),
)
Runs = Mapping[str, Sequence[Mapping[str, float]]]


def text(said: Mapping[str, Any]) -> str:
    """The table in Markdown, the best ROUGE-L first; below it the differences, and all beside the paper's figures."""
    results: Runs = said["results"]

    def gains(new: str, old: str) -> list[float]:
        return differences(results[new], results[old], "rougeL") if new in results and old in results else []

    lines = [
        f"Width {said['hidden']}; {said['train']:,} pairs of {said['packages']} packages, {said['test']} test pairs of "
        f"others; {said['pretraining_steps']} steps of pre-training, {said['steps']} of fine-tuning.",
        "",
        "| | seeds | ROUGE-1 | ROUGE-2 | ROUGE-L | loss | different texts |",
        "| --- " * 7 + "|",
    ]
    for name in sorted(results, key=lambda name: -mean(results[name], "rougeL")):
        runs = results[name]
        row = [str(len(runs)), *(spread([run[key] for run in runs]) for key in MEASURES)]
        row += [spread([run["loss"] for run in runs], 2), f"{mean(runs, 'different'):.0f}"]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    lines += ["", "| what is changed | systems | ROUGE-L | loss |", "| --- " * 4 + "|"]
    for what, new, old in CHANGES:
        if new in results and old in results:
            found = [spread(differences(results[new], results[old], key), 2, "+") for key in ("rougeL", "loss")]
            lines.append(f"| {what} | {new} - {old} | " + " | ".join(found) + " |")
    means = ({name: mean(runs, key) for name, runs in results.items()} for key in ("rougeL", "loss"))
    lines += ["", paper.beside(*means), "", paper.agreement(CHANGES, gains)]
    return "\n".join(lines) + "\n"


def differences(new: Sequence[Mapping[str, float]], old: Sequence[Mapping[str, float]], key: str) -> list[float]:
    """How much more a system has than another, seed by seed."""
    return [one[key] - other[key] for one, other in zip(new, old, strict=False)]


def mean(runs: Sequence[Mapping[str, float]], key: str) -> float:
    """The mean over the seeds."""
    return statistics.mean(run[key] for run in runs)


def spread(values: Sequence[float], digits: int = 1, sign: str = "") -> str:
    """Mean ± standard deviation.

    >>> spread([1.0, 3.0]), spread([0.5], 2, "+")
    ('2.0 ± 1.4', '+0.50')
    """
    shown = f"{statistics.mean(values):{sign}.{digits}f}"
    return f"{shown} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else shown


def plot(results: Runs, paths: Sequence[Path]) -> None:
    """Each system's ROUGE-L and loss, a bar for the mean and a dot for each seed; and the paper's ROUGE-L on XSum."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(results)[::-1]
    figure, places = pyplot.subplots(1, 3, sharey=True, figsize=(12, 3.6), layout="constrained")
    seeds = {key: [[run[key] for run in results[name]] for name in names] for key in ("rougeL", "loss")}
    bars = {
        "ROUGE-L": seeds["rougeL"],
        "loss, nats per token": seeds["loss"],
        "ROUGE-L on XSum, Rothe et al. (2020)": [[paper.XSUM[name][2]] for name in names],
    }
    for place, (title, rows) in zip(places, bars.items(), strict=True):
        for row, values in enumerate(rows):
            place.barh(row, statistics.mean(values), color="#9db8d9")
            if len(values) > 1:
                place.plot(values, [row] * len(values), "o", color="#1f3d63", markersize=4)
        place.set_xlabel(title)
        place.spines[["top", "right"]].set_visible(False)
    places[0].set_yticks(range(len(names)), names)
    figure.suptitle("from a function to its summary line, and the paper's from a document to its one sentence")
    for path in paths:
        figure.savefig(path, dpi=150)
    pyplot.close(figure)
