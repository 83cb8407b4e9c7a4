"""What the tests of the Flax models share: tiny models, and a compiler that is told not to try hard."""

import os

# Read when JAX's first computation starts: tiny models take longer to optimise than to run.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import numpy as np
import pytest

import tiny_models
from warmstart import FlaxEncoderDecoderModel

jax.config.update("jax_platforms", "cpu")


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A function that gives a tiny pair in torch and the same in Flax, from its folder; of one layer, but for BERT."""
    made = {}

    def give(encoder="bert", decoder="gpt2"):
        if (encoder, decoder) not in made:
            ours = (tiny_models.pair if encoder == "bert" else tiny_models.shallow)(encoder, decoder)
            folder = tmp_path_factory.mktemp(f"{encoder}-{decoder}")
            ours.save_pretrained(folder)
            made[encoder, decoder] = ours, FlaxEncoderDecoderModel.from_pretrained(folder), folder
        return made[encoder, decoder]

    return give


@pytest.fixture(scope="session")
def numpy_batch():
    """A function that gives the tensors of a tiny batch as numpy arrays."""

    def give(**options):
        return {name: value.numpy() for name, value in tiny_models.batch(**options).items()}

    return give


@pytest.fixture(scope="session")
def assert_close():
    """A function that compares arrays, or tuples of them, of any framework."""

    def check(found, wanted, what, bound=1e-5):
        if isinstance(wanted, (tuple, list)):
            assert len(found) == len(wanted), what
            for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
                check(one, other, f"{what}[{index}]", bound)
            return
        found, wanted = (np.asarray(x.detach() if hasattr(x, "detach") else x) for x in (found, wanted))
        assert found.shape == wanted.shape, what
        error = float(np.abs(found - wanted).max())
        assert error <= bound, f"{what}: differs by {error:.1e}"

    return check
