import pytest

from warmstart.torch import runner
from warmstart.torch.engine import native


@pytest.fixture(params=["compiled", "torch"])
def kernels(request, monkeypatch):
    """Both ways in which the engine computes."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no compiler here")
    return request.param


@pytest.fixture
def by_modules(monkeypatch):
    """Run something through the modules alone."""

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(runner, "can_run", lambda *arguments: False)
            patch.setattr(runner, "is_plain", lambda *arguments: False)
            return function()

    return run
