"""An encoder as one programme of the compiled kernels gives what its modules give."""

import pytest
import torch

from engine_helpers import PROCESSORS, kernels_for
from warmstart import AutoModel, AutoModelForCausalLM, BertConfig, GPT2Config
from warmstart.torch.engine import encoder, native, program


@pytest.fixture(params=[*PROCESSORS])
def kernels(request, monkeypatch):
    """The kernels for some processors."""
    library = kernels_for(request.param)
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


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("size", [5, 20])  # int8 by the kernels' words of four inputs, and not
@pytest.mark.parametrize("lengths", [[1, 3], [40, 7, 21]])
def test_narrow_weights(lengths, size, dtype, kernels, monkeypatch):
    torch.manual_seed(0)
    shape = {"hidden_size": 2 * size, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2}
    model = AutoModel(BertConfig(vocab_size=50, max_position_embeddings=80, initializer_range=0.2, **shape)).eval()
    model = model.to(torch.bfloat16) if dtype == "bfloat16" else model.quantize("int8")
    ids = torch.randint(1, 50, (len(lengths), 40))
    mask = (torch.arange(40) < torch.tensor(lengths)[:, None]).long()
    is_here = dtype == "bfloat16" or bool(native.library().warmstart_has_int8())
    assert program.can_program(model, encodes=True) == (is_here and (dtype == "bfloat16" or size == 20))
    with torch.no_grad():
        ours = encoder.encode(model, ids, mask)[mask.bool()]
        wanted = model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()].float()
    assert (ours - wanted).norm() <= (0.01 if dtype == "bfloat16" or is_here else 0.05) * wanted.norm()


def test_an_encoder_that_looks_back_alone_is_no_programme():
    model = AutoModel(GPT2Config(vocab_size=50, n_embd=8, n_head=2, n_layer=1, n_positions=16))
    assert not program.can_program(model, encodes=True)


@pytest.mark.parametrize("size", [4, 20, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_and_values_stay_where_each_source_has_them(size, dtype, kernels, monkeypatch):
    monkeypatch.setattr(encoder, "_TOGETHER", 20)
    shape = {"hidden_size": 2 * size, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=50, is_decoder=True, add_cross_attention=True, initializer_range=0.2, **shape)
    decoder = AutoModelForCausalLM(config).eval()
    states, mask = torch.randn(4, 15, 2 * size), torch.ones(4, 15)
    mask[1, 4:], mask[2, :9], mask[3, 1:] = 0, 0, 0
    with torch.no_grad():
        for seen in (mask, None):
            pairs = encoder.source_pairs(decoder, states, seen, dtype)
            assert [pair.shape for pair in pairs] == [
                (2, 2, 2, n, size) for n in ([15, 4, 6, 1] if seen is mask else [15] * 4)
            ]
            for pair, own, of in zip(pairs, states, mask if seen is mask else torch.ones_like(mask), strict=True):
                for layer, module in enumerate(decoder.layers):
                    for place, linear in enumerate((module.cross_attention.key, module.cross_attention.value)):
                        wanted = linear(own[of.bool()]).view(-1, 2, size).transpose(0, 1)
                        error = (pair[layer, place].float() - wanted).abs().max()
                        assert error <= (1e-5 if dtype is torch.float32 else 0.01 * wanted.abs().max())
