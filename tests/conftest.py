"""What holds for every test: no hub is asked, two workers do not fight for the cores, no GPU is no failure, and a run
draws what every other run draws, whichever worker a test falls to."""

import atexit
import gc
import os
import sys

# Set before any library that reads them is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not os.path.exists("/dev/nvidia0"):  # the kernels for GPUs are interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

from importlib.metadata import version
from importlib.util import find_spec

import hypothesis
import pytest

if find_spec("triton"):  # its library ends the process where TensorFlow's was loaded before it
    import triton  # noqa: F401

hypothesis.settings.register_profile("same in every run", derandomize=True)
hypothesis.settings.load_profile("same in every run")

# What is left out where a package is missing, as in the environment of the tests against transformers 5.
_NEEDED = {"linen": "jax", "tf": "tensorflow", "training/test_measure.py": "sacrebleu"}
collect_ignore = [path for path, package in _NEEDED.items() if find_spec(package) is None]
if not version("transformers").startswith("4."):
    collect_ignore.append("search_reference.py")  # it drives classes that version 4 alone has


def pytest_collection_finish():
    """What all tests need stays: each collection of garbage would look at the frameworks' millions of objects again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session):
    """A worker ends at once: pytest would look for garbage five more times among all that the libraries hold, and they
    would take it down piece by piece. One that needs more than ten seconds is killed, and that may fail the run.
    """
    gc.collect()
    if hasattr(session.config, "workerinput"):
        gc.freeze()
        atexit.register(os._exit, 0)
    else:
        gc.unfreeze()


def pytest_collection_modifyitems(items):
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    torch = sys.modules.get("torch")
    if torch:  # which tests ran before in this worker decides nothing
        torch.manual_seed(0)


@pytest.fixture(params=["compiled", "torch"])
def kernels(request, monkeypatch):
    """With the compiled kernels, and without."""
    from warmstart.torch.engine import native

    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no compiler here")
    return request.param
