"""What bf16 and int8 change: `python -m benchmarks.decode.quality FOLDER`, a folder that `warmstart demo` has left.

On the demo's test packages, which no model saw: the loss of the references, the share of equal tokens against float32
(position by position), the share of equal texts, and ROUGE.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.decode.contenders import BYTES
from benchmarks.decode.documents import equal


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode.quality", description=__doc__)
    parser.add_argument("folder", type=Path, help="the demo's folder: model/ and report.json")
    parser.add_argument("--count", type=int, default=600, help="pairs of the test packages (600); fewer take less time")
    parser.add_argument("--beams", type=int, default=1, help="beams of the search (1)")
    given = parser.parse_args()
    rows = [measure(given.folder, dtype, given.count, given.beams) for dtype in BYTES]
    out = Table(title=f"{len(rows[0]['texts'])} texts, {given.beams} beams")
    measures = [*rows[0]["rouge"]]
    for heading in ("", "loss", "equal tokens", "equal texts", *measures):
        out.add_column(heading, justify="right")
    for dtype, row in zip(BYTES, rows, strict=True):
        same = [a == b for a, b in zip(row["texts"], rows[0]["texts"], strict=True)]
        out.add_row(
            dtype,
            f"{row['loss']:.4f}",
            f"{equal(row['ids'], rows[0]['ids']):.2%}",
            f"{sum(same) / len(same):.2%}",
            *(f"{row['rouge'][measure]:.2f}" for measure in measures),
        )
    Console(highlight=False).print(out)


def measure(folder: Path, dtype: str, count: int, beams: int) -> dict[str, Any]:
    """Loss, texts, ids and ROUGE in one type."""
    from warmstart import AutoTokenizer, EncoderDecoderModel
    from warmstart.demo.corpus import package_folders, read_package
    from warmstart.demo.recipe import Recipe, encode
    from warmstart.demo.score import held_out_loss, mean, rouge

    report = json.loads((folder / "report.json").read_text())
    wanted = set(report["corpus"]["test_packages"])
    recipe = Recipe(**report["recipe"])
    pairs = [pair for name, path in package_folders() if name in wanted for pair in read_package(name, path, count)]
    pairs = pairs[:count]
    if not pairs:
        raise SystemExit(f"{folder}: its test packages are not installed here: {', '.join(sorted(wanted))}")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = EncoderDecoderModel.from_pretrained(folder / "model", dtype=dtype)
    sources = [pair.source for pair in pairs]
    answers = model.generate_many(sources, tokenizer=tokenizer, num_beams=beams, max_source_length=recipe.source_length)
    texts = [answer.texts[0] if answer.texts else "" for answer in answers]
    return {
        "loss": held_out_loss(model, encode(tokenizer, pairs, recipe)),
        "texts": texts,
        "ids": [answer.sequences[0].tolist() if answer.sequences else [] for answer in answers],
        "rouge": {name: mean(values) for name, values in rouge(texts, pairs).items()},
    }


if __name__ == "__main__":
    main()
