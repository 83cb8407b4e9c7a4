"""Run by `test_sharding.py` with 8 devices of the host: a step of training and `generate`, on meshes and on one device.

Prints, for each mesh, the largest difference of the loss, of a parameter after a step, and whether tokens are equal.
"""

import json
import sys

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from warmstart import FlaxEncoderDecoderModel
from warmstart.flax.loss import cross_entropy, label_mask
from warmstart.flax.partitioning import shard, shard_batch, shardings

MESHES = {
    "tensor": {"tensor": 8},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
}


def furthest(found, wanted):
    return max(
        float(abs(np.asarray(x) - np.asarray(y)).max())
        for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True)
    )


def main(folder):
    model = FlaxEncoderDecoderModel.from_pretrained(folder)
    draw = np.random.default_rng(0)
    ids = draw.integers(5, 40, (8, 7))
    mask = (np.arange(7) < draw.integers(2, 8, (8, 1))).astype(np.int32)
    labels = np.where(np.arange(5) < draw.integers(1, 6, (8, 1)), draw.integers(5, 40, (8, 5)), -100)
    batch = {"ids": np.where(mask, ids, 0), "mask": mask, "labels": labels}
    optimizer = optax.sgd(1.0)

    @jax.jit
    def step(params, batch):
        def loss(params):
            labels = batch["labels"]
            inputs = model.prepare_decoder_input_ids_from_labels(labels)
            output = model(batch["ids"], batch["mask"], inputs, label_mask(labels), params=params)
            return cross_entropy(output.logits, labels)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, _ = optimizer.update(gradients, optimizer.init(params))
        return value, optax.apply_updates(params, updates)

    def generated(params, batch):
        found = model.generate(batch["ids"], attention_mask=batch["mask"], params=params, num_beams=2, max_length=6)
        return np.asarray(found.sequences).tolist()

    assert jax.device_count() == 8
    loss, stepped = step(model.params, batch)
    tokens = generated(model.params, batch)
    report = {}
    for name, axes in MESHES.items():
        mesh = Mesh(np.array(jax.devices()).reshape(*axes.values()), tuple(axes))
        params, spread = shard(model, mesh), shard_batch(batch, mesh)
        whole = sum(x.nbytes for x in jax.tree.leaves(params))
        here = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
        found, moved = step(params, spread)
        moved = jax.device_put(moved, shardings(model, mesh))
        report[name] = {
            "share": here / whole,
            "loss": abs(float(found) - float(loss)),
            "step": furthest(moved, stepped),
            "tokens": generated(params, spread) == tokens,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
