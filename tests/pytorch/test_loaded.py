"""Models straight from a file, whose weights may be views of it or stand column by column, take the same tools."""

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load, save

from tiny_models import assert_equal_gradients, batch, generated, gradients, pair, trained
from warmstart import EncoderDecoderModel

PAIRS = [("gpt2", "gpt2"), ("bert", "llama")]


@pytest.fixture(params=PAIRS, ids="-".join)
def folder(request, tmp_path):
    pair(*request.param).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def loaded(folder):
    return EncoderDecoderModel.from_pretrained(folder)


@pytest.fixture
def made(loaded):
    """The same weights in a model that was made, not loaded."""
    model = EncoderDecoderModel(config=copy.deepcopy(loaded.config))
    model.load_state_dict(loaded.state_dict())
    return model.eval()


def test_forward_backward_and_a_step(loaded, made, folder):
    inputs = batch()
    before = (folder / "model.safetensors").read_bytes()
    for model in (loaded, made):
        model.train()
        model(**inputs).loss.backward()
        torch.optim.AdamW(model.parameters(), 0.1).step()
    assert_equal_gradients(gradients(loaded), gradients(made), 1e-6)
    for (name, one), (_, other) in zip(loaded.named_parameters(), made.named_parameters(), strict=True):
        if other.grad.abs().max() > 1e-5:  # elsewhere Adam divides noise by noise
            torch.testing.assert_close(one, other, rtol=0, atol=1e-3, msg=name)
    assert (folder / "model.safetensors").read_bytes() == before, "training wrote into the checkpoint"
    again = EncoderDecoderModel.from_pretrained(folder)
    assert not torch.equal(again(**inputs).logits, loaded.eval()(**inputs).logits)


def test_gradients_in_eval_mode_too(loaded, made):
    for model in (loaded, made):
        model(**batch()).loss.backward()
    assert_equal_gradients(gradients(loaded), gradients(made), 1e-6)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "safetensors"])
def test_copies(loaded, way):
    inputs, size = batch(), sum(4 * value.numel() for value in loaded.state_dict().values())
    if way == "deepcopy":
        twin = copy.deepcopy(loaded)
    elif way == "pickle":
        written = pickle.dumps(loaded)
        assert len(written) < 3 * size + 100_000
        twin = pickle.loads(written)
    elif way == "torch.save":
        buffer = io.BytesIO()
        torch.save(loaded.state_dict(), buffer)
        assert buffer.tell() < 2 * size + 100_000, "the file holds more than the weights"
        buffer.seek(0)
        twin = EncoderDecoderModel(config=loaded.config).eval()
        twin.load_state_dict(torch.load(buffer, weights_only=True))
    else:
        twin = EncoderDecoderModel(config=loaded.config).eval()
        kept = {name: value.contiguous() for name, value in loaded.state_dict().items()}
        kept.pop("decoder.head.output.weight") if twin.decoder.spec.head.tied else None
        twin.load_state_dict(load(save(kept)), strict=False)
    torch.testing.assert_close(twin(**inputs).logits, loaded(**inputs).logits, rtol=0, atol=1e-6)


def test_adapters(loaded, made, tmp_path):
    peft = pytest.importorskip("peft")
    inputs, settings = batch(), {"target_modules": ["query", "value", "down"], "r": 2, "lora_dropout": 0.0}
    losses = []
    for model in (loaded, made):
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **settings))
        losses.append(trained(wrapped, inputs, 3))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and losses[0][-1] < losses[0][0]
    expected = wrapped(**inputs).logits
    torch.testing.assert_close(wrapped.merge_and_unload()(**inputs).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torchao's kernels for other machines
def test_quantisation(loaded, made):
    quantization = pytest.importorskip("torchao.quantization")
    inputs = batch()
    for model in (loaded, made):
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    torch.testing.assert_close(loaded(**inputs).logits, made(**inputs).logits, rtol=0, atol=1e-5)
    assert torch.equal(generated(loaded, inputs), generated(made, inputs))


def test_types_and_surgery(loaded, made):
    for model in (loaded, made):
        model.resize_token_embeddings(50, side="decoder")
        if not model.decoder.spec.attention.rotary:
            model.prune_heads({0: [1]})
            model.prune_heads({1: [0]}, side="decoder")
        model.to(torch.float64)
    torch.testing.assert_close(loaded(**batch()).logits, made(**batch()).logits, rtol=0, atol=1e-12)


def test_compiled(loaded, made):
    torch._dynamo.reset()
    compiled = torch.compile(loaded, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**batch()).logits, made(**batch()).logits, rtol=0, atol=1e-6)
    torch._dynamo.reset()
