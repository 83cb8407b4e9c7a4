"""Meshes of devices: the rules cover every parameter, and what runs over 8 devices is what runs on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import tiny_models
from warmstart import FlaxEncoderDecoderModel
from warmstart.flax import loading
from warmstart.flax.partitioning import RULES, partition_specs, shard_batch

FLAGS = "--xla_force_host_platform_device_count=8"
HELD_WHOLE = ("norm.", "attention.output.bias", "mlp.down.bias", "head.dense.bias", "enc_to_dec_proj.bias")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What eight devices report."""
    folder = tmp_path_factory.mktemp("pair")
    sides = [
        tiny_models.config(family, vocab_size=40, hidden_size=16, num_attention_heads=8, num_hidden_layers=1)
        for family in ("bert", "roberta")
    ]
    tiny_models.pair(*sides).save_pretrained(folder)
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {FLAGS}", "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("on_eight_devices.py")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("mesh", "most"), [("tensor", 0.4), ("all", 0.4)])
def test_eight_devices_do_what_one_does(mesh, most, report):
    found = report[mesh]
    assert found["loss"] < 1e-5 and found["step"] < 1e-5 and found["tokens"]
    assert found["share"] <= most  # of the parameters on one device


def test_every_parameter_has_a_rule():
    """Each parameter of every family is split by one rule, or is named among those that every device holds."""
    import re

    for family in tiny_models.FAMILIES:
        encoder, decoder = tiny_models.config("bert" if family == "gpt2" else family), tiny_models.config(family)
        from warmstart import EncoderDecoderConfig

        config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        model = FlaxEncoderDecoderModel(config, _do_init=False)
        for name in loading.flat(model.params_shape_tree):
            rules = [pattern for pattern, _ in RULES if re.search(pattern, name)]
            assert len(rules) + any(part in name for part in HELD_WHOLE) == 1, name


def test_what_does_not_divide_is_not_split():
    devices = np.array(jax.devices()[:1] * 4).reshape(2, 2)
    mesh = Mesh(devices, ("fsdp", "tensor"))

    def spec(shape, **options):
        tree = {"attention": {"query": {"kernel": np.zeros(shape)}}}
        return partition_specs(tree, mesh, **options)["attention"]["query"]["kernel"]

    assert spec((4, 6)) == PartitionSpec("fsdp", "tensor")
    assert spec((5, 6)) == PartitionSpec(None, "tensor")
    assert spec((4, 6), head_size=2) == PartitionSpec("fsdp", None)  # three heads


def test_unknown_axes_and_odd_batches_are_refused():
    one = np.array(jax.devices()[:1])
    with pytest.raises(ValueError, match=r"axes \['model'\]; name them data, fsdp, tensor"):
        partition_specs({}, Mesh(one, ("model",)))
    mesh = Mesh(np.array(jax.devices()[:1] * 2), ("data",))
    with pytest.raises(ValueError, match="3 rows cannot be spread over 2 devices"):
        shard_batch(np.zeros((3, 2)), mesh)
