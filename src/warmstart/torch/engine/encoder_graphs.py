"""An encoder on a GPU: part by part, so that what lies between its layers stays small, and each part as a CUDA graph.

With a few thousand tokens the host takes longer to ask for a layer than a GPU to compute it, so that a part of a size
that came before is recorded, and replayed from then on.

Shapes: b sources, s source length, h hidden size.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from warmstart.torch.engine import graphs
from warmstart.torch.engine.encoder import parts_of
from warmstart.torch.engine.plain import tensors_of

_MOST = 16  # sizes of parts that are remembered; the one that was not seen for longest is forgotten


class _Kept:
    """An encoder's recorded parts, and the tensors that they read."""

    def __init__(self, stamp: Any, recorded: graphs.Graphs):
        self.stamp, self.graphs = stamp, recorded
        self.inputs: dict[Any, dict[str, Tensor]] = {}
        self.lock = threading.Lock()  # of the tensors
        self.read: Any = None  # when what was computed last had been read, for those who compute on another stream


_kept: weakref.WeakKeyDictionary[Any, _Kept] = weakref.WeakKeyDictionary()


def encode_in_parts(model: Any, given: dict[str, Tensor]) -> Tensor:
    """The states (b, s, h) of sources, from what the encoder reads: `input_ids` (b, s), and what stands beside them."""
    rows, length = given["input_ids"].shape
    stamp = [(x.data_ptr(), x.dtype, x.shape) for x in tensors_of(model.encoder)]
    kept = _kept.get(model.encoder)
    if kept is None or kept.stamp != stamp:
        kept = _kept[model.encoder] = _Kept(stamp, graphs.graphs_for(model.device))
    states: Tensor | None = None
    for some in parts_of([length] * rows, graphs.TOGETHER):
        part = {name: x if len(x) == 1 < rows else x[some] for name, x in given.items()}
        with kept.lock:
            if kept.read is not None:
                torch.cuda.current_stream(model.device).wait_event(kept.read)
            out = _encoded(model, part, kept)
            states = out.new_empty(rows, *out.shape[1:]) if states is None else states
            states[some] = out
            if out.is_cuda:
                kept.read = torch.cuda.current_stream(model.device).record_event()
    assert states is not None
    return states


def _encoded(model: Any, part: dict[str, Tensor], kept: _Kept) -> Tensor:
    size = tuple((name, x.shape, x.dtype) for name, x in part.items())
    own = kept.inputs.pop(size, None)
    if own is None:
        own = {name: x.clone() for name, x in part.items()}
        if len(kept.inputs) >= _MOST:
            oldest = next(iter(kept.inputs))
            del kept.inputs[oldest]
            kept.graphs.made.pop(oldest, None)
    kept.inputs[size] = own  # the last in line to be forgotten
    for name, x in part.items():
        own[name].copy_(x)
    return kept.graphs(size, lambda: model.encode(**own)[0])


def release(encoder: Any) -> None:
    """Let go of what an encoder keeps between calls."""
    _kept.pop(encoder, None)
