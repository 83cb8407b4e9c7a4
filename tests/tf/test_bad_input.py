"""What cannot work is refused before anything is traced, with what is wrong, where, and what to do."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import tree

import tiny_models
from test_bad_input import BAD_BATCHES
from warmstart import BertConfig, TFAutoModel, TFAutoModelForCausalLM, TFBertModel, TFEncoderDecoderModel


@pytest.fixture
def model(zoo):
    return zoo.pair("bert", "gpt2")[1]


def batch():
    return {name: x.numpy() for name, x in tiny_models.batch().items()}


BAD_CALLS = {
    "float ids": ({"input_ids": np.ones((1, 3))}, "token ids are integers"),
    "ragged": ({"input_ids": [[5, 6], [7]]}, "rows must have one length"),
    "flat": ({"input_ids": [5, 6]}, r"shape \(2,\) is not \(batch, length\) ids"),
    "no tensor": ({"input_ids": "text"}, "give a tensor"),
    "empty": ({"input_ids": np.zeros((1, 0), int)}, "empty input"),
    "outside": (
        {"input_ids": [[5, 99]], "attention_mask": None},
        "token id 99 at row 0, column 1 is outside the bert stack's vocabulary of 37",
    ),
    "long": ({"input_ids": np.full((1, 50), 5)}, "50 tokens are more than the 40 positions"),
    "mask": (
        {"attention_mask": np.ones((3, 2), int)},
        r"of shape \(3, 2\) does not cover 0 cached and 7 new",
    ),
    "labels": (
        {"labels": np.array([[5, 6, 99]] * 3)},
        "label 99 is neither -100 nor in the decoder's vocabulary of 37",
    ),
    "float labels": ({"labels": np.ones((3, 6))}, r"labels must be .* not \(3, 6\) of float32"),
    "rows": ({"labels": np.full((2, 6), 5)}, "the decoder has 2 rows for 3 sources"),
    "cache": ({"past_key_values": ((1, 2),)}, "must be a KeyValueCache"),
    "nothing": ({"labels": None}, "the decoder has nothing to read"),
    "states": ({"encoder_outputs": (np.ones((3, 7, 9), "float32"),)}, "encoder_outputs are 9 wide"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls(case, model):
    changes, message = BAD_CALLS[case]
    with pytest.raises((ValueError, TypeError), match=message) as refused:
        model({**batch(), **changes})
    assert "call()" not in str(refused.value)  # Keras' own words around it


def test_a_loss_is_divided_by_a_count():
    from warmstart.tf.loss import mean_loss

    with pytest.raises(ValueError, match="num_items_in_batch=-1: give the number"):
        mean_loss(tf.zeros([1, 2, 3]), tf.constant([[1, 2]]), -1)


def test_wrong_types_are_refused_before_a_trace(model):
    traced = []

    @tf.function
    def call(labels):
        traced.append(model(input_ids=tf.fill([3, 7], 5), labels=labels))

    with pytest.raises(ValueError, match=r"not \(3, 6\) of float32"):
        call(tf.ones([3, 6]))
    assert not traced


@pytest.mark.parametrize("labels", [np.ones((3, 6), "float32"), np.ones(3, "int32")], ids=["float", "flat"])
def test_fit_refuses_labels_of_another_kind(labels, model):
    model.compile(optimizer="sgd", jit_compile=False)
    data = {name: x.astype("int32") for name, x in batch().items()} | {"labels": labels}
    with pytest.raises(ValueError, match=r"labels must be a tensor of token ids \(batch, target_length\), not \(None"):
        model.fit(tf.data.Dataset.from_tensor_slices(data).batch(3), verbose=0, shuffle=False)


class Batches(keras.utils.PyDataset):
    """One batch."""

    def __init__(self, *arrays):
        super().__init__()
        self.batch = arrays if len(arrays) > 1 else arrays[0]

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


OUTSIDE = {
    "input_ids": "token id 99 at row 1, column 1 is outside the bert stack's vocabulary of 37; use the tokenizer that",
    "labels": "label 99 is neither -100 nor in the decoder's vocabulary of 37; tokenize the targets with",
}


# XLA would go on with other ids
@pytest.mark.parametrize(("name", "compiled"), [("input_ids", False), ("labels", True)])
def test_fit_refuses_ids_outside_the_vocabulary(name, compiled, model):
    model.compile(optimizer="sgd", jit_compile=compiled)
    before = [x.numpy() for x in model.trainable_variables]
    arrays = {key: x.astype("int32") for key, x in batch().items()}
    good = tf.data.Dataset.from_tensor_slices(arrays).batch(3)
    well = arrays.copy()
    arrays[name] = np.where(np.arange(arrays[name].size).reshape(3, -1) == arrays[name].shape[1] + 1, 99, arrays[name])
    labels = arrays.pop("labels")
    bad = tf.data.Dataset.from_tensor_slices((arrays, labels)).batch(3)
    calls = [
        lambda: model.fit(arrays, labels, verbose=0),
        lambda: model.fit(bad, verbose=0, shuffle=False),
        lambda: model.evaluate(bad, verbose=0),
        lambda: model.predict(bad, verbose=0),
        lambda: model.fit((x for x in [({**arrays, "labels": labels},)]), verbose=0, shuffle=False),
        lambda: model.evaluate((x for x in [{**arrays, "labels": labels}]), verbose=0),
        lambda: model.fit(Batches(arrays, labels), verbose=0),
        lambda: model.fit(good, validation_data=(arrays, labels), verbose=0, shuffle=False),
        lambda: model.train_on_batch(arrays, labels),
        lambda: model.test_on_batch({**arrays, "labels": labels}),
        lambda: model.predict_on_batch({**arrays, "labels": labels}),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=OUTSIDE[name]):
            call()
    assert all(np.array_equal(x, y.numpy()) for x, y in zip(before, model.trainable_variables, strict=True))
    if not compiled:
        with pytest.raises(ValueError, match=OUTSIDE[name]):
            model.fit(good, validation_data=bad, verbose=0, shuffle=False)
        with pytest.raises(ValueError, match=OUTSIDE[name]):
            model.fit(good, validation_data=Batches(arrays, labels), verbose=0, shuffle=False)
        loss = model.evaluate(good, verbose=0)
        assert model.evaluate((x for x in [well]), steps=1, verbose=0) == pytest.approx(loss)
        assert model.evaluate(Batches(well), verbose=0) == pytest.approx(loss)
        with pytest.raises(ValueError, match="own loss takes no sample_weight or class_weight: give compile"):
            model.evaluate(well, well.pop("labels"), sample_weight=np.ones(3), verbose=0)


# What is allowed here: lists, and the old documentation's example.
ALLOWED = ("labels in a list", "labels that are not shifted")


def test_messages_are_those_of_torch(model, zoo):
    theirs = zoo.pair("bert", "gpt2")[0]
    for kind, (given, _) in BAD_BATCHES.items():
        if kind in ALLOWED:
            continue
        with pytest.raises(ValueError) as wanted:
            theirs(**given)
        with pytest.raises(ValueError) as found:
            model(**tree.map_structure(lambda x: x.numpy(), given))
        assert str(found.value) == str(wanted.value).replace("torch.", ""), kind


BAD_GENERATE = {
    "unknown": ({"num_beems": 2}, "did you mean 'num_beams'"),
    "float ids": ({"input_ids": np.ones((1, 3))}, "token ids are integers"),
    "outside": ({"input_ids": [[99]]}, "token id 99 at row 0, column 0"),
    "start": ({"decoder_start_token_id": [1, 2]}, "2 ids for 3 sources"),
    "multiple": ({"pad_to_multiple_of": 0}, "pad_to_multiple_of=0"),
    "right": (
        {"decoder_input_ids": [[1, 5, 0]] * 3, "decoder_attention_mask": [[1, 1, 0]] * 3},
        "pad it on the left",
    ),
    "long": ({"max_new_tokens": 60}, "the decoder has 40 positions"),
}


@pytest.mark.parametrize("case", BAD_GENERATE)
def test_bad_generate(case, model):
    changes, message = BAD_GENERATE[case]
    with pytest.raises((ValueError, TypeError), match=message):
        model.generate(**{"input_ids": batch()["input_ids"], "max_new_tokens": 3, **changes})


def test_unset_ids_say_how_to_set_them():
    sides = [tiny_models.config("bert"), tiny_models.config("bert")]
    from warmstart import EncoderDecoderConfig

    model = TFEncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(*sides))
    with pytest.raises(ValueError, match=r"Set model\.config\.decoder_start_token_id"):
        model(**batch())
    with pytest.raises(ValueError, match="decoder_start_token_id is not set"):
        model.generate(batch()["input_ids"])


def test_labels_as_inputs_are_warned_of(model):
    """The old documentation's own example does it, so that it is no error here."""
    ids = np.array([[5, 6, 7]])
    with pytest.warns(UserWarning, match="each position sees the token that it must predict"):
        model(ids, decoder_input_ids=ids, labels=ids)


