"""Pairs of the same weights, ours in torch and in TensorFlow; each is made once."""

import functools
import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # for the reference: its classes stand on Keras 2, ours on Keras 3

import numpy as np
import pytest
import tensorflow as tf

import tiny_models
from warmstart import TFEncoderDecoderModel

# XLA keeps the flags it finds when it compiles first. Those of the tests of Flax make programmes that no user has.
with pytest.MonkeyPatch.context() as patch:
    patch.delenv("XLA_FLAGS", raising=False)
    tf.function(lambda x: x + 1, jit_compile=True)(1)


@pytest.fixture(scope="session")
def zoo():
    """This module: tests are no package, so what they share comes as a fixture."""
    return sys.modules[__name__]


@functools.cache
def pair(encoder, decoder, spread=0.2):
    """The model in torch and in TensorFlow, by way of its files."""
    model = tiny_models.pair(encoder, decoder, spread=spread)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return model, TFEncoderDecoderModel.from_pretrained(folder)


def arrays(batch):
    """A batch of torch as arrays."""
    return {name: value.numpy() for name, value in batch.items()}


def shallow_folder(folder, encoder="bert", decoder="gpt2"):
    """A folder with a pair of one layer on each side, for what traces long."""
    tiny_models.shallow(encoder, decoder).save_pretrained(folder)
    return str(folder)


def assert_close(ours, theirs, what, bound=1e-5):
    """Tensors of both frameworks, or tuples of them, equal within the bound."""
    if isinstance(theirs, (tuple, list)):
        assert len(ours) == len(theirs), what
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other, what, bound)
        return
    other = theirs.detach().numpy() if hasattr(theirs, "detach") else np.asarray(theirs)
    one = np.asarray(tf.convert_to_tensor(ours))
    assert one.shape == other.shape, f"{what}: {one.shape} against {other.shape}"
    error = np.abs(one - other).max()
    assert error <= bound, f"{what}: differs by {error:.1e}"
