"""Folders are written whole or not at all: errors, kills at every step, full disks, many savers, hostile leftovers."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart import folder as folder_module
from warmstart.folder import check_can_write, finish_saves, write_folder
from warmstart.hub import find_file

OLD = {
    "config.json": b"old",
    "model-00001-of-00002.safetensors": b"old 1",
    "model-00002-of-00002.safetensors": b"old 2",
}
NEW = {"config.json": b"new", "model.safetensors": b"new 1", "decoder_tokenizer/vocab.txt": b"new 2"}
WEIGHTS = (r"model(-\d+-of-\d+)?\.safetensors",)
OTHERS = {"notes.txt": b"the user's", "runs/log.txt": b"the user's too", "model.txt": b"no weights"}


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def fill(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def hidden(folder):
    return [path.name for path in Path(folder).iterdir() if path.name.startswith(".")]


def failing(error):
    def write(path):
        path.write_bytes(b"half")
        raise error

    return write


# What a save does ----------------------------------------------------------------------------------------------------


def test_a_save_replaces_what_it_says_and_nothing_else(tmp_path):
    fill(tmp_path, OLD | OTHERS)
    write_folder(tmp_path, NEW, WEIGHTS)
    assert contents(tmp_path) == NEW | OTHERS
    assert hidden(tmp_path) == []


def test_files_of_a_subfolder_are_replaced_but_not_through_a_link(tmp_path):
    fill(tmp_path, {"home/old.txt": b"mine", "model/own/old.txt": b"old", "model/own/deep/old.txt": b"stays"})
    (tmp_path / "model" / "link").symlink_to("../home")
    write_folder(tmp_path / "model", {"own/new.txt": b"new"}, [r".*/old\.txt"])
    assert contents(tmp_path / "home") == {"old.txt": b"mine"}
    assert (tmp_path / "model" / "link").is_symlink()
    assert contents(tmp_path / "model" / "own") == {"new.txt": b"new", "deep/old.txt": b"stays"}
    assert hidden(tmp_path / "model") == []


def test_a_folder_is_made_with_those_above_it(tmp_path):
    write_folder(tmp_path / "a" / "b", NEW)
    assert contents(tmp_path / "a" / "b") == NEW


def test_what_a_file_is_written_by_gets_the_rights_of_a_new_file(tmp_path):
    def private(path):
        path.write_bytes(b"x")
        path.chmod(0o600)  # as some writers leave it

    old = os.umask(0o022)
    try:
        write_folder(tmp_path, {"model.safetensors": private, "config.json": b"x"})
    finally:
        os.umask(old)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("model.safetensors", "config.json")] == [
        0o644
    ] * 2


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    """As in a folder of the hub's cache, which is made of links into a store."""
    (tmp_path / "blob").write_bytes(b"old")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").symlink_to("../blob")
    write_folder(tmp_path / "snapshot", {"config.json": b"new"})
    assert (tmp_path / "blob").read_bytes() == b"old"
    assert (tmp_path / "snapshot" / "config.json").read_bytes() == b"new"


names = st.text("ab", min_size=1, max_size=2)
paths = st.one_of(names, st.tuples(st.sampled_from(["x", "y"]), names).map("/".join))
saves = st.lists(
    st.tuples(
        st.dictionaries(paths, st.binary(max_size=3), min_size=1), st.sampled_from(["", "a.?", ".*"]), st.booleans()
    )
)


