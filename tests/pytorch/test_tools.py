"""What people do to modules works on these: adapters, quantisation, copies, devices, types, hooks."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from tiny_models import FAMILIES, assert_equal_gradients, batch, config, generated, gradients, pair, trained
from warmstart import AutoModel, AutoModelForCausalLM, EncoderDecoderModel

BOUND = {"rtol": 0, "atol": 1e-6}


@pytest.fixture
def inputs():
    return batch()


# Adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def lora():
    peft = pytest.importorskip("peft")

    def wrap(model, **options):
        settings = {"target_modules": ["query", "value"], "r": 2, "lora_dropout": 0.0, **options}
        return peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **settings))

    return wrap


def test_adapters_train_save_load_and_merge(tmp_path, inputs, lora):
    import peft

    before = pair("bert", "gpt2").state_dict()
    model = lora(pair("bert", "gpt2"))
    assert model.get_nb_trainable_parameters()[0] == 2 * (2 * 2 * 2 * 16 + 2 * (2 * 2 * 2 * 12))
    losses = trained(model, inputs, steps=5)
    assert losses[-1] < losses[0] - 0.1
    for name, value in model.get_base_model().state_dict().items():
        if "lora_" not in name:
            assert torch.equal(value, before[name.replace(".base_layer", "")]), name
    expected, tokens = model(**inputs).logits, generated(model, inputs)

    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(pair("bert", "gpt2"), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(**inputs).logits, expected, **BOUND)
    assert torch.equal(generated(again, inputs), tokens)

    merged = again.merge_and_unload()
    assert type(merged) is EncoderDecoderModel
    torch.testing.assert_close(merged(**inputs).logits, expected, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    loaded = EncoderDecoderModel.from_pretrained(tmp_path / "merged")
    assert torch.equal(loaded(**inputs).logits, merged(**inputs).logits)
    assert torch.equal(generated(loaded, inputs), tokens)


def test_adapters_with_gradient_checkpointing(inputs, lora):
    """The adapters' gradients arrive although the embeddings, where the graph begins, are frozen."""
    expected = lora(pair("bert", "bert"))
    expected.train()(**inputs).loss.backward()
    model = lora(pair("bert", "bert"))
    model.load_state_dict(expected.state_dict())
    model.gradient_checkpointing_enable()
    model.train()(**inputs).loss.backward()
    pairs = zip(expected.named_parameters(), model.named_parameters(), strict=True)
    compared = [(a.grad - b.grad).abs().max() for (_, a), (_, b) in pairs if a.grad is not None]
    assert len(compared) == 2 * 2 * 2 * 3 and max(compared) < 1e-6


# Quantisation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_quantised_model_runs_and_stays_close(name, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's kernels for other machines
        quantization = pytest.importorskip("torchao.quantization")
    model = pair("bert", "llama", spread=0.1)
    expected, tokens = model(**inputs), generated(model, inputs)
    weights = sum(p.numel() for m in model.modules() if isinstance(m, nn.Linear) for p in [m.weight])
    quantization.quantize_(model, getattr(quantization, name)())
    kept = [m for m in model.modules() if isinstance(m, nn.Linear) and type(m.weight.data) is torch.Tensor]
    assert weights > 0 and not kept, "some linear layer was not quantised"
    output = model(**inputs)
    assert (output.logits - expected.logits).abs().max() < 0.05 * expected.logits.abs().max()
    assert 0 < (output.loss - expected.loss).abs() < 0.01
    assert generated(model, inputs).shape[0] == tokens.shape[0]
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(**inputs).logits, model(**inputs).logits)


# Copies -----------------------------------------------------------------------------------------------------------


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_torch_save])
@pytest.mark.parametrize("fields", [{}, {"tie_encoder_decoder": True}])
def test_copies_are_whole_and_apart(copied, fields, inputs):
    model = pair("bert", "bert", **fields)
    model.config.num_beams = 3
    twin = copied(model)
    assert torch.equal(twin(**inputs).logits, model(**inputs).logits)
    assert twin.num_parameters() == model.num_parameters()  # what is tied stays tied
    assert twin.generation_config is twin.config.generation_config and twin.config.num_beams == 3
    twin.config.num_beams, twin.config.decoder.vocab_size = 1, 5
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert model.config.num_beams == 3 and model.config.decoder.vocab_size == 37
    assert next(model.parameters()).abs().max() > 0


