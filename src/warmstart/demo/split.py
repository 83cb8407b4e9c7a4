"""Cleaning and splitting of the demo's corpus: no duplicates, and no test text in training."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from warmstart.demo.corpus import Pair

SHINGLE = 5  # words; two texts that share this many in a row, many times over, are copies of one another
COPY_SHARE = 0.3  # of the smaller text's shingles
COPIES_OF_A_SUMMARY = 3  # kept in training, so that boilerplate is not what the model learns first
TOLD = 0.3  # of a summary's own words; where fewer stand in the source, it teaches guessing, and is not trained on
SOURCE_READ = 160  # characters, about what the model reads
COMMON_WORDS = {"the", "and", "for", "from", "with", "this", "that", "into", "not", "are", "all", "any", "given"}
LARGEST_TEST_PACKAGE = 0.05  # of all pairs; larger packages are worth more in training


@dataclass(frozen=True)
class Split:
    """Training and test pairs from different packages; `dropped` counts what was left out, by reason."""

    train: list[Pair]
    test: list[Pair]
    test_packages: list[str]
    dropped: dict[str, int]


def split_by_package(pairs: Iterable[Pair], test_size: int, seed: int) -> Split:
    """Hold out whole packages, at random by `seed`, until they have `test_size` pairs; drop copies from training."""
    everything = list(pairs)
    kept = without_duplicates(everything)
    test_packages = choose_packages(kept, test_size, seed)
    test = [pair for pair in kept if pair.package in test_packages]
    random.Random(seed).shuffle(test)
    test = test[:test_size]
    rest = [pair for pair in kept if pair.package not in test_packages]
    told = [pair for pair in rest if is_told(pair)]
    train = without_copies_of(test, told)
    random.Random(seed + 1).shuffle(train)
    dropped = {
        "duplicates": len(everything) - len(kept),
        "that say nothing of the code": len(rest) - len(told),
        "too like test text": len(told) - len(train),
    }
    return Split(train, test, sorted(test_packages), dropped)


def without_duplicates(pairs: Iterable[Pair]) -> list[Pair]:
    """The first of each source, and of each summary the first few."""
    sources: set[str] = set()
    summaries: Counter[str] = Counter()
    kept = []
    for pair in pairs:
        source, summary = normalized(pair.source), normalized(pair.summary)
        if source not in sources and summaries[summary] < COPIES_OF_A_SUMMARY:
            sources.add(source)
            summaries[summary] += 1
            kept.append(pair)
    return kept


def is_told(pair: Pair) -> bool:
    """Whether the summary speaks of what the source names: some of its words begin as some of the source's do.

    >>> is_told(Pair("email", "sort_names", "def sort_names(names):", "Sort all names."))
    True
    >>> is_told(Pair("email", "sort_names", "def sort_names(names):", "See RFC 2822."))
    False
    """
    read, said = (stems(text) for text in (pair.source[:SOURCE_READ], pair.summary))
    return len(read & said) >= TOLD * len(said)


def stems(text: str) -> set[str]:
    """The beginnings of the words in a text, without short and common ones."""
    return {word[:5] for word in re.findall(r"[a-z]{3,}", text.lower()) if word not in COMMON_WORDS}


def choose_packages(pairs: list[Pair], test_size: int, seed: int) -> set[str]:
    """Packages to hold out: small ones in a random order, until they have `test_size` pairs together."""
    sizes = Counter(pair.package for pair in pairs)
    names = sorted(name for name, size in sizes.items() if size <= LARGEST_TEST_PACKAGE * len(pairs))
    random.Random(seed).shuffle(names)
    chosen: set[str] = set()
    for name in names:
        if sum(sizes[package] for package in chosen) >= test_size:
            break
        chosen.add(name)
    return chosen


def without_copies_of(test: list[Pair], train: list[Pair]) -> list[Pair]:
    """The training pairs that repeat no test pair: neither its summary, nor much of its source."""
    summaries = {normalized(pair.summary) for pair in test}
    owners: dict[str, list[int]] = defaultdict(list)
    sizes = []
    for index, pair in enumerate(test):
        found = shingles(pair)
        sizes.append(len(found))
        for shingle in found:
            owners[shingle].append(index)

    def is_copy(pair: Pair) -> bool:
        if normalized(pair.summary) in summaries:
            return True
        found = shingles(pair)
        shared = Counter(index for shingle in found for index in owners.get(shingle, ()))
        return any(count >= COPY_SHARE * min(len(found), sizes[index]) for index, count in shared.items())

    return [pair for pair in train if not is_copy(pair)]


def shingles(pair: Pair) -> set[str]:
    """Every run of SHINGLE words in a pair's summary and source."""
    words = normalized(f"{pair.summary} {pair.source}").split()
    return {" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1))}


def normalized(text: str) -> str:
    """Lower-case words and digits alone, so that layout and punctuation do not hide a copy."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