@settings(deadline=None, max_examples=30)
@given(saves=saves)
def test_any_saves_one_after_another(tmp_path_factory, saves):
    """Some of them fail at their last file; the folder is what the others made of it."""
    folder, expected = tmp_path_factory.mktemp("saves"), {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)  # it takes milliseconds
        for files, pattern, fails in saves:
            if fails:
                with pytest.raises(KeyError):
                    write_folder(folder, {**files, "last": failing(KeyError("last"))}, [pattern])
            else:
                write_folder(folder, files, [pattern])
                stay = {name: x for name, x in expected.items() if not re.fullmatch(pattern, name)}
                expected = stay | files
            assert contents(folder) == expected


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyError("a bug"), KeyboardInterrupt()]
)
def test_an_error_in_a_save_leaves_the_folder_as_it_was(tmp_path, error):
    fill(tmp_path, OLD | OTHERS)
    with pytest.raises(type(error)):
        write_folder(tmp_path, NEW | {"other.safetensors": failing(error)}, WEIGHTS)
    assert contents(tmp_path) == OLD | OTHERS
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("step", ["fsync", "rename", "mkdir"])
def test_a_full_disk_at_any_step_says_so(tmp_path, monkeypatch, step):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fill(tmp_path, OLD)
    with monkeypatch.context() as patched:
        patched.setattr(os, step, full)
        with pytest.raises(
            OSError, match=r"nothing was saved to .*, it is as it was: No space left on device"
        ) as caught:
            write_folder(tmp_path, NEW, WEIGHTS)
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(caught.value)
    assert contents(tmp_path) == OLD
    assert hidden(tmp_path) == []


