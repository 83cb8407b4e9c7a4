"""The KV cache of a decoder: keys and values of what was decoded, in buffers that grow, and of the source, made once.

Shapes: r rows (sources times beams), b sources, n key-value heads, t tokens held, s source length, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


class LayerCache:
    """One layer's keys and values: its own (r, n, t, d), and the source's (b, n, s, d)."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None  # (r, n, capacity, d)
        self.values: Tensor | None = None
        self.length = 0
        self.source: Pair | None = None

    def append(self, keys: Tensor, values: Tensor) -> Pair:
        """Add the keys and values of new tokens; give all that are held."""
        if self.keys is None or self.values is None:
            self.keys, self.values, self.length = keys, values, keys.shape[2]
            return keys, values
        end = self.length + keys.shape[2]
        if torch.is_grad_enabled() and (keys.requires_grad or self.keys.requires_grad):
            self.keys = torch.cat([self.keys[:, :, : self.length], keys], 2)
            self.values = torch.cat([self.values[:, :, : self.length], values], 2)
        else:
            if self.keys.shape[2] < end:
                self.keys, self.values = self._grown(self.keys, end), self._grown(self.values, end)
            self.keys[:, :, self.length : end] = keys
            self.values[:, :, self.length : end] = values
        self.length = end
        return self.held()

    def held(self) -> Pair:
        """The keys and values held: views of the buffers."""
        assert self.keys is not None and self.values is not None
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def _grown(self, buffer: Tensor, needed: int) -> Tensor:
        rows, heads, _, size = buffer.shape
        grown = buffer.new_empty(rows, heads, max(16, 2 * needed), size)
        grown[:, :, : self.length] = buffer[:, :, : self.length]
        return grown


class KeyValueCache:
    """What a decoder remembers between steps; pass it back as `past_key_values`.

    `cache[layer]` is a tuple of keys and values, and the source's keys and values where there is one.
    """

    def __init__(self, layers: int):
        self.layers = [LayerCache() for _ in range(layers)]

    @property
    def length(self) -> int:
        """How many tokens are held."""
        return self.layers[0].length if self.layers else 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens are held (the name that users of `transformers` know)."""
        return self.length

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was; the number of rows may change. The source's part stays as it is."""
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys = layer.keys.index_select(0, rows)
                layer.values = layer.values.index_select(0, rows)

    def crop(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> tuple[Tensor, ...]:
        return self.layers[layer].held() + (self.layers[layer].source or ())

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self[layer] for layer in range(len(self)))
