"""Tokens per second of `generate` in TensorFlow beside `transformers` 4.57.6, a process for each contender, in turns.

Run with ``python -m benchmarks.tf_generate [--beams 1 4] [--tiny] [--rounds N]``. Random bert2gpt2 weights, batch 8,
source 256, 64 new tokens, greedy and 4 beams; every contender generates all 64 (no end token). "first" is the time of
the first call, tracing and compilation included; the best of the later calls counts. It prints a row of the table in
docs/benchmarks.md for each setting; `--contenders ours ...` adds our graph without XLA.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.report import generation_row

BATCH, SOURCE, NEW = 8, 256, 64
SIZES = {
    "base": {"encoder": {}, "decoder": {}},
    "tiny": {
        "encoder": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
        "decoder": {"n_embd": 64, "n_layer": 2, "n_head": 2},
    },
}
CONTENDERS = ("ours", "ours-xla", "transformers-xla")


def make_folder(folder: str, size: str) -> None:
    """Save a random pair, whole and in parts."""
    import keras

    from warmstart import BertConfig, EncoderDecoderConfig, GPT2Config, TFEncoderDecoderModel

    keras.utils.set_random_seed(0)
    parts = SIZES[size]
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(**parts["encoder"]), GPT2Config(**parts["decoder"])
    )
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 50256, 50256, 50256
    model = TFEncoderDecoderModel(config)
    model.save_pretrained(folder, safe_serialization=False)


def contender(name: str, folder: str, beams: int, calls: int) -> dict[str, Any]:
    """Time one contender in this process."""
    import numpy as np
    import tensorflow as tf

    ids = tf.constant(np.random.default_rng(0).integers(1000, 20000, (BATCH, SOURCE)), tf.int32)
    settings = {"num_beams": beams, "do_sample": False, "decoder_start_token_id": 50256, "pad_token_id": 50256}
    # an end token that is outside what random weights choose: all run to the end
    settings |= {"max_new_tokens": NEW, "min_new_tokens": NEW, "eos_token_id": 50256}
    if name == "transformers-xla":
        import transformers

        model = transformers.TFEncoderDecoderModel.from_pretrained(folder)
        mask = tf.ones_like(ids)
        run = tf.function(lambda x: model.generate(x, attention_mask=mask, **settings), jit_compile=True)
    else:
        from warmstart import TFEncoderDecoderModel

        model = TFEncoderDecoderModel.from_pretrained(folder)

        def run(x):
            return model.generate(x, jit_compile=name == "ours-xla", **settings)

    times = []
    for _ in range(calls):
        start = time.perf_counter()
        tokens = run(ids).numpy()
        times.append(time.perf_counter() - start)
    assert tokens.shape == (BATCH, NEW + 1), tokens.shape
    return {"first": times[0], "later": min(times[1:]), "tokens": tokens.tolist()}


def main() -> None:
    """Run all contenders in turns and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS[1:]), choices=CONTENDERS)
    parser.add_argument("--one", nargs=3, metavar=("NAME", "FOLDER", "BEAMS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, folder, beams = options.one
        print(json.dumps(contender(name, folder, int(beams), options.calls)))
        return
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as folder:
        make_folder(folder, "tiny" if options.tiny else "base")
        for beams in options.beams:
            best: dict[str, dict[str, Any]] = {}
            for _ in range(options.rounds):
                for name in options.contenders:
                    command = [sys.executable, "-m", "benchmarks.tf_generate", "--calls", str(options.calls)]
                    command += ["--one", name, folder, str(beams)]
                    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
                    if done.returncode:
                        raise SystemExit(done.stderr[-3000:])
                    found = json.loads(done.stdout.splitlines()[-1])
                    fastest = {key: min(found[key], best.get(name, found)[key]) for key in ("first", "later")}
                    best[name] = found | fastest
            for name, found in best.items():
                speed = BATCH * NEW / found["later"]
                print(f"beams {beams}  {name:18} {speed:8.1f} tokens/s   first {found['first']:6.1f} s", flush=True)
            if {"ours-xla", "transformers-xla"} <= set(best):
                ours, theirs = best["ours-xla"], best["transformers-xla"]
                print(generation_row(beams, BATCH * NEW, ours, theirs))
                rows = zip(ours["tokens"], theirs["tokens"], strict=True)
                pairs = [pair for one, other in rows for pair in zip(one, other, strict=True)]
                print(f"equal tokens: {sum(one == other for one, other in pairs) / len(pairs):.1%}", flush=True)


if __name__ == "__main__":
    main()
