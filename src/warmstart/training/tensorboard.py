"""The log of a training as TensorBoard reads it: a curve for each number, the texts beside them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warmstart.training.extras import needs
from warmstart.training.log import Event

FOLDER = "tensorboard"


class Board:
    """An event file in a training's folder; TensorBoard leaves out what earlier files say of steps after `step`.

    Written without torch's own writer, which imports TensorFlow where that is installed.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, output: str | Path, step: int):
        with needs("tensorboard", "writing for TensorBoard"):
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        self._make: Any = event_pb2
        folder = Path(output, FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.warmstart.{os.getpid()}.{step}"
        self._records: Any = RecordWriter((folder / name).open("ab"))
        self._write(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=step + 1, session_log=start)

    def write(self, event: Event) -> None:
        """Add what a line of the log says."""
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto

        values = [Summary.Value(tag=tag, simple_value=number) for tag, number in _numbers(event)]
        if texts := event.get("samples"):
            metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
            shape = {"dim": [{"size": len(texts)}]}
            tensor = TensorProto(dtype=7, string_val=[text.encode() for text in texts], tensor_shape=shape)
            values.append(Summary.Value(tag="texts", metadata=metadata, tensor=tensor))
        if values:
            self._write(step=event["step"], summary=Summary(value=values))

    def _write(self, **fields: Any) -> None:
        self._records.write(self._make.Event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()


def _numbers(event: Event) -> Iterator[tuple[str, float]]:
    """The numbers of a line, each with the name of its curve."""
    for name, value in event.items():
        if name == "rates":
            yield from ((f"rate/{part}", rate) for part, rate in value.items())
        elif isinstance(value, (int, float)) and name != "step":
            yield name, value
