"""CTranslate2, which takes no bert2bert: a translator of exactly its sizes, with random weights, behind `generate`.

The layers, widths, head counts, vocabulary and norms are those of the bert2bert of a size; what it lacks is the head's
dense layer, 1 % of the work of a step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tasks import Size


class Translator:
    """A CTranslate2 translator with the arguments of `generate` that the benchmark uses."""

    def __init__(self, size: Size, folder: Path, dtype: str, threads: int):
        import ctranslate2

        if not (folder / "model.bin").exists():
            write(size, folder)
        self.inner = ctranslate2.Translator(
            str(folder), device="cpu", compute_type=dtype, intra_threads=threads, inter_threads=1
        )

    def generate(self, input_ids: Any, num_beams: int, max_new_tokens: int, min_new_tokens: int = 0, **_: Any) -> Any:
        """Ids (b, s) to ids (b, up to the new tokens)."""
        rows = [[str(number) for number in row if number] for row in input_ids.tolist()]
        results = self.inner.translate_batch(
            rows, beam_size=num_beams, max_decoding_length=max_new_tokens, min_decoding_length=min_new_tokens,
            max_input_length=0,
        )  # fmt: skip
        longest = max(len(result.hypotheses[0]) for result in results)
        return np.array([[int(x) for x in r.hypotheses[0]] + [0] * (longest - len(r.hypotheses[0])) for r in results])


def write(size: Size, folder: Path) -> None:
    """Write the translator's files."""
    from ctranslate2.specs import TransformerSpec
    from ctranslate2.specs.common_spec import Activation

    spec = TransformerSpec.from_config(
        (size.layers, size.layers), size.heads, pre_norm=False, activation=Activation.GELU, layernorm_embedding=True
    )
    draw, h, vocabulary = np.random.default_rng(0), size.hidden, size.vocabulary["bert"]

    def matrix(n: int, k: int) -> Any:
        return draw.standard_normal((n, k), dtype=np.float32) * np.float32(0.02)

    def linear(part: Any, n: int, k: int) -> None:
        part.weight, part.bias = matrix(n, k), np.zeros(n, np.float32)

    def norm(part: Any) -> None:
        part.gamma, part.beta = np.ones(h, np.float32), np.zeros(h, np.float32)

    encoder, decoder = spec.encoder, spec.decoder
    for table in (encoder.embeddings[0], decoder.embeddings):
        table.weight = matrix(vocabulary, h)
    for stack in (encoder, decoder):
        stack.scale_embeddings = False
        stack.position_encodings.encodings = matrix(2 * size.source, h)
        norm(stack.layernorm_embedding)
        for layer in stack.layer:
            linear(layer.self_attention.linear[0], 3 * h, h)
            linear(layer.self_attention.linear[1], h, h)
            linear(layer.ffn.linear_0, 4 * h, h)
            linear(layer.ffn.linear_1, h, 4 * h)
            for part in (layer.self_attention, layer.ffn):
                norm(part.layer_norm)
            if stack is decoder:
                for place, outputs in enumerate((h, 2 * h, h)):
                    linear(layer.attention.linear[place], outputs, h)
                norm(layer.attention.layer_norm)
    linear(decoder.projection, vocabulary, h)
    words = [str(number) for number in range(vocabulary)]
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = words[3], words[1], words[2]
    spec.config.decoder_start_token = words[1]
    spec.validate()
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
