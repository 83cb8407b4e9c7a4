"""The Flax models against ours in torch (every family) and against the Flax models of `transformers` 4."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import tiny_models
from warmstart import (
    AutoModel,
    AutoModelForCausalLM,
    FlaxAutoModel,
    FlaxAutoModelForCausalLM,
    FlaxAutoModelForMaskedLM,
    FlaxEncoderDecoderModel,
)
from warmstart.checkpoint.flax_files import kind_of
from warmstart.flax import loading
from warmstart.flax.loss import cross_entropy, label_mask

# Each family stands once on each side; every pair compiles once.
PAIRS = [
    ("bert", "gpt2"),
    ("roberta", "bert"),
    ("gpt2", "bart"),
    ("bart", "llama"),
    ("bert-generation", "roberta"),
    ("llama", "mistral"),
    ("mistral", "qwen3"),
    ("qwen2", "bert-generation"),
    ("qwen3", "xlm-roberta"),
    ("xlm-roberta", "camembert"),
    ("camembert", "qwen2"),
]
RELATIVES = [
    ("marian", "blenderbot-small"),
    ("pegasus", "trocr"),
    ("bigbird_pegasus", "xglm"),
    ("mbart", "plbart"),
    ("blenderbot", "mvp"),
    ("mpnet", "t5"),
    ("t5", "mt5"),
]
STATES = (
    "logits",
    "encoder_last_hidden_state",
    "encoder_hidden_states",
    "encoder_attentions",
    "decoder_hidden_states",
    "decoder_attentions",
    "cross_attentions",
)


def test_every_family_stands_on_each_side():
    assert {encoder for encoder, _ in PAIRS} == {decoder for _, decoder in PAIRS} == set(tiny_models.FAMILIES)


def as_arrays(gradients):
    """The gradients of a torch model by our names, as numpy."""
    return {name: value.numpy() for name, value in gradients.items()}


def assert_same_gradients(found, wanted, bound=1e-5):
    """A tree of gradients against a dictionary by our names, whose matrices are turned."""
    found = loading.flat(found)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        value = np.asarray(value)
        value = value.T if name.endswith(".weight") and kind_of(name) == "kernel" else value
        assert np.abs(value - wanted[name]).max() <= bound, name


@pytest.mark.parametrize(("encoder", "decoder"), [*PAIRS, *RELATIVES, *tiny_models.RELATED])
def test_pair_is_the_same_as_in_torch(encoder, decoder, pair, assert_close):
    ours, flax, _ = pair(encoder, decoder)
    inputs = tiny_models.batch(encoder_pad=ours.config.encoder.pad_token_id)
    ours.zero_grad()
    wanted = ours(**inputs, output_attentions=True, output_hidden_states=True)
    wanted.loss.backward()
    ids, mask, labels = (inputs[name].numpy() for name in ("input_ids", "attention_mask", "labels"))

    def loss(params):
        output = flax(
            ids,
            mask,
            flax.prepare_decoder_input_ids_from_labels(labels),
            label_mask(labels),
            params=params,
            output_attentions=True,
            output_hidden_states=True,
        )
        return cross_entropy(output.logits, labels), output

    (value, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(flax.params)
    assert_close(value, wanted.loss, "loss")
    for name in STATES:
        assert_close(found[name], wanted[name], name)
    assert_same_gradients(gradients, as_arrays(tiny_models.gradients(ours)))


@pytest.mark.parametrize("decoder", ["gemma3_text", "gptj", "bloom"])
def test_beams_of_added_cross_attention_are_those_of_torch(decoder, pair):
    """Decoding with a cache: two kinds of rotary positions, neighbours that turn, scores that fall with distance."""
    ours, flax, _ = pair("bert", decoder)
    inputs = tiny_models.batch(encoder_pad=ours.config.encoder.pad_token_id)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    options = {"num_beams": 2, "max_new_tokens": 6}
    wanted = ours.generate(input_ids=ids, attention_mask=mask, **options).numpy()
    found = np.asarray(flax.generate(ids.numpy(), attention_mask=mask.numpy(), **options).sequences)
    assert (found[:, : wanted.shape[1]] == wanted).all() and (found[:, wanted.shape[1] :] == 0).all()


def test_masked_language_model_is_the_same_as_in_torch(tmp_path, assert_close):
    from warmstart import AutoModelForMaskedLM

    ours = tiny_models.spread_out(AutoModelForMaskedLM(tiny_models.config("roberta"))).eval()
    ours.save_pretrained(tmp_path)
    flax = FlaxAutoModelForMaskedLM.from_pretrained(tmp_path)
    ids, mask, _ = tiny_models.batch(encoder_pad=ours.config.pad_token_id).values()
    with torch.no_grad():
        assert_close(flax(ids.numpy(), mask.numpy()).logits, ours(ids, mask).logits, "logits")


def theirs(encoder, decoder):
    """A Flax pair of the reference with weights that matter."""
    layers = {"gpt2": "n_layer", "bart": "decoder_layers"}
    sides = [tiny_models.config(side, **{layers.get(side, "num_hidden_layers"): 1}) for side in (encoder, decoder)]
    sides = [transformers.AutoConfig.for_model(**side.to_dict()) for side in sides]
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*sides)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.FlaxEncoderDecoderModel(config)
    draw = np.random.default_rng(0)
    model.params = jax.tree.map(lambda x: x + 0.2 * draw.standard_normal(x.shape, np.float32), model.params)
    for name, value in {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}.items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)
    return model


@pytest.mark.parametrize(("encoder", "decoder"), [("bert", "gpt2"), ("roberta", "roberta"), ("bert", "bart")])
def test_pair_is_the_same_as_the_reference(encoder, decoder, tmp_path, assert_close, numpy_batch):
    reference = theirs(encoder, decoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.save_pretrained(tmp_path)  # flax_model.msgpack
    ours = FlaxEncoderDecoderModel.from_pretrained(tmp_path)
    batch = numpy_batch(encoder_pad=ours.config.encoder.pad_token_id)
    ids, mask, labels = batch.values()
    targets = np.where(labels == -100, 7, np.maximum(labels, 6))  # the reference's RoBERTa skips padding in targets
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape), np.broadcast_to(np.arange(6), targets.shape)
    if encoder == "roberta":  # the reference counts RoBERTa's positions from 0, ours as it was trained
        offset = ours.config.encoder.pad_token_id + 1
        places = places[0] * mask + offset * mask + (1 - mask) * (offset - 1), places[1] + offset
    states = {"output_attentions": True, "output_hidden_states": True}

    def loss(model, params):
        output = model(ids, mask, targets, None, places[0], places[1], params=params, **states)
        scores = jax.nn.log_softmax(output.logits)
        return (scores * jnp.linspace(-1, 1, scores.shape[-1])).mean(), output

    def both(model):
        return jax.jit(jax.value_and_grad(lambda params: loss(model, params), has_aux=True))(model.params)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (_, wanted), their_gradients = both(reference)
    (_, found), gradients = both(ours)
    for name in STATES:
        if name.endswith(("hidden_states", "state", "logits")):
            assert_close(found[name], wanted[name], name)
    real = mask[:, None, None, :].astype(bool)
    assert_close(
        np.where(real, found.encoder_attentions[0], 0), np.where(real, wanted.encoder_attentions[0], 0), "attention"
    )
    same_names = written_gradients(ours, gradients)
    for path, value in flattened(their_gradients).items():
        if "pooler" not in path:
            assert_close(same_names[path], value, path)


def flattened(tree, before=""):
    found = {}
    for name, value in tree.items():
        path = f"{before}{name}"
        found |= flattened(value, path + "/") if isinstance(value, dict) else {path: np.asarray(value)}
    return found


def written_gradients(model, gradients):
    """Our gradients by the names and axes of the reference's Flax classes: what would be written were they weights."""
    import tempfile
    from pathlib import Path

    import msgpack
    from flax.serialization import msgpack_restore

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, params=gradients, safe_serialization=False)
        data = (Path(folder) / "flax_model.msgpack").read_bytes()
    assert msgpack.unpackb(data, strict_map_key=False)
    return flattened(msgpack_restore(data))


