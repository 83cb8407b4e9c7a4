"""A stack alone equals the reference: states of every family, masked language models, causal models as encoders."""

import json

import pytest
import torch
import transformers

from parity.compare import (
    ODD_PADDING,
    POSITIONS,
    UNUSED,
    assert_close,
    assert_same_gradients,
    assert_same_tensors,
    on_tokens,
)
from parity.tiny import (
    ENCODERS,
    EVERYTHING,
    FORGETFUL,
    HALVES,
    MASKED,
    NEWEST,
    SINUSOIDAL,
    call,
    configuration,
    randomise,
    saved,
    source_batch,
)
from warmstart import AutoModel, AutoModelForMaskedLM, EncoderDecoderModel
from warmstart.torch.elements import ACTIVATIONS

pytestmark = pytest.mark.v5

CAUSAL = {
    "gpt2": ("gpt2", {}),
    "xglm": ("xglm", {}),
    "llama": ("llama", {}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    **{name: (name, {}) for name in ("gptj", "gpt_neox", "phi", "stablelm", "starcoder2", "olmo2", "smollm3")},
    **{name: (name, {}) for name in ("olmo3", "phi3", "glm", "glm4", "cohere", "cohere2", "granite", "gpt_bigcode")},
    **{name: (name, {}) for name in ("opt", "gpt_neo", "bloom", "falcon")},
    "gemma3_text": ("gemma3_text", {}),
    "qwen3-mixed": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"]},
    ),
}

EAGER = ("xglm", "gptj", "gpt_neo", "bloom", "gemma2")  # the other attention is not there, or caps no score


def reference_stack(family, attention="eager", **options):
    """The reference's stack with its own names: an encoder that is half of a whole stands inside that."""
    torch.manual_seed(0)
    config = configuration(family, **options)
    return randomise(transformers.AutoModel.from_config(config, attn_implementation=attention))


@pytest.mark.parametrize("family", ENCODERS)
def test_states(family, tmp_path):
    whole = reference_stack(family)
    folder = saved(whole, tmp_path / "theirs")
    ours, theirs = AutoModel.from_pretrained(folder), whole.encoder if family in HALVES else whole
    ids, mask = source_batch(theirs.config.pad_token_id)
    batch = {"input_ids": ids, "attention_mask": mask, **EVERYTHING}
    found, wanted = call(ours.train(), **batch), call(theirs.train(), **batch)
    for name in ("last_hidden_state", "hidden_states", "attentions"):
        values = [
            on_tokens(output[name], mask) if family in ODD_PADDING else output[name] for output in (found, wanted)
        ]
        assert_close(*values, name)
    for states in (found.last_hidden_state, wanted.last_hidden_state):
        (states * torch.linspace(-1, 1, states.shape[-1]) * mask[..., None]).sum().backward()
    if family not in HALVES:  # its file holds more than the encoder
        assert_same_gradients(ours, theirs, 1e-4)  # a sum, not a mean: they are about 10
    unused = r"^decoder\." if family in HALVES else UNUSED
    unused += f"|{POSITIONS}" if family in SINUSOIDAL else ""
    assert_same_tensors(saved(ours, tmp_path / "ours"), folder, unused)
    if family in FORGETFUL:
        return
    opened = type(whole).from_pretrained(tmp_path / "ours", attn_implementation="eager")
    opened = opened.encoder if family in HALVES else opened
    assert torch.equal(call(opened, **batch).last_hidden_state, wanted.last_hidden_state)


@pytest.mark.parametrize("family", MASKED)
def test_masked_language_model(family, tmp_path):
    torch.manual_seed(0)
    config = configuration(family)
    theirs = randomise(transformers.AutoModelForMaskedLM.from_config(config, attn_implementation="eager"))
    folder = saved(theirs, tmp_path / "theirs")
    ours = AutoModelForMaskedLM.from_pretrained(folder)
    ids, mask = source_batch(config.pad_token_id)
    labels = ids.masked_fill((ids % 3 > 0) | (mask == 0), -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, **EVERYTHING}
    found, wanted = call(ours, **batch), call(theirs, **batch)
    for name in ("loss", "logits", "hidden_states", "attentions"):
        values = (found[name], wanted[name])
        if family in ODD_PADDING and name != "loss":
            values = (on_tokens(value, mask) for value in values)
        assert_close(*values, name)
    found.loss.backward()
    wanted.loss.backward()
    assert_same_gradients(ours, theirs)
    unused = f"{UNUSED}|{POSITIONS}" if family in SINUSOIDAL else UNUSED
    assert_same_tensors(saved(ours, tmp_path / "ours"), folder, unused)


@pytest.fixture(params=CAUSAL.values(), ids=CAUSAL)
def causal(request, tmp_path):
    """The reference's causal stack, its folder, and the folder of a decoder."""
    family, options = request.param
    theirs = reference_stack(family, "eager" if family in EAGER else "sdpa", **options)
    return theirs, saved(theirs, tmp_path / "encoder"), saved(reference_stack("bert"), tmp_path / "decoder")


