"""Folders: what torch or the reference saved opens in Flax and the other way round, in every form of weights."""

import json
import os
import subprocess
import sys
import warnings
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import tiny_models
from warmstart import (
    EncoderDecoderModel,
    FlaxAutoModel,
    FlaxBertForCausalLM,
    FlaxBertModel,
    FlaxEncoderDecoderModel,
    FlaxGPT2LMHeadModel,
)
from warmstart.checkpoint.flax_files import FlaxFile, name_from_flax, packed, path_in_flax
from warmstart.checkpoint.pickles import PickledArrays
from warmstart.flax import loading


def assert_same_tree(found, wanted):
    found, wanted = loading.flat(found), loading.flat(wanted)
    assert found.keys() == wanted.keys()
    for name in found:
        assert found[name].dtype == wanted[name].dtype and np.array_equal(found[name], wanted[name]), name


def assert_same_weights(found, wanted):
    """Two torch models with equal parameters, bit for bit."""
    other = dict(wanted.named_parameters())
    for name, value in found.named_parameters():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("pairing", [("bert", "gpt2"), ("bart", "llama"), ("camembert", "qwen2")])
def test_from_torch_and_back(pairing, pair, tmp_path):
    ours, flax, folder = pair(*pairing)
    flax.save_pretrained(tmp_path / "again")
    names = [safetensors.torch.load_file(place / "model.safetensors") for place in (folder, tmp_path / "again")]
    assert names[0].keys() == names[1].keys()
    assert_same_weights(EncoderDecoderModel.from_pretrained(tmp_path / "again"), ours)
    texts = [json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "again")]
    assert texts[0] == texts[1]


def test_folder_opens_in_the_reference(pair, tmp_path, numpy_batch):
    _, flax, _ = pair("bert", "gpt2")
    flax.save_pretrained(tmp_path)
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path)
    batch = tiny_models.batch(encoder_pad=0)
    targets = batch["labels"].abs() % 30
    with torch.no_grad():
        wanted = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], decoder_input_ids=targets)
    found = flax(batch["input_ids"].numpy(), batch["attention_mask"].numpy(), targets.numpy())
    assert np.abs(np.asarray(found.logits) - wanted.logits.numpy()).max() < 1e-5


@pytest.mark.parametrize("form", ["bin", "older-bin", "sharded-bin", "sharded", "bfloat16", "float16"])
def test_every_form_of_torch_weights(form, pair, tmp_path):
    ours, flax, _ = pair("bert", "gpt2")
    wanted, options = flax.params, {}
    if "bin" in form:
        options["safe_serialization"] = False
    if "sharded" in form:
        options["max_shard_size"] = "8KB"
    if form in ("bfloat16", "float16"):
        dtype = getattr(torch, form)
        EncoderDecoderModel.from_pretrained(pair("bert", "gpt2")[2], dtype=dtype).save_pretrained(tmp_path)
        wanted = flax.to_bf16(wanted) if form == "bfloat16" else flax.to_fp16(wanted)
    else:
        ours.save_pretrained(tmp_path, **options)
    if form == "older-bin":
        file = tmp_path / "pytorch_model.bin"
        torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    assert_same_tree(FlaxEncoderDecoderModel.from_pretrained(tmp_path, from_pt=True).params, wanted)


