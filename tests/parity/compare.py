"""Comparisons of ours with the reference: outputs field by field, gradients and files weight by weight."""

import copy
import re
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from warmstart.checkpoint.names import pack
from warmstart.torch import loading

BOUND = 1e-5
OUTPUTS = (
    "loss",
    "logits",
    "encoder_last_hidden_state",
    "encoder_hidden_states",
    "encoder_attentions",
    "decoder_hidden_states",
    "decoder_attentions",
    "cross_attentions",
)

# OPT gives padding another position, DeBERTa lets it see padding, and a whole window of GPT-Neo may be padding: what
# stands there differs.
ODD_PADDING = ("opt", "gpt_neo", "deberta-v2")


def assert_close(ours, theirs, what, bound=BOUND):
    """Tensors, or tuples of tensors, of equal shapes and equal within the bound."""
    if isinstance(theirs, (tuple, list)):
        assert len(ours) == len(theirs), f"{what}: {len(ours)} of ours, {len(theirs)} of theirs"
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_close(one, other, f"{what}[{index}]", bound)
        return
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)} of ours, {tuple(theirs.shape)} of theirs"
    error = (ours - theirs).abs().max().item()
    assert error <= bound, f"{what}: differs by {error:.1e}"


def assert_same_outputs(ours, theirs, names=OUTPUTS, bound=BOUND):
    """Every named field of two outputs."""
    for name in names:
        assert theirs[name] is not None, f"the reference has no {name}"
        assert_close(ours[name], theirs[name], name, bound)


def on_tokens(value, mask):
    """A tensor, or a tuple of them, without what stands in padding: there it sees nothing, and nothing sees it."""
    if isinstance(value, tuple):
        return tuple(on_tokens(x, mask) for x in value)
    return (value.transpose(1, 2) if value.dim() == 4 else value)[mask.bool()]


def gradients(model):
    """Our gradients under the checkpoint's names: what would be written if they were the weights."""
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert parameter.grad is not None, f"{name} has no gradient"
        found[name] = parameter.grad
    sizes, entries = loading.saved(model, model.sides(), found)
    return canonical({key: pack(entries, found, key, torch.cat) for key in sizes})


def assert_same_gradients(ours, theirs, bound=BOUND, least=20 * BOUND):
    """Every gradient of the reference is ours, and the other way round.

    Each must be at least as large as `least`, for the bound to mean something; but a key's bias moves all scores of a
    query alike, so that without rotary positions its gradient is 0.
    """
    mine = gradients(ours)
    named = canonical(dict(theirs.named_parameters(remove_duplicate=False)))
    if not mine.keys() <= named.keys():  # in memory they have other names there than in files
        return assert_close_by_name(mine, as_saved(theirs), bound)
    for name, gradient in mine.items():
        assert_close(gradient, named[name].grad, f"gradient of {name}", bound)
        assert gradient.abs().max() >= least or "bias" in name, f"the gradient of {name} is too small to compare"
    compared = {id(named[name]) for name in mine}
    left = [name for name, parameter in named.items() if parameter.grad is not None and id(parameter) not in compared]
    assert not left, f"gradients that ours has not: {left}"


def as_saved(model):
    """The gradients of a model of the reference under the names of its files."""
    twin = copy.deepcopy(model)
    for mine, parameter in zip(twin.parameters(), model.parameters(), strict=True):
        mine.data = parameter.grad.clone()
    with tempfile.TemporaryDirectory() as folder:
        twin.save_pretrained(folder)
        return tensors(folder)


def assert_close_by_name(ours, theirs, bound):
    """Two dictionaries of tensors have the same names and, within the bound, the same values."""
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert_close(ours[name], theirs[name], f"gradient of {name}", bound)


UNUSED = r"(^|\.)pooler\.|\._float_tensor$"
POSITIONS = r"(^|\.)embed_positions\.weight$"


def assert_same_tensors(ours, theirs, unused=UNUSED):
    """The weights in two folders have the same names and the same bits, but for those that are there for no use."""
    ours, theirs = (
        {name: tensor for name, tensor in tensors(folder).items() if not re.search(unused, name)}
        for folder in (ours, theirs)
    )
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype, name
        assert torch.equal(ours[name], theirs[name]), f"{name} has other values"


def tensors(folder):
    """Every tensor of a folder's safetensors files, none twice."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        part = load_file(path)
        assert not found.keys() & part.keys()
        found.update(part)
    return canonical(found)


def canonical(named):
    """A head's bias under the one name that is computed with: an untied head of version 5 keeps another, unused."""
    found = dict(named)
    for name in named:
        if re.search(r"(^|\.)(predictions|lm_head)\.bias$", name):
            bias = found.pop(name)
            found.setdefault(f"{name.removesuffix('bias')}decoder.bias", bias)
    return found
