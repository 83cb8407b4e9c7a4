"""What Rothe, Narayan and Severyn (2020) measured (TACL 8, table 5, base checkpoints), and how far our order agrees.

Their tasks: XSum, summaries of one sentence, is the nearest to a function's summary line.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

SYSTEMS = ("rnd2rnd", "bert2rnd", "rnd2bert", "bert2bert", "bertshare", "robertashare", "gpt", "rnd2gpt", "bert2gpt")
XSUM = {  # F1 of ROUGE-1, ROUGE-2 and ROUGE-L
    "rnd2rnd": (30.90, 10.23, 24.24),
    "bert2rnd": (38.42, 15.83, 30.80),
    "rnd2bert": (32.44, 11.52, 25.65),
    "bert2bert": (37.53, 15.24, 30.05),
    "bertshare": (38.52, 16.12, 31.13),
    "robertashare": (39.87, 17.50, 32.37),
    "gpt": (22.21, 4.89, 16.69),
    "rnd2gpt": (28.48, 8.77, 22.30),
    "bert2gpt": (27.79, 8.37, 21.91),
}
ROUGE_L = {
    "XSum": {name: figures[2] for name, figures in XSUM.items()},
    "CNN/DailyMail": dict(zip(SYSTEMS, (32.96, 35.95, 33.97, 36.29, 36.33, 37.39, 34.47, 29.03, 22.99), strict=True)),
    "Gigaword": dict(zip(SYSTEMS, (34.45, 35.26, 34.51, 35.58, 35.62, 35.44, 33.67, 33.83, 34.24), strict=True)),
}


def beside(rouge_l: Mapping[str, float], loss: Mapping[str, float]) -> str:
    """A table in Markdown of the systems that are in both, with ranks, and the rank correlations (Spearman 1904)."""
    names = [name for name in SYSTEMS if name in rouge_l]
    ours = ranks([rouge_l[name] for name in names])
    theirs = ranks([XSUM[name][2] for name in names])
    lines = ["| | ROUGE-L here | rank | ROUGE-1, 2, L on XSum | rank |", "| --- " * 5 + "|"]
    for place in sorted(range(len(names)), key=lambda place: theirs[place]):
        name = names[place]
        figures = " / ".join(f"{figure:.2f}" for figure in XSUM[name])
        lines.append(f"| {name} | {rouge_l[name]:.1f} | {ours[place]:g} | {figures} | {theirs[place]:g} |")
    if len(names) > 2:
        for what, values in (("ROUGE-L", rouge_l), ("loss, the lowest first", {x: -loss[x] for x in names})):
            found = [
                f"{correlation([values[x] for x in names], [task[x] for x in names]):+.2f} ({title})"
                for title, task in ROUGE_L.items()
            ]
            lines += ["", f"Rank correlation of the paper's order by ROUGE-L with ours by {what}: {', '.join(found)}."]
    return "\n".join(lines)


def agreement(changes: Sequence[tuple[str, str, str]], gains: Callable[[str, str], Sequence[float]]) -> str:
    """For each change of a system, as `table.CHANGES` lists them, whether it moves ROUGE-L as on XSum.

    `gains` are the differences here, seed by seed. One whose mean is less than its deviation decides nothing.
    """
    found: dict[str, list[str]] = {"agree": [], "differ": [], "open": []}
    for what, new, old in changes:
        if not (here := gains(new, old)):
            continue
        mean, paper = statistics.mean(here), XSUM[new][2] - XSUM[old][2]
        is_open = len(here) > 1 and abs(mean) < statistics.stdev(here)
        kind = "open" if is_open else "agree" if mean * paper > 0 else "differ"
        found[kind].append(f"{what} ({mean:+.2f} here, {paper:+.2f} there)")
    says = {
        "agree": "The order agrees with the paper's",
        "differ": "It does not",
        "open": "Within a deviation of nothing here, so that nothing can be said",
    }
    return " ".join(f"{says[kind]}: {'; '.join(found[kind])}." for kind in says if found[kind])


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, 1 for the highest; equal ones share the mean of theirs.

    >>> ranks([5.0, 7.0, 5.0])
    [2.5, 1.0, 2.5]
    """
    return [
        1 + sum(other > value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def correlation(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Spearman's rank correlation.

    >>> correlation([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]), correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    (1.0, -1.0)
    """
    return statistics.correlation(ranks(ours), ranks(theirs))
