"""One folder, four libraries: what one framework saves opens in each of the others and gives equal logits."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from warmstart import EncoderDecoderModel, FlaxEncoderDecoderModel

pytest.importorskip("tensorflow", reason="TensorFlow is an extra of its own")

TARGETS = np.array([[1, 12, 13], [1, 14, 15]])
IDS = np.array([[5, 6, 7, 0], [8, 9, 10, 11]])
MASK = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])


def torch_logits(model):
    model.eval()
    inputs = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": TARGETS}
    with torch.no_grad():
        return model(**{name: torch.tensor(x) for name, x in inputs.items()}).logits.numpy()


def tensorflow_class():
    from warmstart import TFEncoderDecoderModel

    return TFEncoderDecoderModel


LOGITS = {
    "torch": lambda folder: torch_logits(EncoderDecoderModel.from_pretrained(folder)),
    "transformers": lambda folder: torch_logits(transformers.EncoderDecoderModel.from_pretrained(folder)),
    "jax": lambda folder: np.asarray(FlaxEncoderDecoderModel.from_pretrained(folder)(IDS, MASK, TARGETS).logits),
    "tensorflow": lambda folder: tensorflow_class().from_pretrained(folder)(IDS, MASK, TARGETS).logits.numpy(),
}
CLASSES = {
    "torch": lambda: EncoderDecoderModel,
    "jax": lambda: FlaxEncoderDecoderModel,
    "tensorflow": tensorflow_class,
    "transformers": lambda: transformers.EncoderDecoderModel,
}


@pytest.mark.parametrize("framework", CLASSES)
def test_saved_in_one_and_loaded_in_each(framework, pair, tmp_path):
    ours, _, folder = pair("bert", "gpt2")
    CLASSES[framework]().from_pretrained(folder).save_pretrained(tmp_path)
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    if framework == "transformers":  # which gives the encoder a pooler that no pair uses
        after = {name: x for name, x in after.items() if "pooler" not in name}
    assert before.keys() == after.keys()
    wanted = torch_logits(ours)
    for name, logits in LOGITS.items():
        assert np.abs(logits(tmp_path) - wanted).max() < 1e-5, f"saved in {framework}, loaded in {name}"
