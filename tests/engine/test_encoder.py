"""An encoder as one programme of the compiled kernels gives what its modules give."""

import platform

import pytest
import torch

from warmstart import AutoModel, BertConfig, GPT2Config
from warmstart.torch.engine import encoder, native, program


@pytest.fixture(params=["native", "x86-64-v3"])
def kernels(request, monkeypatch):
    """The kernels for this processor, and those for one with AVX2 and no more."""
    if platform.machine() not in ("x86_64", "AMD64") or (library := native.load(request.param)) is None:
        pytest.skip("no compiler here")
    monkeypatch.setattr(native, "library", lambda: library)


@pytest.mark.parametrize("size", [4, 20, 64])
@pytest.mark.parametrize("together", [1, 100, 1000])
def test_sources_of_any_length(size, together, kernels, monkeypatch):
    monkeypatch.setattr(encoder, "_TOGETHER", together)
    torch.manual_seed(0)
    shape = {"hidden_size": 2 * size, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2}
    model = AutoModel(BertConfig(vocab_size=50, max_position_embeddings=80, initializer_range=0.2, **shape)).eval()
    ids = torch.randint(1, 50, (7, 70))
    mask = torch.ones_like(ids)
    for row, length in enumerate([1, 12, 13, 31, 32, 70, 65]):
        mask[row, length:] = 0
    mask[5, :3] = 0  # padding may stand before, and inside
    mask[6, 10:20] = 0
    assert program.can_program(model, encodes=True)
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask).last_hidden_state
        ours = encoder.encode(model, ids, mask)
        assert (ours - wanted)[mask.bool()].abs().max() <= 1e-5
        assert ours[~mask.bool()].abs().max() == 0
        whole = model(input_ids=ids[:2]).last_hidden_state
        assert (encoder.encode(model, ids[:2], None) - whole).abs().max() <= 1e-5


def test_an_encoder_that_looks_back_alone_is_no_programme():
    model = AutoModel(GPT2Config(vocab_size=50, n_embd=8, n_head=2, n_layer=1, n_positions=16))
    assert not program.can_program(model, encodes=True)