def both_ways(mask, config):
    """What the reference takes for a mask that is ready-made: 0 where a token sees, and where not, the least number.

    A window reaches as far forwards as backwards.
    """
    place = torch.arange(mask.shape[1])
    distance = (place[:, None] - place).abs()
    window = getattr(config, "sliding_window", None) or mask.shape[1]
    seen = mask[:, None, None].bool()
    if config.model_type == "xglm" and not NEWEST:  # which wants 1 where a token sees
        return seen.expand(-1, 1, len(place), -1).float()
    full, sliding = (
        torch.where(x, 0.0, torch.finfo().min) for x in (seen.expand(-1, 1, len(place), -1), seen & (distance < window))
    )
    if (types := getattr(config, "layer_types", None)) is not None:
        return {"full_attention": full, "sliding_attention": sliding} if len(set(types)) > 1 else {types[0]: full}
    return sliding


def both_ways_alibi(rows, length, heads):
    """Scores fall with the distance, either way: for each row and head by its slope (Press et al. 2022)."""
    place = torch.arange(length)
    slopes = torch.tensor([2.0 ** (-8 * (head + 1) / heads) for head in range(heads)])
    return (-slopes[:, None, None] * (place[:, None] - place).abs()).repeat(rows, 1, 1)


@pytest.mark.parametrize("side", ["right", "left"])
def test_causal_model_reads_both_ways_by_default(causal, side):
    theirs, folder, decoder = causal
    ours = EncoderDecoderModel.from_encoder_decoder_pretrained(folder, decoder).encoder
    ids, mask = source_batch(theirs.config.pad_token_id, side=side)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    found = ours(ids, mask).last_hidden_state
    if theirs.config.model_type == "gpt_neo":  # it keeps order and window in its layers
        for block, kind in zip(theirs.h, theirs.config.attention_layers, strict=True):
            own = block.attn.attention.bias
            place = torch.arange(own.shape[-1])
            own |= (place[:, None] - place).abs() < (theirs.config.window_size if kind == "local" else len(place))
    if theirs.config.model_type == "bloom":
        theirs.build_alibi_tensor = lambda mask, heads, dtype: both_ways_alibi(*ids.shape, heads)
    wanted = call(theirs, input_ids=ids, attention_mask=both_ways(mask, theirs.config), position_ids=positions)
    wanted, real = wanted.last_hidden_state, mask.bool()
    assert_close(found[real], wanted[real], "last_hidden_state")
    for states in (found, wanted):
        (states * torch.linspace(-1, 1, states.shape[-1]))[real].mean().backward()
    assert_same_gradients(ours, theirs)


@torch.no_grad()
def test_causal_model_reads_one_way_when_asked(causal):
    theirs, folder, decoder = causal
    pair = EncoderDecoderModel.from_encoder_decoder_pretrained(folder, decoder, encoder_is_causal=True)
    ids, mask = source_batch(theirs.config.pad_token_id)
    wanted = call(theirs, input_ids=ids, attention_mask=mask, output_hidden_states=True)
    for ours in (pair.encoder, AutoModel.from_pretrained(folder), AutoModel.from_pretrained(folder, is_causal=True)):
        found = ours(ids, mask, output_hidden_states=True)
        for name in ("last_hidden_state", "hidden_states"):
            values = (found[name], wanted[name])
            if theirs.config.model_type in ODD_PADDING:
                values = (on_tokens(value, mask) for value in values)
            assert_close(*values, name)


@torch.no_grad()
def test_direction_is_kept(causal, tmp_path):
    """Later tokens change earlier states or not, as was asked when the pair was made, and so after save and load."""
    _, folder, decoder = causal
    ids, _ = source_batch(None, (5, 5))
    later = ids.clone()
    later[:, 1] = ids[:, 1].flip(0)
    for one_way in (True, False):
        options = {"encoder_is_causal": True} if one_way else {}
        made = EncoderDecoderModel.from_encoder_decoder_pretrained(folder, decoder, **options)
        loaded = EncoderDecoderModel.from_pretrained(saved(made, tmp_path / f"{one_way}"))
        for model in (made, loaded):
            before, after = (model.encode(x).last_hidden_state[:, 0] for x in (ids, later))
            assert torch.allclose(before, after, atol=1e-6) == one_way
            assert not torch.allclose(before, after, atol=1e-3) or one_way


@torch.no_grad()
def test_gemma_that_was_trained_to_read_both_ways(tmp_path):
    """As EmbeddingGemma: its window counts both sides. The reference writes the half that it computes with."""
    theirs = reference_stack("gemma3_text", use_bidirectional_attention=True, sliding_window=5)
    folder = saved(theirs, tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"sliding_window": 5}))
    ids, mask = source_batch(theirs.config.pad_token_id)
    found = AutoModel.from_pretrained(folder)(ids, mask).last_hidden_state
    wanted = call(theirs, input_ids=ids, attention_mask=mask).last_hidden_state
    assert_close(found[mask > 0], wanted[mask > 0], "last_hidden_state")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x, y = (torch.linspace(-6, 6, 301).requires_grad_() for _ in range(2))
    found, wanted = ACTIVATIONS[name](x), transformers.activations.ACT2FN[name](y)
    assert_close(found, wanted, name, 2e-6)
    found.sum().backward()
    wanted.sum().backward()
    assert_close(x.grad, y.grad, f"gradient of {name}", 2e-6)
