"""The demo's text: what is taken from a file, and that nothing is imported or run."""

from __future__ import annotations

import textwrap

import pytest

from warmstart.demo.corpus import package_folders, plain, read_file, read_package, summary_of

MODULE = '''
raise SystemExit("nobody may run this")

def first(items, default=None):
    """Return the first of the items.

    The rest of the docstring is not shown to the model.
    """
    # a comment of no use
    for item in items:
        return item
    return default

class Box:
    """A class has no body to summarise."""

    async def fetch(self, url):
        """Fetch the page at ``url`` with :meth:`first`. More here."""
        if url:
            return await self.get(url)

    def empty(self):
        """Say nothing about an empty body."""

def undocumented(x):
    return x

if True:
    def guarded(path):
        "Open the file at a path."
        return open(path)

def outer():
    def inner():
        """Belong to another function's body."""
        return 1
    return inner
'''


@pytest.fixture
def module(tmp_path):
    file = tmp_path / "shop" / "goods.py"
    file.parent.mkdir()
    file.write_text(MODULE)
    return file


def test_a_pair_is_the_code_without_docstring_and_comments_and_the_first_sentence(module):
    pairs = {pair.name: pair for pair in read_file("shop", module)}
    assert list(pairs) == ["first", "fetch", "guarded"]
    assert pairs["first"].source == "def first(items, default=None): for item in items: return item return default"
    assert pairs["first"].summary == "Return the first of the items."
    assert pairs["fetch"].source == "async def fetch(self, url): if url: return await self.get(url)"
    assert pairs["fetch"].summary == "Fetch the page at url with first."
    assert pairs["fetch"].package == "shop"


@pytest.mark.parametrize(
    "content",
    [b"def broken(:\n", b'\xff\xfe"""no text"""', b'x = "\0"  # """', "(" * 5000 + '"""'],
    ids=["syntax", "encoding", "null byte", "too deep"],
)
def test_a_file_that_cannot_be_parsed_gives_nothing(tmp_path, content):
    file = tmp_path / "bad.py"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert list(read_file("bad", file)) == []


def test_old_escapes_in_a_file_warn_nobody(tmp_path):
    file = tmp_path / "old.py"
    file.write_text('def digits(text):\n    """Find all of the digits."""\n    return find("\\d", text)\n')
    assert [pair.name for pair in read_file("old", file)] == ["digits"]


def test_a_package_is_read_up_to_a_limit_without_its_tests_and_copies_of_others(module):
    for folder in ("tests", "_vendor"):
        other = module.parent / folder / "more.py"
        other.parent.mkdir()
        other.write_text(module.read_text())
    package = module.parent
    assert len(read_package("shop", package, limit=100)) == 3
    assert len(read_package("shop", package, limit=2)) == 2
    assert read_package("shop", module, limit=100) == read_package("shop", package, limit=100)


def test_files_are_read_in_an_order_that_the_seed_fixes(tmp_path):
    for letter in "abcdefgh":
        (tmp_path / f"{letter}.py").write_text(
            textwrap.dedent(f'''
            def {letter}(value):
                """Return the value of {letter}."""
                return value
            ''')
        )
    runs = [[pair.name for pair in read_package("p", tmp_path, 4, seed)] for seed in (0, 0, 1, 2)]
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs}) > 1


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [
        ("Open a file now.\n\nThen close it.", "Open a file now."),
        ("Open a file\nand read its lines. Then more.", "Open a file and read its lines."),
        (
            "Open a file of the kind that is named, e.g. a text. Then close.",
            "Open a file of the kind that is named, e.g. a text.",
        ),
        ("open a file of some kind", None),
        ("Too short.", None),
        (">>> f(1)\n2", None),
        ("int x, int y -> float[0:3] (1, 2) {3}", None),
        ("One two " + "three " * 30, None),
        ("", None),
    ],
)
def test_only_a_sentence_of_prose_is_a_summary(docstring, summary):
    assert summary_of(docstring) == summary


def test_marks_of_restructured_text_are_taken_away():
    assert plain("See :py:class:`~a.b.C` and ``x``, :ref:`the guide <guide>`, **now**.") == (
        "See a.b.C and x, the guide , now."
    )


def test_the_standard_library_and_the_installed_packages_are_found():
    names = dict(package_folders())
    assert {"asyncio", "json", "torch", "warmstart"} - set(names) <= {"warmstart"}  # an editable install lies elsewhere
    assert not {"site-packages", "test", "__pycache__"} & set(names)