def test_a_new_folder_is_gone_after_an_error(tmp_path):
    with pytest.raises(OSError, match="nothing was saved"):
        write_folder(tmp_path / "a" / "b", {"config.json": failing(OSError("no reason"))})
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(NotADirectoryError, match=r"file is a file; give a folder"):
        write_folder(tmp_path / "file", NEW)
    with pytest.raises(NotADirectoryError, match=r"nothing was saved to .*sub"):
        write_folder(tmp_path / "file" / "sub", NEW)
    assert contents(tmp_path) == {"file": b"x"}


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_written(tmp_path):
    fill(tmp_path, OLD | {"model.safetensors/mine.txt": b"x"})
    with pytest.raises(IsADirectoryError, match=r"model\.safetensors is a folder; move it out of the way"):
        write_folder(tmp_path, NEW, WEIGHTS)
    assert contents(tmp_path) == OLD | {"model.safetensors/mine.txt": b"x"}
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "", "a/../../x", "a\\x"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="outside of its folder"):
        write_folder(tmp_path / "folder", {name: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_a_linked_folder_is_not_written_through(tmp_path):
    fill(tmp_path, {"home/mine.txt": b"x", "folder/config.json": b"x"})
    (tmp_path / "folder" / "decoder_tokenizer").symlink_to("../home")
    with pytest.raises(ValueError, match=r"decoder_tokenizer/vocab\.txt"):
        write_folder(tmp_path / "folder", NEW)
    assert contents(tmp_path / "home") == {"mine.txt": b"x"}


# Kills ---------------------------------------------------------------------------------------------------------------

# Forks a child for each step that a save takes, which kills itself there; prints what each left behind.
KILLS = """
import json, os, signal, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_folder import NEW, OLD, OTHERS, WEIGHTS, contents, fill, hidden
from warmstart.folder import write_folder
from warmstart.hub import find_file

STEPS = "open os.chmod os.listdir os.mkdir os.remove os.rename os.rmdir os.scandir shutil.rmtree".split()

def kind(folder):
    found = {name: content for name, content in contents(folder).items() if not name.startswith(".")}
    return "old" if found == OLD | OTHERS else "new" if found == NEW | OTHERS else "mixed"

def dies_at(number):
    count = 0
    def hook(event, args):
        nonlocal count
        if event in STEPS:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
    return hook

number, killed = 0, True
while killed:
    number += 1
    folder = fill(Path(sys.argv[1]) / str(number), OLD | OTHERS)
    child = os.fork()
    if child == 0:
        os.fsync = lambda handle: None  # a kill needs none
        sys.addaudithook(dies_at(number))
        write_folder(folder, NEW, WEIGHTS)
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    ready = any(name.startswith(".warmstart-saved") for name in hidden(folder))
    left = kind(folder)
    read = find_file(folder, "config.json").read_text()
    seen = kind(folder)
    write_folder(folder, OLD, WEIGHTS)
    again, litter = kind(folder), hidden(folder)
    print(json.dumps([killed, ready, left, read, seen, litter, sorted(contents(folder))]))
    shutil.rmtree(folder)
"""


def run(script, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False, **options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_kill_at_any_step_leaves_the_old_folder_or_the_new_one(tmp_path):
    outcomes = run(KILLS, tmp_path, Path(__file__).parent)
    assert [outcome[0] for outcome in outcomes] == [True] * (len(outcomes) - 1) + [False]
    assert len(outcomes) > 25
    after_save = sorted(OLD | OTHERS | {"decoder_tokenizer/vocab.txt": b""})
    for _, ready, left, read, seen, litter, names in outcomes:
        assert left in (("old", "mixed", "new") if ready else ("old", "new"))
        assert read == seen
        assert seen in ("old", "new")
        assert (left, seen) != ("new", "old")
        assert litter == []
        assert [name for name in names if name != "decoder_tokenizer/vocab.txt"] == [
            name for name in after_save if name != "decoder_tokenizer/vocab.txt"
        ]
    kinds = [seen for *_, seen, _, _ in outcomes]
    assert kinds == sorted(kinds, reverse=True)  # all old, and from one step on all new
    assert {"old", "new"} == set(kinds)
    assert any(left == "mixed" for _, _, left, *_ in outcomes)  # there was something to make good


def test_what_a_killed_save_left_is_not_read_and_goes_with_the_next_save(tmp_path):
    fill(tmp_path, OLD | {".warmstart-saving-x1/config.json": b"half", ".warmstart-saving-x1/.removes.json": b"[]"})
    assert find_file(tmp_path, "config.json").read_bytes() == b"old"
    assert hidden(tmp_path) == [".warmstart-saving-x1"]
    write_folder(tmp_path, {"config.json": b"new"})
    assert hidden(tmp_path) == []


def cut_short(folder, files, gone=()):
    """As a kill leaves it that comes right after a save was decided."""
    fill(folder / ".warmstart-saved-x1", {**files, ".removes.json": json.dumps(list(gone)).encode()})
    return folder


def test_a_save_that_was_cut_short_is_finished_where_a_subfolder_is_read(tmp_path):
    cut_short(fill(tmp_path, OLD), NEW, [name for name in OLD if name.startswith("model")])
    assert find_file(tmp_path, "vocab.txt", subfolder="decoder_tokenizer").read_bytes() == b"new 2"
    assert contents(tmp_path) == NEW


def test_a_save_that_cannot_be_finished_says_where_its_files_are(tmp_path, monkeypatch):
    def refused(*args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    cut_short(fill(tmp_path, OLD), NEW)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refused)
        for read in (lambda: find_file(tmp_path, "config.json"), lambda: write_folder(tmp_path, OLD)):
            with pytest.raises(PermissionError, match=r"complete but cannot be moved.*Permission denied.*saved-x1"):
                read()
    assert find_file(tmp_path, "config.json").read_bytes() == b"new"


def test_many_readers_finish_one_save(tmp_path):
    for trial in range(10):
        folder = cut_short(fill(tmp_path / str(trial), OLD), NEW, [name for name in OLD if name.startswith("model")])
        errors = []

        def read(folder=folder, errors=errors):
            try:
                finish_saves(folder)
                if contents(folder) != NEW:
                    errors.append(contents(folder))
            except Exception as error:
                errors.append(error)

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert errors == []


# Hostile leftovers: folders that somebody packed ---------------------------------------------------------------------


@pytest.mark.parametrize("gone", [["../mine.txt"], ["/mine.txt"], [3], {"a": 1}, 3, [""], ["link/mine.txt"]])
def test_a_made_up_save_deletes_nothing_outside_its_folder(tmp_path, gone):
    fill(tmp_path, {"mine.txt": b"x", "folder/config.json": b"x"})
    fill(tmp_path / "folder" / ".warmstart-saved-x1", {".removes.json": json.dumps(gone).encode(), "config.json": b"y"})
    (tmp_path / "folder" / "link").symlink_to("..")
    if gone == {"a": 1}:  # names a file of the folder itself, which its maker may
        finish_saves(tmp_path / "folder")
    else:
        with pytest.raises(OSError, match=r"complete but cannot be moved"):
            find_file(tmp_path / "folder", "config.json")
        assert (tmp_path / "folder" / "config.json").read_bytes() == b"x"
    assert (tmp_path / "mine.txt").read_bytes() == b"x"


def test_a_made_up_save_writes_nothing_outside_its_folder(tmp_path):
    fill(tmp_path, {"home/keys": b"x", "folder/config.json": b"x"})
    (tmp_path / "folder" / "sub").symlink_to("../home")
    cut_short(tmp_path / "folder", {"sub/keys": b"theirs"})
    with pytest.raises(OSError, match=r"sub/keys.*outside of its folder"):
        finish_saves(tmp_path / "folder")
    assert contents(tmp_path / "home") == {"keys": b"x"}


def test_a_link_is_no_save(tmp_path):
    fill(tmp_path, {"home/mine.txt": b"x", "folder/config.json": b"x"})
    for prefix in ("saved", "saving"):
        (tmp_path / "folder" / f".warmstart-{prefix}-x1").symlink_to("../home")
    finish_saves(tmp_path / "folder")
    write_folder(tmp_path / "folder", {"config.json": b"y"})
    assert contents(tmp_path / "home") == {"mine.txt": b"x"}
    assert (tmp_path / "folder" / "config.json").read_bytes() == b"y"


# Many savers ---------------------------------------------------------------------------------------------------------

SAVERS = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_folder import contents, hidden
from warmstart.folder import write_folder

folder, children = Path(sys.argv[1]), []
for saver in range(3):
    children.append(os.fork())
    if children[-1] == 0:
        for turn in range(12):
            tag = f"{saver} {turn}".encode()
            write_folder(folder, {name: tag for name in "abcdef"[: 3 + saver]} | {f"{saver}.part": tag}, [r".*\\.part"])
        os._exit(0)
print(json.dumps([os.waitpid(child, 0)[1] for child in children]))
print(json.dumps({name: content.decode() for name, content in contents(folder).items()}))
print(json.dumps(hidden(folder)))
"""


def test_saves_into_one_folder_take_turns(tmp_path):
    statuses, files, litter = run(SAVERS, tmp_path, Path(__file__).parent)
    assert statuses == [0, 0, 0]
    assert litter == []
    (last,) = {tag for name, tag in files.items() if name.endswith(".part")}
    assert {files[name] for name in "abcdef"[: 3 + int(last[0])]} == {last}


def lock(folder):
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def test_a_save_waits_for_another(tmp_path):
    handle = lock(tmp_path)
    saver = threading.Thread(target=write_folder, args=(tmp_path, NEW))
    saver.start()
    saver.join(0.1)
    assert contents(tmp_path) == {}
    os.close(handle)
    saver.join(10)
    assert contents(tmp_path) == NEW


def test_a_lock_that_outlives_its_save_does_not_stop_others_for_good(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(folder_module, "_PATIENCE", 0.05)
    handle = lock(tmp_path)
    fill(tmp_path, {".warmstart-saving-x1/config.json": b"perhaps of a live save"})
    try:
        write_folder(tmp_path, NEW)
    finally:
        os.close(handle)
    assert "has been locked" in caplog.text
    assert {name: (tmp_path / name).read_bytes() for name in NEW} == NEW
    assert hidden(tmp_path) == [".warmstart-saving-x1"]
    long_ago = 1_000_000_000
    os.utime(tmp_path / ".warmstart-saving-x1", (long_ago, long_ago))
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOTSUP, "no locks")))
    write_folder(tmp_path, NEW)
    assert hidden(tmp_path) == []


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    check_can_write(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"out' cannot be made: '.*file' is a file"):
        check_can_write(tmp_path / "file" / "out")
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.geteuid():  # who is root may write everywhere
        with pytest.raises(PermissionError, match=r"out' cannot be written: '.*closed' may not be changed"):
            check_can_write(tmp_path / "closed" / "out")
