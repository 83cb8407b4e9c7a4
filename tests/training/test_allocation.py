"""Freed memory stays the process's own while a training runs, and no longer."""

import platform
import resource

import pytest
import torch

from warmstart.training.allocation import keep_memory


def faults():
    """Pages that the system had to give for one large tensor."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_pages_are_asked_for_once(monkeypatch):
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)
    usual = faults()
    try:
        keep_memory(True)
        faults()
        assert faults() < usual / 10
    finally:
        keep_memory(False)
    assert faults() > usual / 2
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    keep_memory(True)
    assert faults() > usual / 2
