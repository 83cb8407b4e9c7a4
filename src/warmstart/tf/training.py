"""What makes `fit`, `evaluate` and `predict` work on batches with labels: the model's own loss, and plain outputs.

Shapes: b batch, t target length, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import keras

from warmstart.tf.loss import mean_loss


class Trained(keras.Model):
    """A Keras model that finds labels in its batch, and whose loss is its own unless `compile` was given another.

    A batch is a dict with `labels`, or a pair of such a dict without them and the labels. `num_items_in_batch` in it is
    the count of labels that the loss is divided by, where a step is only part of a batch.
    """

    def training_inputs(self, inputs: dict[str, Any], labels: Any) -> tuple[dict[str, Any], Any]:
        """What the model is called with to predict these labels, and the labels of each of its positions."""
        raise ValueError(f"{type(self).__name__} has no loss of its own: give compile(loss=...)")

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