@pytest.mark.parametrize("shard", ["5GB", "8KB"])
@pytest.mark.parametrize("pairing", [("bert", "gpt2"), ("roberta", "bert")])
def test_flax_files(pairing, shard, pair, tmp_path):
    """`flax_model.msgpack`, whole and in shards, is read as it was written, and replaces what stood there."""
    _, flax, _ = pair(*pairing)
    flax.save_pretrained(tmp_path)
    flax.save_pretrained(tmp_path, safe_serialization=False, max_shard_size=shard)
    assert (tmp_path / "flax_model.msgpack.index.json").exists() == (shard == "8KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert_same_tree(FlaxEncoderDecoderModel.from_pretrained(tmp_path).params, flax.params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, info = transformers.FlaxEncoderDecoderModel.from_pretrained(tmp_path, _do_init=True), None
    assert info is None
    mine = loading.flat(flax.params)["decoder.layers.0.mlp.up.weight"]
    their = theirs.params["decoder"]
    their = (
        their["transformer"]["h"]["0"]["mlp"]["c_fc"]["kernel"].T
        if pairing[1] == "gpt2"
        else their["bert"]["encoder"]["layer"]["0"]["intermediate"]["dense"]["kernel"]
    )
    assert np.array_equal(mine, their)


def test_bfloat16_and_large_arrays_in_flax_files(tmp_path, monkeypatch):
    from flax.serialization import msgpack_restore

    monkeypatch.setattr("warmstart.checkpoint.flax_files._CHUNK", 64)
    arrays = {
        "a/b/kernel": np.arange(60, dtype=np.float32).reshape(10, 6),
        "a/scale": np.asarray(jnp.ones(4, jnp.bfloat16)),
    }
    (tmp_path / "flax_model.msgpack").write_bytes(packed(arrays))
    file = FlaxFile(tmp_path / "flax_model.msgpack")
    assert np.array_equal(file.read("a.b.weight"), arrays["a/b/kernel"].T)
    assert file.read("a.weight").dtype == jnp.bfloat16
    restored = msgpack_restore((tmp_path / "flax_model.msgpack").read_bytes())
    assert np.array_equal(restored["a"]["b"]["kernel"], arrays["a/b/kernel"])


@given(st.sampled_from(["layers.0.mlp.up", "embeddings.token", "layers.1.attention_norm", "head.norm"]), st.booleans())
def test_flax_names_are_undone(module, is_bias):
    ours = f"{module}.{'bias' if is_bias else 'weight'}"
    theirs = f"bert.encoder.{'bias' if is_bias else 'weight'}"
    assert name_from_flax(path_in_flax(theirs, ours)) == theirs


@pytest.mark.parametrize("length", [0, 5, 200])
def test_truncated_flax_file(length, pair, tmp_path):
    _, flax, _ = pair("bert", "gpt2")
    flax.save_pretrained(tmp_path, safe_serialization=False)
    file = tmp_path / "flax_model.msgpack"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(OSError, match=r"is not a sound flax_model\.msgpack"):
        FlaxEncoderDecoderModel.from_pretrained(tmp_path)


class Harm:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_of_a_pickle_is_run(zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Harm()}, "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(OSError, match="asks for more than tensors"):
        PickledArrays(tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "harmed").exists()


def test_pickled_tensors_of_every_layout(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = OrderedDict(
        turned=base.T, part=base[1:3, ::2], number=torch.tensor(3.5), empty=torch.zeros(0, 3), whole=base.long()
    )
    tensors["parameter"] = torch.nn.Parameter(base)
    for zipped in (True, False):
        torch.save(tensors, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
        file = PickledArrays(tmp_path / "x.bin")
        for name, tensor in tensors.items():
            assert file.shapes[name] == tuple(tensor.shape) and f"torch.{file.types[name]}" == str(tensor.dtype)
            assert np.array_equal(file.read(name), tensor.detach().numpy()), name


@pytest.mark.parametrize("length", [3, 300, -64])
def test_truncated_pickle(length, tmp_path):
    for zipped in (True, False):
        file = tmp_path / "x.bin"
        torch.save({"a": torch.ones(64)}, file, _use_new_zipfile_serialization=zipped)
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(OSError, match="not a sound file of tensors"):
            PickledArrays(file)


def test_pickle_that_reaches_beyond_its_values(tmp_path):
    small = torch.ones(4)
    small = torch.as_strided(small, (2, 2), (1, 1))
    torch.save({"a": small.expand(3, 2, 2)}, tmp_path / "x.bin")
    with pytest.raises(OSError, match="larger than its values"):
        PickledArrays(tmp_path / "x.bin")


def test_flax_needs_no_torch_to_read_a_pickle(pair, tmp_path):
    ours, _, _ = pair("bert", "gpt2")
    ours.save_pretrained(tmp_path, safe_serialization=False)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from warmstart import FlaxEncoderDecoderModel as Model\n"
        f"print(Model.from_pretrained({str(tmp_path)!r}).num_parameters())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == ours.num_parameters()


def test_warm_start_and_its_report(tmp_path):
    encoder = tiny_models.saved(tmp_path / "bert", "bert")
    decoder = tiny_models.saved(tmp_path / "gpt2", "gpt2", decoder=True)
    options = {"decoder_n_layer": 1, "cross_attention_init": "copy", "max_length": 7}
    flax = FlaxEncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder, **options)
    ours = EncoderDecoderModel.from_encoder_decoder_pretrained(encoder, decoder, **options)
    for name in ("loaded", "new", "copied", "left_out"):
        assert sorted(getattr(flax.load_report, name)) == sorted(getattr(ours.load_report, name)), name
    assert flax.config.to_dict() == ours.config.to_dict()
    leaves, theirs = loading.flat(flax.params), dict(ours.named_parameters())
    for name in ours.load_report.loaded:
        value = np.asarray(leaves[name])
        assert np.array_equal(
            value.T if value.shape != tuple(theirs[name].shape) else value, theirs[name].detach()
        ) or (np.array_equal(value.T, theirs[name].detach())), name


def test_sides_given_as_models(tmp_path):
    encoder = FlaxAutoModel(tiny_models.config("bert"))
    from warmstart import FlaxAutoModelForCausalLM

    decoder = FlaxAutoModelForCausalLM(tiny_models.config("gpt2", is_decoder=True, add_cross_attention=True))
    model = FlaxEncoderDecoderModel.from_encoder_decoder_pretrained(encoder_model=encoder, decoder_model=decoder)
    leaf = model.params["encoder"]["layers"]["0"]["mlp"]["up"]["kernel"]
    assert np.array_equal(leaf, encoder.params["layers"]["0"]["mlp"]["up"]["kernel"])
    with pytest.raises(ValueError, match="without a head or without cross-attention"):
        FlaxEncoderDecoderModel.from_encoder_decoder_pretrained(encoder_model=encoder, decoder_model=encoder)


def test_tied_sides_are_one(tmp_path):
    """BERTSHARE: one set of parameters, written once, the same in torch."""
    folder = tiny_models.saved(tmp_path / "bert", "bert", decoder=True)
    flax = FlaxEncoderDecoderModel.from_encoder_decoder_pretrained(
        folder, folder, tie_encoder_decoder=True, cross_attention_init="copy"
    )
    ours = EncoderDecoderModel.from_encoder_decoder_pretrained(
        folder, folder, tie_encoder_decoder=True, cross_attention_init="copy"
    )
    assert flax.num_parameters() == ours.num_parameters()
    assert set(flax.params["decoder"]) == {"head", "layers"}
    flax.save_pretrained(tmp_path / "tied")
    again, back = (
        EncoderDecoderModel.from_pretrained(tmp_path / "tied"),
        FlaxEncoderDecoderModel.from_pretrained(tmp_path / "tied"),
    )
    assert_same_weights(again, ours)
    assert_same_tree(back.params, flax.params)
    batch = tiny_models.batch(encoder_pad=0)
    targets = batch["labels"].abs() % 30
    with torch.no_grad():
        wanted = again(batch["input_ids"], batch["attention_mask"], targets).logits
    found = flax(batch["input_ids"].numpy(), batch["attention_mask"].numpy(), targets.numpy()).logits
    assert np.abs(np.asarray(found) - wanted.numpy()).max() < 1e-5


def test_familiar_names_are_bound_to_their_family(tmp_path):
    folder = tiny_models.saved(tmp_path, "bert")
    assert isinstance(FlaxBertModel.from_pretrained(folder), FlaxAutoModel)
    assert FlaxBertForCausalLM.config_class.model_type == "bert"
    with pytest.raises(TypeError, match="built from a GPT2Config"):
        FlaxGPT2LMHeadModel(tiny_models.config("bert"))


def test_a_save_that_fails_changes_nothing(pair, tmp_path, monkeypatch):
    _, flax, _ = pair("bert", "gpt2")
    flax.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loading, "write_tensors", full)
    with pytest.raises(OSError, match="nothing was saved"):
        flax.save_pretrained(tmp_path, safe_serialization=False)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_replaced_parameters_are_saved(pair, tmp_path):
    _, flax, _ = pair("bert", "gpt2")
    changed = jax.tree.map(lambda x: x + 1, flax.params)
    flax.save_pretrained(tmp_path, params=changed)
    assert_same_tree(FlaxEncoderDecoderModel.from_pretrained(tmp_path).params, changed)
