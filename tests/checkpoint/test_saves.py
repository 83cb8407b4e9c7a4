"""Whole models saved over older ones: kills, full disks, mapped files, and what an older save left."""

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny_models
from warmstart import AutoModel, AutoModelForCausalLM, BertConfig, BertTokenizer, EncoderDecoderModel, GenerationConfig
from warmstart.checkpoint.writer import shard_names, size_in_bytes, split_shards

ROOT = Path(__file__).parents[2]
MINE = {"notes.txt": b"the user's", "logs/run.txt": b"too", "model.onnx": b"another's weights"}
VOCABULARY = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])}


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def model(value):
    """A pair whose every number is `value`, so that a mixture shows."""
    made = tiny_models.pair("bert", "bert-generation")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    made.config.own_field = value
    return made


def value_of(folder):
    """The one value of a saved pair."""
    read = EncoderDecoderModel.from_pretrained(folder)
    (value,) = {*torch.cat([parameter.flatten() for parameter in read.parameters()]).tolist(), read.config.own_field}
    return value


def add_mine(folder):
    for name, content in MINE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# Shards --------------------------------------------------------------------------------------------------------------


@given(sizes=st.dictionaries(st.text(max_size=3), st.integers(0, 50)), limit=st.integers(1, 60))
def test_shards_hold_all_in_order_and_no_more_than_they_may(sizes, limit):
    shards = split_shards(sizes, limit)
    assert [name for shard in shards for name in shard] == list(sizes)
    for shard in shards:
        assert shard
        assert len(shard) == 1 or sum(sizes[name] for name in shard) <= limit
    for shard, following in itertools.pairwise(shards):  # none was begun too early
        assert sum(sizes[name] for name in shard) + sizes[following[0]] > limit


@pytest.mark.parametrize("size", ["", "5 GBs", "-3", "0", 0, "0.0MB", "MB", None, "five"])
def test_a_size_that_is_none(size, tmp_path):
    with pytest.raises(ValueError, match=r"max_shard_size .* is not a size; .*'5GB'"):
        size_in_bytes(size)
    with pytest.raises(ValueError, match="is not a size"):
        model(1.0).save_pretrained(tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("text", "size"), [("1KB", 1000), ("1kib", 1024), (" 2.5 MB ", 2_500_000), ("7", 7), (8, 8)])
def test_sizes(text, size):
    assert size_in_bytes(text) == size


def test_names_of_shards():
    assert shard_names(2, "bin") == ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]


# One save over another -----------------------------------------------------------------------------------------------

WAYS = {
    "whole": {},
    "sharded": {"max_shard_size": "4KB"},
    "more shards": {"max_shard_size": "2KB"},
    "pickled": {"safe_serialization": False},
    "pickled, sharded": {"safe_serialization": False, "max_shard_size": "4KB"},
}


@pytest.mark.parametrize(
    ("first", "second"),
    [*itertools.pairwise(WAYS), ("pickled", "whole"), ("more shards", "sharded"), ("whole", "whole")],
)
def test_a_save_leaves_nothing_of_the_weights_before_it(first, second, tmp_path):
    folder = add_mine(tmp_path / "model")
    model(1.0).save_pretrained(folder, **WAYS[first])
    model(2.0).save_pretrained(folder, **WAYS[second])
    model(2.0).save_pretrained(tmp_path / "alone", **WAYS[second])
    assert contents(folder).keys() == contents(tmp_path / "alone").keys() | MINE.keys()
    assert MINE.items() <= contents(folder).items()
    assert value_of(folder) == 2.0


