"""A model is a Keras model: compile, fit, evaluate, predict, save, mixed precision, many devices."""

import json
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny_models
from warmstart import TFEncoderDecoderModel

# Keras itself does so where it writes a variable of TensorFlow with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def model(zoo, tmp_path):
    return TFEncoderDecoderModel.from_pretrained(zoo.shallow_folder(tmp_path / "model"))


def data(rows=4, batch=2, apart=False):
    arrays = {name: x.numpy().astype("int32") for name, x in tiny_models.batch(rows).items()}
    if apart:
        labels = arrays.pop("labels")
        return tf.data.Dataset.from_tensor_slices((arrays, labels)).batch(batch)
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch)


def compiled(model, **optimizer):
    model.compile(optimizer=keras.optimizers.SGD(0.1, **optimizer), jit_compile=False)
    return model


def mean_loss(model, rows=4):
    batch = {name: x.numpy() for name, x in tiny_models.batch(rows).items()}
    return float(tf.reduce_mean(model(batch).loss))


def test_fit_evaluate_predict_save_and_load(model, tmp_path):
    first = mean_loss(model)
    whole = data(batch=4)
    seen = []
    tell = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["loss"]))
    history = compiled(model).fit(whole, epochs=3, verbose=0, shuffle=False, callbacks=[tell]).history["loss"]
    assert history == seen and history[0] == pytest.approx(first, abs=1e-5) and history[-1] < first
    loss = model.evaluate(whole, verbose=0)
    assert loss == pytest.approx(mean_loss(model), abs=1e-5)
    assert model.evaluate(data(batch=4, apart=True), verbose=0) == pytest.approx(loss, abs=1e-6)
    predicted = model.predict(whole, verbose=0)
    assert predicted["logits"].shape == (4, 6, tiny_models.VOCABULARY)
    lines = []
    model.summary(print_fn=lines.append)
    assert f"{model.num_parameters():,}" in "\n".join(lines)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is TFEncoderDecoderModel and again.config == model.config
    assert again.evaluate(whole, verbose=0) == pytest.approx(loss, abs=1e-6)
    found = run(
        """
        import keras
        from warmstart import TFEncoderDecoderModel
        model = keras.saving.load_model(FILE)
        print(float(abs(model(input_ids=[[5, 6]], decoder_input_ids=[[1]]).logits.numpy()).sum()))
        """,
        FILE=tmp_path / "model.keras",
    )
    logits = model(input_ids=[[5, 6]], decoder_input_ids=[[1]]).logits
    assert found == pytest.approx(float(np.abs(logits).sum()), rel=1e-5)


def test_a_step_of_training_is_that_of_torch(model, zoo, tmp_path):
    import torch

    from warmstart import EncoderDecoderModel
    from warmstart.tf.loading import named_parameters

    theirs = EncoderDecoderModel.from_pretrained(tmp_path / "model").train()
    theirs(**tiny_models.batch(4)).loss.backward()
    torch.optim.SGD(theirs.parameters(), 0.1).step()
    compiled(model).fit(data(batch=4), verbose=0, shuffle=False)
    found = dict(named_parameters(model))
    for name, value in theirs.named_parameters():
        assert np.abs(found[name].value() - value.detach().numpy()).max() <= 1e-5, name


def test_steps_of_a_batch_add_up_to_the_batch(model, zoo, tmp_path):
    """Keras takes the mean of two steps' gradients; with the count of all labels each step is a part of the whole."""
    other = TFEncoderDecoderModel.from_pretrained(tmp_path / "model")
    batch = {name: x.numpy().astype("int32") for name, x in tiny_models.batch(4).items()}
    count = (batch["labels"] != -100).sum() / 2  # the mean of two steps halves what they add up to
    parts = {**batch, "num_items_in_batch": np.full(4, count, "float32")}
    parts = tf.data.Dataset.from_tensor_slices(parts).batch(2)
    parts = parts.map(lambda x: {**x, "num_items_in_batch": x["num_items_in_batch"][0]})
    compiled(model, gradient_accumulation_steps=2).fit(parts, verbose=0, shuffle=False)
    compiled(other).fit(data(batch=4), verbose=0, shuffle=False)
    for one, two in zip(model.trainable_variables, other.trainable_variables, strict=True):
        assert np.abs(one.numpy() - two.numpy()).max() <= 1e-6, one.path


