"""Who takes part, on what, in which types. Data, and the few lines that differ between contenders."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from benchmarks.tasks import Size

# name -> (module, type); the order is that of the table
CONTENDERS = {
    "transformers fp32": ("transformers", "float32"),
    "transformers bf16": ("transformers", "bfloat16"),
    "transformers int8": ("transformers", "int8"),
    "ctranslate2 fp32": ("ctranslate2", "float32"),
    "ctranslate2 int8": ("ctranslate2", "int8"),
    "warmstart fp32": ("warmstart", "float32"),
    "warmstart bf16": ("warmstart", "bfloat16"),
    "warmstart int8": ("warmstart", "int8"),
}

# heading -> (sources of a batch, beams)
CELLS = {
    "greedy, batch 8": (8, 1),
    "4 beams, batch 8": (8, 4),
    "greedy, batch 1": (1, 1),
    "4 beams, batch 1": (1, 4),
}

# Bytes of a weight, and of a number of the kept keys and values.
BYTES = {"float32": (4, 4), "bfloat16": (2, 2), "int8": (1, 2)}


def is_installed(name: str) -> bool:
    """Whether a contender can run here."""
    return importlib.util.find_spec(CONTENDERS[name][0]) is not None


def load(name: str, folder: str, size: Size) -> Any:
    """The model of a folder, as a user of this library would load it for speed."""
    import torch

    module, dtype = CONTENDERS[name]
    if module == "ctranslate2":  # it has no bert2bert: one of the same sizes
        from benchmarks.decode.same_size import Translator

        return Translator(size, Path(folder).with_name("ctranslate2"), dtype, torch.get_num_threads())
    library = importlib.import_module(module)
    if module == "warmstart":
        return library.EncoderDecoderModel.from_pretrained(folder, dtype=dtype)
    kept = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = library.EncoderDecoderModel.from_pretrained(folder, dtype=kept).eval()
    if dtype == "int8":
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that this will move to another package
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return model
