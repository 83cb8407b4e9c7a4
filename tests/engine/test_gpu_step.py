"""The kernels of a step on a GPU give what the modules give: interpreted where there is no GPU, by Triton's interpreter.

That takes seconds for a step, so that a few steps must do here; on a GPU the tests of `test_fixed` run them for real.
"""

import pytest
import torch

pytest.importorskip("triton")

from tiny_models import FIRST, VOCABULARY, config, pair
from warmstart.torch.engine import gpu_step
from warmstart.torch.engine.fixed import Space
from warmstart.torch.engine.gpu_step import GpuStep, can_fuse

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [7, 4, 5]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Let kernels run where there is no GPU: in few programmes, and without looking at the language at every call."""
    if DEVICE == "cuda":
        return
    from triton.runtime import interpreter

    usual = interpreter.InterpretedFunction.__call__

    def call(self, *arguments, **options):
        if self.fn.__module__.startswith("warmstart"):
            return self.rewrite()(*arguments, **options)
        return usual(self, *arguments, **options)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
    monkeypatch.setattr(gpu_step, "_FILL", 4)


def spaces(model, sources, each, dtype=torch.float32):
    """Buffers with sources of different lengths, for the modules and for the kernels."""
    heads, draw = model.decoder.spec.cross_attention, torch.Generator().manual_seed(0)
    lengths = LENGTHS[:sources]
    seen = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(DEVICE)
    seen[0, 1] = False  # a hole
    shape = sources, heads.key_value_heads, max(lengths), heads.head_size
    pairs = [
        tuple(torch.randn(shape, generator=draw).to(DEVICE, dtype) for _ in range(2))
        for _ in range(model.decoder.spec.layers)
    ]
    made = [Space(model.decoder, sources, each, 20, 7, fused=fused) for fused in (None, GpuStep(model.decoder))]
    for space in made:
        space.join([(slice(sources), pairs)], seen, lengths)
    return made


def compare(model, sources, each, news, atol=2e-5, dtype=torch.float32):
    """Steps with so many new tokens each; between them rows become others of their source, or forget tokens."""
    draw, made, length = torch.Generator().manual_seed(1), spaces(model, sources, each, dtype), 0
    rows = sources * each
    with torch.no_grad():
        for number, new in enumerate(news):
            ids, length = torch.randint(FIRST, VOCABULARY, (rows, new), generator=draw).to(DEVICE), length + new
            theirs, ours = (space.logits(model.decoder, ids, length) for space in made)
            assert torch.isfinite(ours).all()
            assert (theirs - ours).abs().max() <= atol * max(1.0, float(theirs.abs().max()))
            moved = torch.randint(each, (sources, each), generator=draw) + torch.arange(sources)[:, None] * each
            for space in made:
                space.take(moved.flatten().to(DEVICE))
                if new > 1:
                    space.crop(length - number % new)
            length -= number % new if new > 1 else 0


@pytest.mark.parametrize("sides", [("bert", "bert"), ("bert", "gpt2"), ("bert", "qwen3"), ("bert", "mistral")], ids="-".join)
@pytest.mark.parametrize(("sources", "each", "news"), [(1, 1, [1, 1, 1]), (2, 3, [1, 1, 1]), (2, 1, [3, 2])], ids=str)
def test_steps_are_the_modules(sides, sources, each, news):
    compare(pair(*sides).to(DEVICE), sources, each, news)