def test_mixed_precision(model, tmp_path):
    old = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = TFEncoderDecoderModel.from_pretrained(tmp_path / "model")
        batch = {name: x.numpy() for name, x in tiny_models.batch(4).items()}
        output = mixed(batch)
        assert mixed.variable_dtype == "float32" and output.logits.dtype == tf.bfloat16
        assert output.loss.dtype == tf.float32
        assert float(tf.reduce_mean(output.loss)) == pytest.approx(mean_loss(model), rel=0.05)
        history = compiled(mixed).fit(data(batch=4), epochs=2, verbose=0, shuffle=False).history["loss"]
        assert history[1] < history[0]
    finally:
        keras.config.set_dtype_policy(old)


def run(code, **names):
    """What a process prints that runs the code, as JSON."""
    text = "import os\nos.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'\n" + textwrap.dedent(code)
    for name, value in names.items():
        text = text.replace(name, repr(str(value)))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_exported_for_a_process_without_the_library(model, tmp_path):
    model.export(tmp_path / "served", num_beams=2, max_new_tokens=4)
    found = run(
        """
        import json, sys
        sys.modules["warmstart"] = None
        import tensorflow as tf
        signatures = tf.saved_model.load(FOLDER).signatures
        result = {}
        for rows, length in ((2, 3), (1, 5)):
            ids = tf.reshape(tf.range(5, 5 + rows * length), (rows, length))
            given = {"input_ids": ids, "attention_mask": tf.ones_like(ids)}
            result[str(rows)] = signatures["generate"](**given)["sequences"].numpy().tolist()
            logits = signatures["serving_default"](**given, decoder_input_ids=ids[:, :2])["logits"]
            result[f"logits {rows}"] = float(tf.reduce_sum(logits))
        print(json.dumps(result))
        """,
        FOLDER=tmp_path / "served",
    )
    for rows, length in ((2, 3), (1, 5)):
        ids = np.arange(5, 5 + rows * length).reshape(rows, length)
        assert found[str(rows)] == model.generate(ids, num_beams=2, max_new_tokens=4).numpy().tolist()
        assert found[f"logits {rows}"] == pytest.approx(
            float(tf.reduce_sum(model(ids, decoder_input_ids=ids[:, :2]).logits)), rel=1e-4
        )


def test_two_devices_are_one(model, tmp_path):
    """Of rows with labels of different number: the mean is over all labels of the batch, not over devices' means."""
    losses = run(
        """
        import json
        import keras, numpy as np, tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        from warmstart import TFEncoderDecoderModel
        ids = np.arange(5, 25, dtype="int32").reshape(4, 5)
        labels = ids.copy(); labels[2:, 1:] = -100
        data = tf.data.Dataset.from_tensor_slices({"input_ids": ids, "labels": labels}).batch(4)
        def trained(scope):
            with scope:
                model = TFEncoderDecoderModel.from_pretrained(FOLDER)
                model.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=False)
            losses = model.fit(data, epochs=2, verbose=0, shuffle=False).history["loss"]
            return losses, [x.numpy() for x in model.trainable_variables]
        two = trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope())
        import contextlib
        one = trained(contextlib.nullcontext())
        apart = max(float(np.abs(x - y).max()) for x, y in zip(one[1], two[1]))
        print(json.dumps([one[0], two[0], apart]))
        """,
        FOLDER=tmp_path / "model",
    )
    one, two, apart = losses
    assert two == pytest.approx(one, abs=1e-5)
    assert apart <= 1e-5
