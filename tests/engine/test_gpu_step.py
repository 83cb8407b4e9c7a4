"""The kernels of a step on a GPU give what the modules give: where there is no GPU, in Triton's interpreter.

That takes seconds for a step, so that a few steps must do here; on a GPU the tests of `test_fixed` run them for real.
"""

import warnings

import pytest
import torch

pytest.importorskip("triton")

from tiny_models import FIRST, VOCABULARY, pair
from warmstart.torch.engine import gpu_step
from warmstart.torch.engine.fixed import Space
from warmstart.torch.engine.gpu_step import GpuStep

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


SIDES = [("bert", "bert"), ("bert", "gpt2"), ("bert", "qwen3"), ("bert", "mistral")]
OTHERS = [
    ("bert", "llama"),
    ("bert", "gemma"),
    ("bert", "bart"),
    ("bert", "roberta"),
    ("bert", "opt"),
    ("bert", "starcoder2"),
]


@pytest.mark.parametrize("sides", SIDES, ids="-".join)
@pytest.mark.parametrize(("sources", "each", "news"), [(1, 1, [1, 1, 1]), (2, 3, [1, 1, 1]), (2, 1, [3, 2])], ids=str)
def test_steps_are_the_modules(sides, sources, each, news):
    compare(pair(*sides).to(DEVICE), sources, each, news)


@pytest.mark.parametrize("sides", OTHERS, ids="-".join)
def test_other_families(sides):
    compare(pair(*sides).to(DEVICE), 2, 1, [1, 1])


@pytest.mark.parametrize(("sources", "each", "new"), [(3, 2, 3), (2, 1, 1)], ids=["many", "few"])
@pytest.mark.parametrize("sides", SIDES[1:3], ids="-".join)
def test_half_precision(sides, sources, each, new):
    """As near to the model in float32 as its modules are in float16 (bfloat16 is not interpreted)."""
    exact, model = pair(*sides).to(DEVICE), pair(*sides).to(DEVICE, torch.float16)
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(FIRST, VOCABULARY, (sources * each, new), generator=draw).to(DEVICE)
    with torch.no_grad():
        (ideal, _), (theirs, ours) = (
            [space.logits(of.decoder, ids, new) for space in spaces(of, sources, each, next(of.parameters()).dtype)]
            for of in (exact, model)
        )
    assert (ours - ideal).abs().mean() <= 1.1 * (theirs - ideal).abs().mean()


def test_a_kernel_that_cannot_be_built_leaves_the_step_to_the_modules(monkeypatch):
    import triton

    def fail(*arguments):
        raise triton.TritonError("out of resource: shared memory")

    model = pair("bert", "bert").to(DEVICE)
    theirs, ours = spaces(model, 2, 1)
    monkeypatch.setattr(ours.fused, "_own", fail)
    ids = torch.full((2, 1), FIRST, device=DEVICE)
    with torch.no_grad(), pytest.warns(UserWarning, match="shared memory"):
        assert (ours.logits(model.decoder, ids, 1) - theirs.logits(model.decoder, ids, 1)).abs().max() <= 1e-5
    with torch.no_grad(), warnings.catch_warnings(action="error"):
        assert (ours.logits(model.decoder, ids, 2) - theirs.logits(model.decoder, ids, 2)).abs().max() <= 1e-5