@pytest.mark.parametrize("decoder", ["gpt2", "llama", "roberta"])
def test_state_dict(tmp_path, decoder, inputs):
    model, other = pair("bert", decoder, seed=1), pair("bert", decoder, seed=2)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other(**inputs).logits, model(**inputs).logits)
    assert other.decoder.head.output.weight is other.decoder.embeddings.token.weight or decoder == "llama"
    with torch.device("meta"):
        empty = EncoderDecoderModel(config=model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    empty.tie_weights()
    assert torch.equal(empty.eval()(**inputs).logits, model(**inputs).logits)


# Devices and types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_meta_device_takes_no_memory(family):
    large = {"gpt2": "n_embd", "bart": "d_model"}.get(family, "hidden_size")
    with torch.device("meta"):
        model = EncoderDecoderModel(config=pair(family, family).config)
        huge = AutoModel(config(family, **{large: 2**16}))  # 15 GB and more
    assert {p.device.type for p in [*model.parameters(), *huge.parameters()]} == {"meta"}
    ids = torch.ones(2, 5, dtype=torch.long, device="meta")
    output = model(input_ids=ids, attention_mask=ids, labels=ids)
    assert output.logits.shape == (2, 5, 37) and output.logits.device.type == "meta"


@pytest.mark.parametrize("decoder", ["roberta", "llama"])
def test_meta_model_becomes_real(decoder, inputs):
    """`to_empty` and `init_weights`, as tools that shard large models do it."""
    with torch.device("meta"):
        model = EncoderDecoderModel(config=pair("bert", decoder).config)
    model.to_empty(device="cpu")
    torch.manual_seed(3)
    model.init_weights()
    torch.manual_seed(3)
    expected = EncoderDecoderModel(config=model.config)
    assert torch.equal(model.eval()(**inputs).logits, expected.eval()(**inputs).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("decoder", ["gpt2", "llama", "bart"])
def test_other_types(dtype, decoder, inputs):
    model = pair("bert", decoder, spread=0.1)
    expected = model(**inputs)
    tokens = generated(model, inputs)
    model = model.to(dtype)
    assert model.dtype == dtype
    output = model(**inputs)
    assert output.logits.dtype == dtype and output.loss.dtype == (dtype if dtype == torch.float64 else torch.float32)
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.01, torch.float64: 1e-5}[dtype]
    torch.testing.assert_close(output.logits.float(), expected.logits, rtol=0, atol=tolerance)
    output.loss.backward()
    again = generated(model, inputs)
    assert again.shape[0] == 3 and (dtype != torch.float64 or torch.equal(again, tokens))


def test_rotary_positions_stay_exact_in_half_precision():
    """Angles are computed in fp32: at position 2,000, bfloat16 cannot tell neighbours apart."""
    model = AutoModelForCausalLM(config("llama", max_position_embeddings=4096)).eval()
    before = model.frequencies.clone()
    model = model.to(torch.bfloat16).to(torch.float32)
    torch.testing.assert_close(model.frequencies, before, rtol=0, atol=0)


def test_default_type(inputs):
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = EncoderDecoderModel(config=pair("bert", "gpt2").config)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(**inputs).loss.dtype == torch.float32


@pytest.mark.parametrize("decoder", ["bert", "gpt2", "llama"])
def test_autocast(decoder, inputs):
    model = pair("bert", decoder, spread=0.1)
    expected = model(**inputs)
    expected.loss.backward()
    wanted = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs)
        assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
        tokens = generated(model, inputs)
    output.loss.backward()
    assert tokens.shape[0] == 3
    assert 0 < (output.loss - expected.loss).abs() < 0.02
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32
        assert (gradient - wanted[name]).norm() <= 0.1 * wanted[name].norm() + 0.01, name


# Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoder", "decoder"), [("bert", "gpt2"), ("gpt2", "llama"), ("roberta", "bart")])
def test_gradient_checkpointing_changes_no_gradient(encoder, decoder, inputs):
    model = pair(encoder, decoder).train()
    model(**inputs).loss.backward()
    wanted = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    calls = []
    model.decoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    output = model(**inputs)
    output.loss.backward()
    assert len(calls) == 2, "the layer was not computed again"
    assert output.past_key_values is None
    assert_equal_gradients(gradients(model), wanted, 1e-6)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    model(**inputs)
    assert len(calls) == 3


def test_gradient_checkpointing_draws_the_same_dropout_again(inputs):
    """Gradients are of the forward pass that was made, dropout included."""
    fields = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    model = pair(config("bert", **fields), config("bert", **fields)).train()
    found = []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        model.zero_grad()
        torch.manual_seed(4)
        model(**inputs).loss.backward()
        found.append(gradients(model))
    assert_equal_gradients(*found, 1e-6)


def test_hooks_see_every_layer(inputs):
    model = pair("bert", "gpt2")
    seen = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.add(name))
    model(**inputs)
    lists = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    assert {name for name, _ in model.named_modules()} - seen == lists


def test_hook_on_a_projection_changes_the_output(inputs):
    """Leaves are real `nn.Linear`, called as modules: whatever is hung on them takes effect."""
    model = pair("bert", "gpt2")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            before = model(**inputs).logits
            handle = module.register_forward_hook(lambda module, arguments, output: output * 1.5 + 0.1)
            assert not torch.equal(model(**inputs).logits, before), name
            handle.remove()
            assert torch.equal(model(**inputs).logits, before), name


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own attention under vmap
def test_functional_call_and_per_sample_gradients(inputs):
    """`torch.func` takes the model: the gradient of each row, by vmap."""
    model = pair("bert", "gpt2")
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, ids, mask, labels):
        row = {"input_ids": ids[None], "attention_mask": mask[None], "labels": labels[None]}
        return torch.func.functional_call(model, parameters, (), row).loss

    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0, 0))(parameters, *inputs.values())
    model(**{name: value[2:] for name, value in inputs.items()}).loss.backward()
    assert_equal_gradients({name: value[2] for name, value in found.items()}, gradients(model))
