"""Decoding beside its peers: `python -m benchmarks.decode` prints tokens per second, limits, and memory."""
