import pytest

from warmstart.torch import runner


@pytest.fixture
def by_modules(monkeypatch):
    """Run something through the modules alone."""

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(runner, "can_run", lambda *arguments: False)
            patch.setattr(runner, "is_plain", lambda *arguments: False)
            return function()

    return run
