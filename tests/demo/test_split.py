"""The split of the demo's text: no test text in training, however it is disguised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart.demo.corpus import Pair
from warmstart.demo.split import is_told, normalized, split_by_package, without_copies_of, without_duplicates

WORDS = ["read", "write", "open", "close", "file", "line", "word", "page", "name", "list", "count", "sort", "merge"]


def pair(package, number):
    """A pair that shares no summary and no long run of words with one of another number."""
    one, two, three = (WORDS[number // len(WORDS) ** power % len(WORDS)] for power in range(3))
    name = f"{one}_{two}_{three}"
    return Pair(package, name, f"def {name}(n{number}): return x{number} + y{number}", f"{one} {two} {three} it.")


@pytest.fixture
def pairs():
    return [pair(f"package{number % 40}", number) for number in range(800)]


def test_test_packages_are_not_in_training(pairs):
    split = split_by_package(pairs, test_size=60, seed=0)
    assert {p.package for p in split.test} <= set(split.test_packages)
    assert not {p.package for p in split.train} & set(split.test_packages)
    assert len(split.test) == 60
    assert len(split.train) == 740  # packages have 20 pairs; three are held out


def test_the_split_depends_on_the_seed_alone(pairs):
    assert split_by_package(pairs, 60, seed=3) == split_by_package(pairs, 60, seed=3)
    assert split_by_package(pairs, 60, seed=3).test_packages != split_by_package(pairs, 60, seed=4).test_packages


def test_a_large_package_is_not_held_out(pairs):
    large = [pair("large", 1000 + number) for number in range(500)]
    assert all("large" not in split_by_package(pairs + large, 60, seed).test_packages for seed in range(20))


@pytest.mark.parametrize(
    "copied",
    [
        Pair("other", "g", "def entirely_different(): return None", "RETURN  the sum, of all numbers!"),
        Pair(
            "other",
            "f",
            "def total(numbers, start): result = start for number in numbers: result += number",
            "Add it up.",
        ),
        Pair(
            "other", "f", "if True: def total(numbers,start):\n result = start;  for number in numbers: pass", "Add it."
        ),
    ],
    ids=["same summary", "same code", "most of the code"],
)
def test_a_copy_of_test_text_is_not_trained_on(copied):
    test = Pair(
        "tested",
        "total",
        "def total(numbers, start): result = start for number in numbers: result += number return result",
        "Return the sum of all numbers.",
    )
    innocent = Pair("other", "h", "def total(x): return Counter(x).total()", "Count what there is.")
    assert without_copies_of([test], [copied, innocent]) == [innocent]


def test_duplicates_are_kept_once_and_boilerplate_a_few_times():
    same = [Pair("p", "f", "def f(): return 1", "Return one of them.")] * 5
    boilerplate = [Pair("p", f"f{n}", f"def f{n}(): return {n}", "Return the string form.") for n in range(9)]
    kept = without_duplicates(same + boilerplate)
    assert len(kept) == 1 + 3


def test_what_was_left_out_is_counted(pairs):
    untold = [Pair("package0", "f", f"def f{number}(): pass", f"Unrelated words {number} here.") for number in range(7)]
    split = split_by_package([*pairs, *pairs[:5], *untold], 60, seed=0)
    assert split.dropped["duplicates"] == 5
    assert split.dropped["that say nothing of the code"] in (0, 7)  # none if package0 is held out
    assert len(split.train) + sum(split.dropped.values()) <= 812


def test_a_summary_must_speak_of_its_code_to_be_trained_on():
    assert is_told(Pair("p", "f", "def sorted_names(x):", "Sort the names."))
    assert not is_told(Pair("p", "f", "def run(x):", "Callback for the third widget."))


@given(st.text())
def test_layout_and_case_do_not_hide_a_copy(text):
    assert normalized(text) == normalized(f"  {text.upper().lower()} \n.") or not text.isascii()
