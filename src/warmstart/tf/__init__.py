"""The models in TensorFlow, as Keras 3 models: layers, stack, models and generation."""

from __future__ import annotations

import os


def check_backend() -> None:
    """Refuse another Keras backend than TensorFlow, before anything is built on it.

    Raises:
        ImportError: Keras runs, or would run, on another backend; the message names the setting that changes it.
    """
    wanted = os.environ.get("KERAS_BACKEND")
    if wanted in (None, "", "tensorflow"):
        import keras

        wanted = keras.config.backend()
    if wanted != "tensorflow":
        raise ImportError(
            f"Keras runs on the backend {wanted!r}, and warmstart's TensorFlow models need 'tensorflow': set the "
            'environment variable KERAS_BACKEND=tensorflow (or "backend": "tensorflow" in ~/.keras/keras.json) '
            "before keras is imported"
        )


check_backend()
