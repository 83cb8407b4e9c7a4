"""Speed and memory of `warmstart` beside `transformers`: `python -m benchmarks` prints a table (docs/benchmarks.md)."""
