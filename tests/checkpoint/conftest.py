"""What holds for the tests of this folder."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """A save has its files on disk before it goes on, which takes milliseconds for each."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
