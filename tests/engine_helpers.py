"""What tests of the engine share."""

import platform

import pytest
import torch

from warmstart.torch.engine import native

# Processors whose kernels are tested, by what runs them: this one, one with AVX2 and no more, an Intel with AVX-512.
PROCESSORS = {"native": "", "x86-64-v3": "avx2", "cascadelake": "avx512_vnni"}


def kernels_for(processor):
    """The kernels for a processor; where this one does not run them, or there is no compiler, the test is skipped."""
    if (needed := PROCESSORS[processor]) and not (platform.machine() in ("x86_64", "AMD64") and needed in _flags()):
        pytest.skip("no processor of this kind")
    if (library := native.load(processor)) is None:
        pytest.skip("no compiler here")
    return library


def _flags():
    return set(native._processor().split())


def difference(ours, theirs):
    """The largest difference of the logits of two results, as a share of the largest logit; tokens are the same."""
    assert torch.equal(ours.sequences, theirs.sequences)
    pairs = list(zip(ours.logits, theirs.logits, strict=True))
    return max(float((x - y).abs().max()) for x, y in pairs) / max(1.0, *(float(y.abs().max()) for _, y in pairs))
