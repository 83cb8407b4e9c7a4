"""The table of what is measured, and the sizes at which it is measured. Data alone: nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass

LIBRARIES = ("warmstart", "transformers")


@dataclass(frozen=True)
class Task:
    """One thing to measure. `work` names the function in `work.py` that does it, `options` are its arguments.

    `pair` is the checkpoint that it works on; None needs none. `target` is the most that our seconds may be as a share
    of the reference's; None has no target here. `runs` is how often each contender gets a process of its own.
    """

    name: str
    work: str
    pair: str | None
    target: float | None
    runs: int
    says: str
    options: tuple[tuple[str, object], ...] = ()
    contenders: tuple[str, ...] = LIBRARIES


TASKS = (
    Task(
        "import",
        "import_class",
        None,
        1 / 3,
        7,
        "from ... import EncoderDecoderModel",
        # Both libraries stand on torch: how long that takes alone is the floor of either.
        contenders=(*LIBRARIES, "torch"),
    ),
    Task("load bert2bert", "load", "bert2bert", 1 / 2, 4, "from_pretrained, page cache warm"),
    Task("load bert2gpt2", "load", "bert2gpt2", 1 / 2, 4, "from_pretrained, page cache warm"),
    Task("forward bert2bert", "forward", "bert2bert", 1.0, 3, "one batch with labels"),
    Task("forward bert2gpt2", "forward", "bert2gpt2", 1.0, 3, "one batch with labels"),
    Task(
        "forward-padded bert2bert",
        "forward",
        "bert2bert",
        1.0,
        2,
        "the same, sources of 1/4 to all of the length",
        (("padded", True),),
    ),
    Task("train bert2bert", "train", "bert2bert", 1.0, 2, "forward, backward, AdamW", (("dropout", 0.1),)),
    Task("train-no-dropout bert2bert", "train", "bert2bert", 1.0, 2, "the same, dropout 0", (("dropout", 0.0),)),
    Task("train bert2gpt2", "train", "bert2gpt2", 1.0, 1, "forward, backward, AdamW", (("dropout", 0.1),)),
    Task("generate-greedy bert2bert", "generate", "bert2bert", None, 1, "greedy, all tokens forced", (("beams", 1),)),
    Task("generate-beams bert2bert", "generate", "bert2bert", None, 1, "4 beams, all tokens forced", (("beams", 4),)),
)


@dataclass(frozen=True)
class Size:
    """Shapes: a batch of `batch` sources of `source` tokens with `target` tokens each, through stacks of this size."""

    batch: int
    source: int
    target: int
    layers: int
    hidden: int
    heads: int
    vocabulary: dict[str, int]


SIZES = {
    "base": Size(8, 256, 64, 12, 768, 12, {"bert": 30522, "gpt2": 50257}),
    "tiny": Size(2, 24, 8, 2, 32, 2, {"bert": 300, "gpt2": 400}),  # to try the programme itself
}
PAIRS = {"bert2bert": ("bert", "bert"), "bert2gpt2": ("bert", "gpt2")}

# The fields that hold a family's dropout, and its shape fields.
DROPOUT = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
}


def shape_fields(family: str, size: Size) -> dict[str, int]:
    """The fields of a family's configuration at a size."""
    vocabulary = {"vocab_size": size.vocabulary[family]}
    if family == "gpt2":
        return vocabulary | {"n_layer": size.layers, "n_embd": size.hidden, "n_head": size.heads}
    return vocabulary | {
        "num_hidden_layers": size.layers,
        "hidden_size": size.hidden,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.hidden,
    }
