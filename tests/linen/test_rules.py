"""The models play by JAX's rules: transformations, trees, optimizers, checkpoints; and refuse what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

import tiny_models
from warmstart import (
    EncoderDecoderConfig,
    FlaxAutoModel,
    FlaxBertModel,
    FlaxEncoderDecoderModel,
    FlaxSeq2SeqLMOutput,
)
from warmstart.flax import loading
from warmstart.flax.loss import cross_entropy, label_mask, shift_labels


@pytest.fixture(scope="module")
def model():
    """A random pair with dropout, one layer on each side."""
    sides = [
        tiny_models.config("bert", num_hidden_layers=1, hidden_dropout_prob=0.1),
        tiny_models.config("gpt2", n_layer=1, resid_pdrop=0.1),
    ]
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*sides)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    return FlaxEncoderDecoderModel(config, seed=3)


IDS = np.array([[5, 6, 7, 0], [8, 9, 10, 11]])
TARGETS = np.array([[1, 12, 13], [1, 14, 15]])


def test_outputs_and_caches_are_trees(model):
    output = model(IDS, None, TARGETS, output_hidden_states=True)
    leaves, tree = jax.tree.flatten(output)
    again = jax.tree.unflatten(tree, leaves)
    assert isinstance(again, FlaxSeq2SeqLMOutput) and again.logits is output.logits
    assert jax.tree.structure(again) == tree and again.decoder_attentions is None
    cache = model.init_cache(2, 5, model.encode(IDS))
    assert jax.tree.structure(jax.tree.map(lambda x: x, cache)) == jax.tree.structure(cache)
    assert jax.jit(lambda: model(IDS, None, TARGETS))().logits.shape == (2, 3, 37)


def test_transformations(model, assert_close):
    """jit, vmap and jax.checkpoint give what the plain call gives."""
    wanted = model(IDS, None, TARGETS).logits
    assert_close(jax.jit(lambda x: model(x, None, TARGETS).logits)(IDS), wanted, "jit")
    mapped = jax.vmap(lambda x, y: model(x[None], None, y[None]).logits[0])(IDS, TARGETS)
    assert_close(mapped, wanted, "vmap", 2e-6)

    def loss(params):
        return model(IDS, None, TARGETS, params=params).logits.std()

    again = jax.jit(jax.grad(jax.checkpoint(loss)))(model.params)
    kept = model.module
    model.enable_gradient_checkpointing()
    layers = jax.jit(jax.grad(loss))(model.params)
    assert model.module.remat and not kept.remat
    model.module = kept
    for one, other in zip(*map(jax.tree.leaves, (again, layers)), strict=True):
        assert_close(one, other, "gradient checkpointing", 1e-6)


def test_no_memory_before_it_is_needed():
    """A model of 10^12 parameters can be described: shapes are evaluated, and nothing is made."""
    side = tiny_models.config("bert", hidden_size=2**16, num_attention_heads=2, intermediate_size=2**18)
    model = FlaxAutoModel(side, _do_init=False)
    assert model.num_parameters() > 10**11
    shapes = jax.eval_shape(model.init_weights, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, model.params_shape_tree)
    with pytest.raises(ValueError, match="_do_init=False"):
        model.params  # noqa: B018


def test_first_values():
    """By the configuration: deviations, norms, zero rows of padding, GPT-2's residual outputs; from one seed."""
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        tiny_models.config("roberta", hidden_size=64, num_hidden_layers=1),
        tiny_models.config("gpt2", n_embd=64, n_layer=8, initializer_range=0.05),
    )
    model = FlaxEncoderDecoderModel(config, seed=1)
    leaves = {name: np.asarray(x) for name, x in loading.flat(model.params).items()}
    assert abs(leaves["encoder.layers.0.mlp.up.weight"].std() - 0.02) < 0.002
    assert abs(leaves["decoder.layers.0.mlp.down.weight"].std() - 0.05 / 4) < 0.001
    assert (leaves["encoder.embeddings.token.weight"][1] == 0).all()
    assert (leaves["encoder.embeddings.position.weight"][1] == 0).all()
    assert (leaves["decoder.final_norm.weight"] == 1).all() and (leaves["decoder.final_norm.bias"] == 0).all()
    same, other = FlaxEncoderDecoderModel(config, seed=1), FlaxEncoderDecoderModel(config, seed=2)
    name = "decoder.layers.3.cross_attention.query.weight"
    assert np.array_equal(loading.flat(same.params)[name], leaves[name])
    assert not np.array_equal(loading.flat(other.params)[name], leaves[name])