def test_bfloat16_is_close(pair, numpy_batch):
    """Within bf16's tolerance, both as the type of computation and of the parameters."""
    _, flax, folder = pair("bert", "gpt2")
    batch = numpy_batch(encoder_pad=flax.config.encoder.pad_token_id)
    inputs = batch["input_ids"], batch["attention_mask"], np.abs(batch["labels"]) % 30 + 5
    wanted = np.asarray(flax(*inputs).logits)
    half = FlaxEncoderDecoderModel.from_pretrained(folder, dtype=jnp.bfloat16)
    found = half(*inputs, params=half.to_bf16(half.params)).logits
    assert found.dtype == jnp.bfloat16
    assert np.abs(np.asarray(found, np.float32) - wanted).max() < 0.05 * np.abs(wanted).max()


def test_positions_default_to_those_the_family_needs(pair, numpy_batch, assert_close):
    """Padding on the left changes nothing, and RoBERTa counts from its padding id."""
    _, flax, _ = pair("roberta", "bert")
    ids, mask, _ = numpy_batch(encoder_pad=flax.config.encoder.pad_token_id).values()
    left = np.stack([np.concatenate([row[m == 0], row[m > 0]]) for row, m in zip(ids, mask, strict=True)])
    left_mask = np.sort(mask, 1)
    found, wanted = flax.encode(left, left_mask)[0], flax.encode(ids, mask)[0]
    for row, length in enumerate(mask.sum(1)):
        assert_close(found[row, -length:], wanted[row, :length], f"row {row}", 2e-5)


def test_causal_model_reads_one_way_alone_and_both_ways_in_a_pair(tmp_path, assert_close):
    folder = tiny_models.saved(tmp_path / "llama", "llama")
    ours, flax = AutoModel.from_pretrained(folder).eval(), FlaxAutoModel.from_pretrained(folder)
    ids = tiny_models.batch()["input_ids"]
    with torch.no_grad():
        assert_close(flax(ids.numpy()).last_hidden_state, ours(ids).last_hidden_state, "states")
    decoder = tiny_models.saved(tmp_path / "bert", "bert", decoder=True)
    both = FlaxEncoderDecoderModel.from_encoder_decoder_pretrained(folder, decoder)
    assert both.module.encoder_spec.causal is False and flax.module.spec.causal is True


def test_granite_multiplies_vectors_that_are_given_in_place_of_ids(tmp_path, assert_close):
    theirs = AutoModelForCausalLM.from_config(tiny_models.config("granite")).eval()
    theirs.save_pretrained(tmp_path)
    vectors = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    found = FlaxAutoModelForCausalLM.from_pretrained(tmp_path)(inputs_embeds=vectors).logits
    assert_close(found, theirs(inputs_embeds=torch.tensor(vectors)).logits, "logits")
