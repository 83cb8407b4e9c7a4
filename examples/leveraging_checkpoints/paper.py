"""What Rothe et al. (2020) measured, and whether other figures come in the same order. ROUGE-1, ROUGE-2, ROUGE-L."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

# arXiv:1907.12461, the table of abstractive summarization, base size. Written down from memory of it, without the paper
# at hand: compare them with the paper before you quote them.
TABLE = {
    "Gigaword": {
        "rnd2rnd": (36.94, 18.71, 34.45),
        "bert2rnd": (37.71, 19.26, 35.26),
        "rnd2bert": (37.01, 18.91, 34.51),
        "bert2bert": (38.01, 19.68, 35.58),
        "bertshare": (38.13, 19.81, 35.62),
        "robertashare": (38.21, 19.70, 35.44),
        "gpt": (36.04, 18.44, 33.67),
        "rnd2gpt": (36.21, 18.39, 33.83),
        "bert2gpt": (36.77, 18.23, 34.24),
    },
    "CNN/DailyMail": {
        "rnd2rnd": (35.77, 14.00, 32.96),
        "bert2rnd": (38.74, 17.76, 35.95),
        "rnd2bert": (36.65, 15.55, 33.97),
        "bert2bert": (39.02, 17.84, 36.29),
        "bertshare": (39.09, 18.10, 36.33),
        "robertashare": (40.10, 18.95, 37.39),
        "gpt": (37.26, 15.83, 34.47),
        "rnd2gpt": (32.08, 8.81, 29.03),
        "bert2gpt": (25.20, 4.96, 22.99),
    },
    "XSum": {
        "rnd2rnd": (30.90, 10.23, 24.24),
        "bert2rnd": (38.42, 15.83, 30.80),
        "rnd2bert": (32.44, 11.52, 25.65),
        "bert2bert": (37.53, 15.24, 30.05),
        "bertshare": (38.52, 16.12, 31.13),
        "robertashare": (39.87, 17.50, 32.37),
        "gpt": (22.21, 4.89, 16.69),
        "rnd2gpt": (28.48, 8.77, 22.30),
        "bert2gpt": (27.79, 8.37, 21.91),
    },
}


def agreement(ours: Mapping[str, float], theirs: Mapping[str, float], spread: float) -> dict[str, list[str]]:
    """Each two systems: ordered as in the paper, the other way round, or nearer to each other than `spread`.

    >>> agreement({"a": 3.0, "b": 1.0, "c": 1.1}, {"a": 9.0, "b": 5.0, "c": 4.0}, spread=0.5)
    {'as there': ['a > b', 'a > c'], 'the other way': [], 'too near to say': ['b, c']}
    """
    found: dict[str, list[str]] = {"as there": [], "the other way": [], "too near to say": []}
    for one, other in combinations([name for name in ours if name in theirs], 2):
        better, worse = (one, other) if ours[one] > ours[other] else (other, one)
        if ours[better] - ours[worse] <= spread:
            found["too near to say"].append(f"{one}, {other}")
        else:
            found["as there" if theirs[better] > theirs[worse] else "the other way"].append(f"{better} > {worse}")
    return found
