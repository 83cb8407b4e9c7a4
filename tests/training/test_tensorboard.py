"""What is written for TensorBoard, read with TensorBoard's own reader."""

import pytest

from warmstart.training.tensorboard import FOLDER, Board

pytest.importorskip("tensorboard")


def test_it_reads_numbers_and_texts_and_forgets_what_a_kill_left(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Board(tmp_path, 0)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": float(step), "rates": {"encoder": 0.1 * step}})
    first.close()
    second = Board(tmp_path, 1)  # goes on after step 1
    second.write({"step": 2, "loss": 20.0, "samples": ["one text", "naïve"]})
    second.write({"step": 2, "checks": {"ids": "well"}})
    second.close()
    found = EventAccumulator(str(tmp_path / FOLDER)).Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 1.0), (2, 20.0)]
    assert [event.step for event in found.Scalars("rate/encoder")] == [1]
    assert found.Tensors("texts")[0].tensor_proto.string_val[1].decode() == "naïve"
