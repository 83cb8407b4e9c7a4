"""Freed memory stays the process's own while a training runs, and no longer."""

import json
import os
import platform
import subprocess
import sys

import pytest

# A process of its own, for the heap of one that ran other tests has pieces of all sizes: pages that the system had to
# give for some tensors, as usual, while memory is kept, and after that.
SCRIPT = """
import json, resource, torch
from warmstart.training.allocation import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**22) for _ in range(8)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
counts = [faults()]
keep_memory(True)
for _ in range(40):  # the C library takes some pieces of that size before it finds one again
    faults()
counts.append(faults())
keep_memory(False)
counts.append(faults())
print(json.dumps(counts))
"""


def counts(**variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_pages_are_asked_for_once():
    usual, kept, after = counts()
    assert kept < usual / 10
    assert after > usual / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_the_environment_says_holds():
    usual, kept, _ = counts(MALLOC_MMAP_MAX_="65536")
    assert kept > usual / 2