def test_dropout_is_drawn_from_its_key(model):
    def logits(**options):
        return np.asarray(model(IDS, None, TARGETS, **options).logits)

    one, two = (logits(train=True, dropout_rng=jax.random.key(seed)) for seed in (0, 1))
    assert (one == logits(train=True, dropout_rng=jax.random.key(0))).all() and (one != two).any()
    assert (logits() == logits()).all()
    with pytest.raises(ValueError, match="pass dropout_rng"):
        logits(train=True)


def test_optax_trains_and_orbax_keeps(model, tmp_path):
    labels = np.array([[12, 13, 2], [14, 2, -100]])
    optimizer = optax.adamw(1e-2)

    @jax.jit
    def step(params, state):
        def loss(params):
            logits = model(IDS, None, shift_labels(labels, 0, 1), label_mask(labels), params=params).logits
            return cross_entropy(logits, labels)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params, state, losses = model.params, optimizer.init(model.params), []
    for _ in range(8):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
    with orbax.checkpoint.StandardCheckpointer() as keeper:
        keeper.save(tmp_path / "params", params)
        keeper.wait_until_finished()
        again = keeper.restore(tmp_path / "params", model.params_shape_tree)
    assert all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (params, again)), strict=True))


def test_types_and_masks(model):
    half = model.to_bf16(model.params)
    assert {x.dtype.name for x in jax.tree.leaves(half)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(model.params)} == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(model.to_fp32(half))} == {"float32"}
    names = loading.flat(model.params)
    mask = loading.nested({name: "norm" not in name for name in names})
    for name, x in loading.flat(model.to_fp16(model.params, mask)).items():
        assert x.dtype == (jnp.float32 if "norm" in name else jnp.float16), name


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_that_of_torch(smoothing, assert_close):
    import torch

    from warmstart.torch import loss as theirs

    draw = np.random.default_rng(0)
    logits, labels = draw.standard_normal((3, 5, 7), np.float32), draw.integers(0, 7, (3, 5))
    labels[1, 2:] = labels[2, 4:] = -100
    wanted = theirs.cross_entropy(torch.tensor(logits), torch.tensor(labels), label_smoothing=smoothing)
    assert_close(cross_entropy(jnp.asarray(logits), labels, label_smoothing=smoothing), wanted, "loss")
    assert (np.asarray(shift_labels(labels, 0, 1)) == theirs.shift_labels(torch.tensor(labels), 0, 1).numpy()).all()
    assert (np.asarray(label_mask(labels)) == theirs.label_mask(torch.tensor(labels)).numpy()).all()
    count = int((labels != -100).sum())
    parts = [cross_entropy(jnp.asarray(logits[i : i + 1]), labels[i : i + 1], count) for i in range(3)]
    assert_close(sum(parts), cross_entropy(jnp.asarray(logits), labels), "parts")
    with pytest.raises(ValueError, match="num_items_in_batch=0: give the number"):
        cross_entropy(jnp.asarray(logits), labels, 0)


def test_loss_over_a_named_axis_is_that_of_all_tokens(assert_close):
    """Devices with different numbers of labels: the mean over tokens, not the mean of means."""
    draw = np.random.default_rng(0)
    logits, labels = (
        jnp.asarray(draw.standard_normal((2, 4, 7), np.float32)),
        np.array([[1, 2, 3, 4], [5, -100, -100, -100]]),
    )
    spread = jax.vmap(lambda x, y: cross_entropy(x[None], y[None], axis_name="devices"), axis_name="devices")
    assert_close(spread(logits, labels), [cross_entropy(logits, labels)] * 2, "loss")