def test_a_shard_may_be_larger_than_the_limit_only_alone(tmp_path):
    made = model(1.0)
    made.save_pretrained(tmp_path, max_shard_size=3000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = {}
    for name, shard in index["weight_map"].items():
        shards.setdefault(shard, []).append(name)
    assert len(shards) > 5
    for shard, names in shards.items():
        header = int.from_bytes((tmp_path / shard).read_bytes()[:8], "little")
        assert len(names) == 1 or (tmp_path / shard).stat().st_size - header - 8 <= 3000
    assert index["metadata"]["total_size"] == 4 * sum(x.numel() for x in made.parameters())


@pytest.mark.parametrize("ways", [({}, {}), ({"max_shard_size": "4KB"},) * 2, ({"safe_serialization": False},) * 2])
def test_a_model_is_saved_into_the_folder_that_it_is_mapped_from(ways, tmp_path):
    before, after = ways
    folder = tmp_path / "model"
    model(1.0).save_pretrained(folder, **before)
    read = EncoderDecoderModel.from_pretrained(folder)
    first = next(read.encoder.parameters())
    with torch.no_grad():
        first.fill_(3.0)
    read.save_pretrained(folder, **after)
    again = EncoderDecoderModel.from_pretrained(folder)
    for one, other in zip(read.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert set(first.flatten().tolist()) == {3.0}


@pytest.mark.parametrize("safe", [True, False])
def test_training_does_not_write_to_the_file(safe, tmp_path):
    model(1.0).save_pretrained(tmp_path, safe_serialization=safe)
    before = contents(tmp_path)
    read = EncoderDecoderModel.from_pretrained(tmp_path).train()
    read(**tiny_models.batch()).loss.backward()
    with torch.no_grad():
        for parameter in read.parameters():
            parameter -= 0.1 * parameter.grad
    assert {*torch.cat([parameter.flatten() for parameter in read.parameters()]).tolist()} != {1.0}
    assert contents(tmp_path) == before


# Tokenizers and settings, with the model and alone -------------------------------------------------------------------


class Broken(BertTokenizer):
    def save_pretrained(self, *args, **kwargs):
        raise OSError(errno.EIO, "the tokenizer's disk")


def test_a_tokenizer_that_cannot_be_saved_leaves_the_folder_as_it_was(tmp_path):
    model(1.0).save_pretrained(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(OSError, match="the tokenizer's disk"):
        model(2.0).save_pretrained(tmp_path, encoder_tokenizer=Broken(vocab=VOCABULARY))
    assert contents(tmp_path) == before


SAVED = {
    "model": lambda: model(2.0),
    "encoder": lambda: AutoModel(tiny_models.config("bert")),
    "decoder": lambda: AutoModelForCausalLM(tiny_models.config("gpt2")),
    "config": lambda: BertConfig(vocab_size=5),
    "generation config": lambda: GenerationConfig(num_beams=2),
    "tokenizer": lambda: BertTokenizer(vocab=VOCABULARY),
}


@pytest.mark.parametrize("kind", SAVED)
def test_whatever_is_saved_a_full_disk_leaves_the_folder_as_it_was(kind, tmp_path, monkeypatch):
    """Rule 14: whole or not there."""
    model(1.0).save_pretrained(tmp_path, encoder_tokenizer=BertTokenizer(vocab=VOCABULARY | {"c": 7}))
    before = contents(add_mine(tmp_path))
    saved = SAVED[kind]()
    calls = []

    def full(*args, **kwargs):
        calls.append(args)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step in ("fsync", "rename"):
        monkeypatch.setattr(os, step, full)
        with pytest.raises(OSError, match=r"nothing was saved to .*, it is as it was: No space left") as caught:
            saved.save_pretrained(tmp_path)
        assert caught.value.errno == errno.ENOSPC
        monkeypatch.undo()
        assert contents(tmp_path) == before
    assert len(calls) == 2
    saved.save_pretrained(tmp_path)
    assert contents(tmp_path) != before


@pytest.mark.parametrize("kind", ["model", "encoder"])
def test_unknown_arguments_of_a_save_are_refused_before_it(kind, tmp_path):
    with pytest.raises(TypeError, match=r"save_pretrained got unknown arguments \['max_shardsize'\]"):
        SAVED[kind]().save_pretrained(tmp_path, max_shardsize="1GB")
    SAVED[kind]().save_pretrained(tmp_path, is_main_process=False)
    assert contents(tmp_path) == {}


# In processes of their own -------------------------------------------------------------------------------------------

PREPARED = """
import json, os, random, resource, signal, sys, time
from pathlib import Path
import torch
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/checkpoint"]
from test_saves import MINE, WAYS, add_mine, contents, model, value_of

torch.set_num_threads(1)
os.fsync = lambda handle: None
folder = add_mine(Path(sys.argv[1]) / "model")

def report(**facts):
    print(json.dumps(facts), flush=True)
"""

# A file may not grow past some size: what a full disk does, at different points of the save.
FULL = """
model(1.0).save_pretrained(folder)
before = contents(folder)
new = model(2.0)
for way in WAYS:
    largest = max(path.stat().st_size for path in Path(sys.argv[1]).rglob("model.safetensors"))
    for limit in (1, 2000, 3000, largest - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            new.save_pretrained(folder, **WAYS[way])
            said = None
        except OSError as error:
            said = [error.errno, str(error)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        report(way=way, limit=limit, said=said, same=contents(folder) == before)
        if said is None:
            model(1.0).save_pretrained(folder)
            before = contents(folder)
"""

# Children that save a new model over the old one are killed at one of their steps: some while files are written, and
# each while they are moved; some at any time.
KILLS = """
random.seed(7)
old, new = model(1.0), model(2.0)
way, steps_file = WAYS["sharded"], Path(sys.argv[1]) / "steps"
done = 0

def save(last):
    def step(event, args):
        global done
        if event.startswith(("os.", "open", "shutil")):
            done += 1
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(step)
    new.save_pretrained(folder, **way)
    steps_file.write_text(str(done))
    os._exit(0)

def trial(last, seconds=None):
    old.save_pretrained(folder)
    child = os.fork()
    if child == 0:
        save(last)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    ready = any(name.startswith(".warmstart-saved") for name in os.listdir(folder))
    read = value_of(folder)
    new.save_pretrained(folder)
    litter = [name for name in os.listdir(folder) if name.startswith(".")]
    mine = MINE.items() <= contents(folder).items()
    report(timed=seconds is not None, killed=killed, ready=ready, read=read, mine=mine, litter=litter)

start = time.monotonic()
trial(0)
took, steps = time.monotonic() - start, int(steps_file.read_text())
for last in sorted(random.sample(range(1, steps - 30), 8)) + list(range(steps - 30, steps + 1, 2)):
    trial(last)
for _ in range(4):
    trial(0, random.random() * took / 2)
"""


def run(script, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PREPARED + script, str(folder), str(ROOT / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_disk_that_is_full_at_any_point_leaves_the_old_model(tmp_path):
    outcomes = run(FULL, tmp_path)
    for outcome in outcomes:
        if outcome["said"] is not None:
            assert outcome["same"], outcome
            assert "nothing was saved to" in outcome["said"][1]
            assert outcome["said"][0] == errno.EFBIG or "is there room for it?" in outcome["said"][1]
    full = {outcome["way"] for outcome in outcomes if outcome["said"] is not None}
    assert full == WAYS.keys()
    assert sum(outcome["said"] is not None for outcome in outcomes) >= 12


def test_a_kill_in_a_save_leaves_the_old_model_or_the_new_one(tmp_path):
    outcomes = run(KILLS, tmp_path)
    for outcome in outcomes:
        assert outcome["mine"] and outcome["litter"] == [], outcome
        assert outcome["read"] == 2.0 or (outcome["read"] == 1.0 and outcome["killed"] and not outcome["ready"]), (
            outcome
        )
    untimed = [outcome for outcome in outcomes if not outcome["timed"]]
    assert [outcome["killed"] for outcome in untimed] == [False] + [True] * (len(untimed) - 1)
    assert any(outcome["ready"] for outcome in untimed)  # between the moves
    reads = [outcome["read"] for outcome in untimed[1:]]
    assert reads == sorted(reads) and set(reads) == {1.0, 2.0}  # from one step on the new one
