"""Speed and memory of `warmstart` beside `transformers`, as a table: `python -m benchmarks`, docs/benchmarks.md."""