REFUSED = [
    (lambda m: m([[1, 2]], None, TARGETS), TypeError, "input_ids is a list"),
    (lambda m: m(IDS.astype(np.float32), None, TARGETS), ValueError, "token ids are integers"),
    (lambda m: m(IDS + 90, None, TARGETS), ValueError, "token id 101 at row 1, column 3 is outside the bert"),
    (lambda m: m(IDS[0], None, TARGETS), ValueError, r"\(4,\) is not \(batch, length\)"),
    (lambda m: m(IDS[:, :0], None, TARGETS), ValueError, "empty input"),
    (lambda m: m(np.ones((1, 99), int), None, TARGETS[:1]), ValueError, "99 tokens are more than the 40 positions"),
    (lambda m: m(IDS, np.ones((2, 3)), TARGETS), ValueError, r"it must be \(2, 4\)"),
    (lambda m: m(IDS, None), ValueError, "the decoder has nothing to read"),
    (lambda m: m(IDS, None, np.ones((3, 2), int)), ValueError, "3 rows for 2 sources"),
    (lambda m: m(IDS, None, TARGETS, None, np.full((2, 4), 50)), ValueError, "position_ids holds 50"),
    (lambda m: m.decode(TARGETS), ValueError, "give encoder_outputs"),
    (lambda m: m.init_cache(3, 4, m.encode(IDS)), ValueError, "3 rows does not fit 2 sources"),
    (lambda m: m.to_bf16(m.params) and FlaxEncoderDecoderModel(m.config, dtype="int8"), ValueError, "'int8' is not a"),
    (lambda m: FlaxEncoderDecoderModel(m.config.encoder), ValueError, "needs an EncoderDecoderConfig"),
    (lambda m: FlaxEncoderDecoderModel(m.config, ((1, 2), (2, 2))), ValueError, "give both the same number"),
    (lambda m: FlaxBertModel(m.config.decoder), TypeError, "built from a BertConfig"),
    (lambda m: FlaxAutoModel(m.config), ValueError, "use FlaxEncoderDecoderModel"),
    (lambda m: m.prepare_decoder_input_ids_from_labels([[1]]), ValueError, "labels must be an array"),
    (lambda m: cross_entropy(jnp.zeros((1, 2, 4)), np.array([[1, 9]])), ValueError, "label 9 is neither"),
    (lambda m: cross_entropy(jnp.zeros((1, 2, 4)), np.array([[1]])), ValueError, "do not fit logits"),
    (lambda m: FlaxEncoderDecoderModel.from_encoder_decoder_pretrained("a", "b", colour=1), TypeError, "colour"),
    (lambda m: m.save_pretrained("x", colour=1), TypeError, "colour"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_bad_input_is_refused_before_anything_is_traced(call, error, message, model):
    with pytest.raises(error, match=message):
        call(model)


def test_parameters_that_do_not_fit_are_listed(model):
    leaves = loading.flat(model.params)
    leaves.pop("decoder.final_norm.bias")
    leaves["encoder.layers.0.mlp.up.weight"] = leaves["encoder.layers.0.mlp.up.weight"][:, :3]
    with pytest.raises(ValueError) as caught:
        model.params = loading.nested(leaves | {"encoder.pooler.bias": leaves["encoder.layers.0.mlp.up.bias"]})
    text = str(caught.value)
    assert "1 are missing: ['decoder']['final_norm']['bias']" in text
    assert "1 are not known to this model: ['encoder']['pooler']['bias']" in text
    assert "['encoder']['layers']['0']['mlp']['up']['kernel'] (16, 3) where (16, 24) is wanted" in text


def test_a_tie_needs_sides_of_one_shape():
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        tiny_models.config("bert"), tiny_models.config("bert", intermediate_size=20), tie_encoder_decoder=True
    )
    with pytest.raises(ValueError, match="tie_encoder_decoder needs an encoder and a decoder of one shape"):
        FlaxEncoderDecoderModel(config)


def test_a_missing_extra_is_named():
    import subprocess
    import sys

    code = "import sys; sys.modules['jax'] = None\nfrom warmstart import FlaxEncoderDecoderModel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'FlaxEncoderDecoderModel needs jax, which is not installed: pip install "warmstart[flax]"' in done.stderr