def test_models_that_do_not_fit_their_side():
    with pytest.raises(ValueError, match="needs a config, or an encoder and a decoder"):
        TFEncoderDecoderModel()
    with pytest.raises(ValueError, match="needs an EncoderDecoderConfig"):
        TFEncoderDecoderModel(config=BertConfig())
    small = tiny_models.config("bert")
    cross = tiny_models.config("bert", is_decoder=True, add_cross_attention=True)
    with pytest.raises(ValueError, match=r"load it with TFAutoModel\.from_pretrained"):
        TFEncoderDecoderModel(encoder=TFAutoModelForCausalLM(cross), decoder=TFAutoModelForCausalLM(cross))
    with pytest.raises(ValueError, match="without cross-attention"):
        TFEncoderDecoderModel(encoder=TFAutoModel(small), decoder=TFAutoModelForCausalLM(small))
    with pytest.raises(TypeError, match="is built from a BertConfig"):
        TFBertModel(tiny_models.config("gpt2"))


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError):
        TFBertModel.from_pretrained(tmp_path / "nowhere")
    folder = tiny_models.saved(tmp_path / "bert", "bert")
    with pytest.raises(TypeError, match="unknown arguments"):
        TFBertModel.from_pretrained(folder, hiden_size=3)
    with pytest.raises(ValueError, match="have another shape"):
        TFBertModel.from_pretrained(folder, hidden_size=32)
    with pytest.raises(ValueError, match="is not a floating-point type"):
        TFBertModel.from_pretrained(folder, dtype="int8")


def test_a_kill_while_saving_leaves_the_folder_as_it_was(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("warmstart.tf.loading.write_tensors", fails)
    with pytest.raises(OSError, match="nothing was saved"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.environ['KERAS_BACKEND'] = 'jax'", "set the environment variable KERAS_BACKEND=tensorflow"),
        ("import sys; sys.modules['tensorflow'] = None", 'pip install "warmstart[tf]"'),
        ("import sys; sys.modules['keras'] = None", 'pip install "warmstart[tf]"'),
    ],
)
def test_another_backend_and_missing_packages_are_named(code, message):
    code += "\ntry:\n    from warmstart import TFEncoderDecoderModel\nexcept ImportError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert message in done.stdout, done.stderr[-2000:]
