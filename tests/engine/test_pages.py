"""Keys and values lie in pages that the system has back when they are given up."""

import sys
from pathlib import Path

import pytest
import torch

from warmstart import AutoModelForCausalLM, BertConfig
from warmstart.torch.engine import memory, native
from warmstart.torch.engine.pages import fresh, give_back

linux = pytest.mark.skipif(sys.platform != "linux", reason="pages are counted in /proc, and given back on Linux")
MEGABYTES = 64


def resident() -> float:
    """Megabytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


@pytest.mark.parametrize("shape", [(), (3,), (0, 5), (7, 1000, 1000), (2, 3, 300_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_tensor_is_as_any_other(shape, dtype):
    x = fresh(shape, dtype)
    assert x.shape == shape and x.dtype is dtype and x.is_contiguous() and not x.any()
    x += 1
    assert bool((x == 1).all()) and not fresh(shape, dtype).any()


@linux
def test_pages_are_claimed_when_written_and_go_with_the_tensor():
    before = resident()
    x = fresh((MEGABYTES, 1 << 18), torch.float32)
    view = x[1:]
    assert resident() - before < MEGABYTES / 4
    x.fill_(1)
    assert resident() - before > MEGABYTES * 3 / 4
    del x
    assert bool((view == 1).all())  # a view holds them
    del view
    assert resident() - before < MEGABYTES / 4


@linux
def test_older_ones_go_while_newer_ones_stay():
    def eight():
        return [fresh((1 << 21,), torch.float32).fill_(1) for _ in range(8)]  # 8 megabytes each

    eight()  # malloc would keep them for others of their size
    before = resident()
    last = eight()[-1]
    assert 4 < resident() - before < 24 and bool((last == 1).all())


@linux
def test_a_part_is_given_back_and_nothing_beside_it():
    x = fresh((3, MEGABYTES, 1 << 18), torch.float32).fill_(1)
    before = resident()
    give_back(x[1, :, 100:].flatten()[:5])  # less than a page: nothing to give
    assert bool((x == 1).all())
    give_back(x[1])
    assert before - resident() > MEGABYTES * 3 / 4
    assert bool((x[0] == 1).all()) and bool((x[2] == 1).all())
    odd = x.flatten()[1000 : 1 << 20]  # begins inside a page, which stays
    give_back(odd)
    assert bool((x.flatten()[:1024] == 1).all()) and not x.flatten()[1024 : 1 << 20].any()


@linux
@pytest.mark.skipif(native.library() is None, reason="no compiler here")
def test_a_memory_holds_what_its_sources_hold():
    size = {"vocab_size": 9, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(**size, intermediate_size=8, is_decoder=True, add_cross_attention=True)
    of = memory.NativeMemory(native.library(), AutoModelForCausalLM(config).spec, 8, 4096, torch.float32)
    before = resident()
    pair = (2, 2, 4, 4096, 64)  # 16 megabytes
    of.join([fresh(pair, torch.float32).fill_(1) for _ in range(8)], 1)
    for part in of.keys + of.values:
        part.fill_(1)
    assert 200 < resident() - before < 300
    of.take(torch.tensor([2]), torch.tensor([2]))
    assert resident() - before < 60
    assert all(bool((part[of.slots.long()] == 1).all()) for part in of.keys + of.values)
    assert bool((of.pairs[0] == 1).all())
