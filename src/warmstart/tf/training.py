"""What makes `fit`, `evaluate` and `predict` work on batches with labels: the model's own loss, and plain outputs.

Shapes: b batch, t target length, v vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import GeneratorType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from warmstart.tf.inputs import check_values
from warmstart.tf.loss import check_label_values, mean_loss

Vocabularies = Mapping[str, tuple[int, str]]
"""For each input that holds token ids, how many there are, and whose they are."""


class Trained(keras.Model):
    """A Keras model that finds labels in its batch, and whose loss is its own unless `compile` was given another.

    A batch is a dict with `labels`, or a pair of such a dict without them and the labels. `num_items_in_batch` in it is
    the count of labels that the loss is divided by, where a step is only part of a batch.
    """

    def training_inputs(self, inputs: dict[str, Any], labels: Any) -> tuple[dict[str, Any], Any]:
        """What the model is called with to predict these labels, and the labels of each of its positions."""
        raise ValueError(f"{type(self).__name__} has no loss of its own: give compile(loss=...)")

    def vocabularies(self) -> Vocabularies:
        """The vocabularies of the inputs and of `labels`."""
        return {}

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras' own; ids that are in no vocabulary are refused, in arrays and in whatever yields batches.

        Raises:
            ValueError: names the id, its place and the vocabulary; XLA would take another id's vector in its place.
        """
        return _looked(super().fit, self.vocabularies(), args, kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras' own; ids are checked as in `fit`."""
        return _looked(super().evaluate, self.vocabularies(), args, kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras' own; ids are checked as in `fit`."""
        return _looked(super().predict, self.vocabularies(), args, kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras' own; ids are checked as in `fit`."""
        return _looked(super().train_on_batch, self.vocabularies(), args, kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras' own; ids are checked as in `fit`."""
        return _looked(super().test_on_batch, self.vocabularies(), args, kwargs)

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras' own; ids are checked as in `fit`."""
        return _looked(super().predict_on_batch, self.vocabularies(), args, kwargs)

    def train_step(self, data: Any) -> Any:
        return super().train_step(self._with_labels(data))

    def test_step(self, data: Any) -> Any:
        return super().test_step(self._with_labels(data))

    def predict_step(self, data: Any) -> Any:
        """The arrays of an output that have a row for each row of the batch."""
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        if _labels_of(x, y) is not None:
            x = self._with_labels(data)[0]
        output = self({**_as_dict(x), "use_cache": False}, training=False)
        wanted = ("logits", "last_hidden_state", "encoder_last_hidden_state")
        return {name: output[name] for name in wanted if name in output}

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The mean cross-entropy over all labels that count, or what `compile` was given, on the logits."""
        logits = getattr(y_pred, "logits", y_pred)
        if self._compile_loss is not None:
            return super().compute_loss(x, y, logits, sample_weight, training)
        if sample_weight is not None:
            raise ValueError(
                "the model's own loss takes no sample_weight or class_weight: give compile(loss=...), or leave labels "
                "out with -100"
            )
        if y is None or logits is None:
            raise ValueError("the batch has no labels: give a dict with `labels`, or pairs of inputs and labels")
        count = x.get("num_items_in_batch") if isinstance(x, dict) else None
        return mean_loss(logits, y, count)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return super().compute_metrics(x, y, getattr(y_pred, "logits", y_pred), sample_weight)

    def _with_labels(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        labels = _labels_of(x, y)
        if labels is None:
            return x, y, sample_weight
        inputs = {name: value for name, value in _as_dict(x).items() if name != "labels"}
        inputs, labels = self.training_inputs(inputs, labels)
        return {**inputs, "use_cache": False}, labels, sample_weight


def _labels_of(x: Any, y: Any) -> Any:
    for place in (y, x):
        if isinstance(place, dict) and place.get("labels") is not None:
            return place["labels"]
    return None if isinstance(y, dict) else y


def _as_dict(x: Any) -> dict[str, Any]:
    return dict(x) if isinstance(x, dict) else {"input_ids": x}


class _LookedBatches(keras.utils.PyDataset):
    """The batches of another `PyDataset`, each looked at."""

    def __init__(self, batches: Any, look: Callable[[Any], Any]):
        super().__init__(batches.workers, batches.use_multiprocessing, batches.max_queue_size)
        self.batches, self.look = batches, look

    @property
    def num_batches(self) -> Any:
        return self.batches.num_batches

    def __getitem__(self, index: int) -> Any:
        return self.look(self.batches[index])

    def on_epoch_begin(self) -> None:
        self.batches.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.batches.on_epoch_end()


def _looked(method: Callable[..., Any], vocabularies: Vocabularies, args: tuple[Any, ...], kwargs: Any) -> Any:
    """What Keras' method gives for data whose ids are looked at: arrays at once, other batches as they come."""
    given = dict(inspect.signature(method).bind(*args, **kwargs).arguments)
    given |= given.pop("kwargs", {})
    refused: list[ValueError] = []

    def batch(element: Any) -> Any:
        """A batch of arrays, as the tuple that Keras takes from a generator."""
        whole = tuple(element) if isinstance(element, (tuple, list)) else (element,)
        try:
            look(*whole[:2])
        except ValueError as error:
            refused.append(error)
            raise
        return whole

    def look(x: Any, y: Any = None) -> Any:
        if isinstance(x, tf.data.Dataset):
            return x.map(lambda *element: _batch_looked(element, vocabularies, refused))
        if isinstance(x, keras.utils.PyDataset):
            return _LookedBatches(x, batch)
        if isinstance(x, GeneratorType):  # Keras takes no other iterator
            return (batch(element) for element in x)
        _look({**_as_dict(x), "labels": _labels_of(x, y)}, vocabularies)
        return x

    given["x"] = look(given.get("x"), given.get("y"))
    if isinstance(held_out := given.get("validation_data"), tuple):
        look(*held_out[:2])
    elif held_out is not None:
        given["validation_data"] = look(held_out)
    try:
        return method(**given)
    except tf.errors.OpError as error:
        if refused:
            raise refused[0] from error
        raise


def _batch_looked(element: tuple[Any, ...], vocabularies: Vocabularies, refused: list[ValueError]) -> Any:
    """A batch as it is, once its ids have been looked at; the error of one that has others is kept."""
    whole = element if len(element) > 1 else element[0]
    x, y, _ = keras.utils.unpack_x_y_sample_weight(whole)
    values = {**_as_dict(x), "labels": _labels_of(x, y)}
    names = [name for name in vocabularies if isinstance(values.get(name), tf.Tensor)]

    def on_host(*arrays: Any) -> Any:
        try:
            _look(dict(zip(names, arrays, strict=True)), vocabularies)
        except ValueError as error:
            refused.append(error)
            raise
        return True

    with tf.control_dependencies([tf.numpy_function(on_host, [values[name] for name in names], tf.bool)]):
        return tf.nest.map_structure(tf.identity, whole)


def _look(values: Mapping[str, Any], vocabularies: Vocabularies) -> None:
    """Refuse ids (b, t) that are in no vocabulary; what is no array of such is left to the step that reads it."""
    for name, (size, family) in vocabularies.items():
        ids = values.get(name)
        ids = np.asarray(ids) if hasattr(ids, "__array__") else None
        if ids is None or ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.size == 0:
            continue
        if name == "labels":
            check_label_values(ids, size)
        else:
            check_values(ids, size, family)
