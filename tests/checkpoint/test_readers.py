"""Weight files that are truncated, corrupt or made to harm are refused by name, and nothing of theirs is run."""

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from warmstart.checkpoint.readers import open_weights

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def entry(shape, offsets, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


def safetensors(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


GOOD = {"a": entry([2], [0, 8]), "b": entry([2], [8, 16])}
ROTTEN_SAFETENSORS = {
    "empty file": b"",
    "no header": b"\0\0\0",
    "header longer than the file": safetensors(GOOD, bytes(16), length=10**6),
    "header of no end": safetensors(GOOD, bytes(16), length=2**64 - 1),
    "header of no length": safetensors(b"", bytes(16)),
    "header is no JSON": safetensors(b"{nonsense", bytes(16)),
    "header is a list": safetensors([1, 2], bytes(16)),
    "header is no UTF-8": safetensors(b'{"\xff\xfe": 1}', bytes(16)),
    "header nests without end": safetensors(b"[" * 100_000),
    "truncated": safetensors(GOOD, bytes(12)),
    "more than the header says": safetensors(GOOD, bytes(20)),
    "overlapping": safetensors({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, bytes(12)),
    "the same bytes twice": safetensors({"a": entry([2], [0, 8]), "b": entry([2], [0, 8])}, bytes(8)),
    "a hole": safetensors({"a": entry([2], [0, 8]), "b": entry([2], [12, 20])}, bytes(20)),
    "out of range": safetensors({"a": entry([2], [0, 8]), "b": entry([250], [8, 1008])}, bytes(16)),
    "before the start": safetensors({"a": entry([2], [-8, 0])}, bytes(16)),
    "backwards": safetensors({"a": entry([2], [8, 0])}, bytes(8)),
    "shape and bytes disagree": safetensors({"a": entry([3], [0, 8])}, bytes(8)),
    "negative shape": safetensors({"a": entry([-2], [0, 8])}, bytes(8)),
    "sizes that overflow": safetensors({"a": entry([2**63, 2**63], [0, 8])}, bytes(8)),
    "sizes that overflow to nothing": safetensors({"a": entry([2**63, 2**63, 0], [0, 0])}),
    "unknown type": safetensors({"a": entry([2], [0, 8], "F33")}, bytes(8)),
}


@pytest.mark.parametrize("framework", ["pt", "np"])
@pytest.mark.parametrize("kind", ROTTEN_SAFETENSORS)
def test_rotten_safetensors(kind, framework, tmp_path):
    (tmp_path / SAFE).write_bytes(ROTTEN_SAFETENSORS[kind])
    with pytest.raises(OSError, match=r"not a sound safetensors file.*download or save it again") as caught:
        open_weights(tmp_path, framework=framework)
    assert str(tmp_path / SAFE) in str(caught.value)


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_bytes_changed_at_random_are_refused_or_harmless(tmp_path_factory, data):
    """Of a sound file of either kind, some bytes are changed, some cut off; no other error comes, and no more bytes."""
    folder = tmp_path_factory.mktemp("changed")
    name = data.draw(st.sampled_from([SAFE, PICKLED]))
    save_file(TENSORS, folder / name) if name == SAFE else torch.save(TENSORS, folder / name)
    content = bytearray((folder / name).read_bytes())
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4)):
        content[place % len(content)] = value
    (folder / name).write_bytes(content[: data.draw(st.just(None) | st.integers(0, len(content)))])
    try:
        weights = open_weights(folder)
    except OSError as error:
        message = str(error)
    else:
        message = str(folder / name)
        for key, shape in weights.shapes.items():
            tensor = weights.read(key)
            assert tuple(tensor.shape) == shape
            assert tensor.numel() * tensor.element_size() <= len(content)
    assert str(folder / name) in message


@pytest.mark.parametrize("name", [SAFE, PICKLED])
def test_a_pointer_of_git_lfs_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 438007537\n")
    with pytest.raises(OSError, match=r"pointer of git-lfs.*git lfs pull"):
        open_weights(tmp_path)


# Pickles -------------------------------------------------------------------------------------------------------------


class Payload:
    """What makes a file, if it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def zipped(path, pickled):
    """As torch writes it, with a pickle of one's own inside."""
    torch.save(TENSORS, path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, content in members.items():
            new.writestr(name, pickled if name.endswith("data.pkl") else content)


WITH_CODE = {
    "plain pickle": lambda path, bad: path.write_bytes(pickle.dumps({"a": bad})),
    "old pickle": lambda path, bad: path.write_bytes(pickle.dumps({"a": bad}, protocol=0)),
    "new pickle": lambda path, bad: path.write_bytes(pickle.dumps({"a": bad}, protocol=5)),
    "torch's file": lambda path, bad: torch.save({"a": torch.ones(2), "b": bad}, path),
    "torch's old file": lambda path, bad: torch.save({"b": bad}, path, _use_new_zipfile_serialization=False),
    "torch's file, the pickle replaced": lambda path, bad: zipped(path, pickle.dumps(bad)),
    "as a name": lambda path, bad: torch.save({"a": torch.ones(2), ("b", bad): 1}, path),
}


@pytest.mark.parametrize("kind", WITH_CODE)
@pytest.mark.parametrize("name", [PICKLED, "pytorch_model-00001-of-00001.bin"])
def test_code_in_a_pickle_is_never_run(kind, name, tmp_path):
    """Rule 14. The same files do run it where one unpickles them."""
    proof = tmp_path / "proof"
    WITH_CODE[kind](tmp_path / name, Payload(proof))
    if name != PICKLED:
        (tmp_path / f"{PICKLED}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(OSError, match=r"asks for more than tensors.*holds code, which is never run.*safetensors"):
        open_weights(tmp_path)
    assert not proof.exists()
    if kind.endswith("pickle"):
        pickle.loads((tmp_path / name).read_bytes())["a"].close()
        assert proof.exists()


def test_a_pickle_under_the_name_of_safetensors_is_not_unpickled(tmp_path):
    (tmp_path / SAFE).write_bytes(pickle.dumps(Payload(tmp_path / "proof")))
    with pytest.raises(OSError, match="not a sound safetensors file"):
        open_weights(tmp_path)
    assert not (tmp_path / "proof").exists()


NOT_WEIGHTS = {
    "a list": ([torch.ones(1)], "something other than named tensors"),
    "one tensor": (torch.ones(1), "something other than named tensors"),
    "numbers for names": ({1: torch.ones(1)}, "something other than named tensors"),
    "a state inside a state": (
        {"state_dict": {"a": torch.ones(1)}},
        r"holds a dict under 'state_dict'.*state_dict\(\)",
    ),
    "a number": ({"a": torch.ones(1), "epoch": 3}, "holds a int under 'epoch'"),
    "no values": ({"a": torch.ones(2, device="meta")}, "'a' is a torch.strided tensor on meta"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "'a' is a torch.sparse_coo tensor on cpu"),
    "one number for terabytes": ({"a": torch.ones(1).expand(10**6, 10**6)}, "larger than the file; it is made to harm"),
}


@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_pickles_that_hold_no_plain_named_tensors(kind, tmp_path):
    held, message = NOT_WEIGHTS[kind]
    torch.save(held, tmp_path / PICKLED)
    with pytest.raises(OSError, match=message) as caught:
        open_weights(tmp_path)
    assert str(tmp_path / PICKLED) in str(caught.value)


@pytest.mark.parametrize("length", [0, 10, 100, 900])
def test_a_truncated_pickle(length, tmp_path):
    torch.save(TENSORS, tmp_path / PICKLED)
    os.truncate(tmp_path / PICKLED, length)
    with pytest.raises(OSError, match="not a sound file of tensors alone"):
        open_weights(tmp_path)


# What is found -------------------------------------------------------------------------------------------------------


def write(folder, name, tensors=TENSORS, **options):
    if name.endswith("safetensors"):
        save_file(tensors, folder / name)
    else:
        torch.save(tensors, folder / name, **options)


def index(folder, weight_map, name=SAFE):
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("name", "options"), [(SAFE, {}), (PICKLED, {}), (PICKLED, {"_use_new_zipfile_serialization": False})]
)
@pytest.mark.parametrize("sharded", [False, True])
def test_every_kind_of_file_is_read(name, options, sharded, tmp_path):
    if sharded:
        shards = {key: f"sub/part-{key}-{name}" for key in TENSORS}
        (tmp_path / "sub").mkdir()
        for key, shard in shards.items():
            write(tmp_path, shard, {key: TENSORS[key]}, **options)
        index(tmp_path, shards, name)
    else:
        write(tmp_path, name, **options)
    weights = open_weights(tmp_path)
    assert weights.shapes == {"a": (2, 3), "b": (4,)}
    for key, tensor in TENSORS.items():
        assert torch.equal(weights.read(key), tensor)


def test_arrays_of_numpy(tmp_path):
    write(tmp_path, SAFE)
    array = open_weights(tmp_path, framework="np").read("a")
    assert isinstance(array, np.ndarray) and array.tolist() == TENSORS["a"].tolist()


def test_safetensors_come_first_unless_told_otherwise(tmp_path):
    write(tmp_path, SAFE, {"safe": torch.ones(1)})
    write(tmp_path, PICKLED, {"pickled": torch.ones(1)})
    write(tmp_path, "model.fp16.safetensors", {"half": torch.ones(1)})
    assert list(open_weights(tmp_path).files) == ["safe"]
    assert list(open_weights(tmp_path, use_safetensors=True).files) == ["safe"]
    assert list(open_weights(tmp_path, use_safetensors=False).files) == ["pickled"]
    assert list(open_weights(tmp_path, variant="fp16").files) == ["half"]


def test_no_weights_says_what_there_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tf_model.h5").write_text("")
    with pytest.raises(
        FileNotFoundError, match=r"has no weights: none of model\.safetensors, pytorch_model\.bin"
    ) as caught:
        open_weights(tmp_path)
    for words in (str(tmp_path), "there is config.json, tf_model.h5", "not what this class reads", "from_config"):
        assert words in str(caught.value)
    write(tmp_path, PICKLED)
    with pytest.raises(
        FileNotFoundError, match=r"none of model\.safetensors, nor.*pytorch_model\.bin.*not what was asked"
    ):
        open_weights(tmp_path, use_safetensors=True)
    with pytest.raises(FileNotFoundError, match=r"none of model\.fp16\.safetensors, pytorch_model\.fp16\.bin"):
        open_weights(tmp_path, variant="fp16")


# Indexes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors", "", "C:\\x"])
def test_an_index_that_points_outside_its_folder(shard, tmp_path):
    write(tmp_path, "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index(folder, {"a": shard})
    with pytest.raises(ValueError, match="points outside its folder"):
        open_weights(folder)


@pytest.mark.parametrize("weight_map", [None, [], {"a": 3}, {"a": None}, "shard"])
def test_an_index_without_a_map(weight_map, tmp_path):
    index(tmp_path, weight_map)
    with pytest.raises(ValueError, match=r"index\.json has no `weight_map` from tensor names to file names"):
        open_weights(tmp_path)


def test_an_index_that_is_no_json(tmp_path):
    (tmp_path / f"{SAFE}.index.json").write_text('{"weight_map": {')
    with pytest.raises(OSError, match=r"index\.json is not valid JSON"):
        open_weights(tmp_path)


def test_an_index_whose_shard_is_missing(tmp_path):
    write(tmp_path, "one.safetensors", {"a": TENSORS["a"]})
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(
        FileNotFoundError, match=r"no 'two\.safetensors'.*there is model\.safetensors\.index\.json, one"
    ):
        open_weights(tmp_path)


def test_an_index_that_promises_more_than_its_shards_hold(tmp_path):
    write(tmp_path, "one.safetensors", {"a": TENSORS["a"]})
    index(tmp_path, dict.fromkeys(["a", *(f"x{number}" for number in range(9))], "one.safetensors"))
    with pytest.raises(ValueError, match=r"promises tensors that its shards lack: x0, x1, x2, x3, x4 and 4 more"):
        open_weights(tmp_path)


def test_what_an_index_does_not_name_is_told(tmp_path):
    write(tmp_path, "one.safetensors")
    index(tmp_path, {"a": "one.safetensors"})
    weights = open_weights(tmp_path)
    assert (list(weights.files), weights.unlisted) == (["a"], ["b"])


def test_reading_does_not_open_a_file_twice(tmp_path):
    (tmp_path / SAFE).write_bytes(save(TENSORS))
    weights = open_weights(tmp_path)
    assert len({id(file) for file in weights.files.values()}) == 1
