"""What the tests of the Flax models share: tiny models, and a compiler that is told not to try hard."""

import os

# Read when JAX compiles: tiny models take longer to optimise than to run, and what is emitted by way of MLIR takes
# twice as long to compile.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false"
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


ENDS = [3, 12, 13, 14, 15, 16]  # so many that random models end


@pytest.fixture(scope="session")
def both(tmp_path_factory):
    """A pair with uneven distributions in torch and in Flax, and its folder."""
    sides = [
        tiny_models.config(family, initializer_range=0.7, tie_word_embeddings=False, pad_token_id=1)
        for family in ("bert", "gpt2")
    ]
    ours = tiny_models.pair(*sides, seed=5, spread=0.5)
    for name, parameter in ours.decoder.named_parameters():
        if "embeddings" in name:
            parameter.data *= 3
    ours.config.decoder_start_token_id, ours.config.pad_token_id, ours.config.eos_token_id = 2, 1, ENDS
    folder = tmp_path_factory.mktemp("generates")
    ours.save_pretrained(folder)
    return ours, FlaxEncoderDecoderModel.from_pretrained(folder), folder


@pytest.fixture(scope="session")
def sources():
    """A function that draws sources of different lengths, and their mask."""

    def give(count=28, length=9, seed=0):
        draw = np.random.default_rng(seed)
        ids = draw.integers(4, 37, (count, length))
        mask = np.arange(length) < draw.integers(1, length + 1, (count, 1))
        return np.where(mask, ids, 1), mask.astype(np.int64)

    return give


@pytest.fixture(scope="session")
def trimmed():
    """A function that gives rows without the padding at their ends."""

    def give(sequences, pad=1):
        rows = [list(map(int, row)) for row in sequences]
        for row in rows:
            while row and row[-1] == pad:
                row.pop()
        return rows

    return give
