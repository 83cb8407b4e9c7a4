"""A decoder alone, without cross-attention, equals the reference: outputs, gradients, padding, cached decoding."""

import json
from dataclasses import dataclass

import pytest
import torch
import transformers

from parity.compare import (
    ODD_PADDING,
    POSITIONS,
    UNUSED,
    assert_close,
    assert_same_gradients,
    assert_same_outputs,
    assert_same_tensors,
    on_tokens,
)
from parity.tiny import (
    COUNTS_PADDING,
    DECODERS,
    EVERYTHING,
    FORGETFUL,
    HALVES,
    SINUSOIDAL,
    call,
    configuration,
    randomise,
    reference_causal,
    rotary_fields,
    saved,
    skip_in_5,
    source_batch,
)
from warmstart import AutoModelForCausalLM, LlamaConfig

pytestmark = pytest.mark.v5

LENGTHS = (12, 7, 4)  # tokens of each row; longer than the windows, and than the 8 positions before rotary scaling
SCALED = {"original_max_position_embeddings": 8, "rope_theta": 100.0}
ROTARIES = {
    "default": {"rope_type": "default", "rope_theta": 100.0},
    "linear": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0},
    "llama3": {"rope_type": "llama3", **SCALED, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", **SCALED, "factor": 8.0},
    "yarn-fast-slow": {"rope_type": "yarn", **SCALED, "factor": 8.0, "beta_fast": 4.0, "beta_slow": 0.5},
    "yarn-attention": {"rope_type": "yarn", **SCALED, "factor": 8.0, "attention_factor": 0.7},
    "yarn-scales": {"rope_type": "yarn", **SCALED, "factor": 8.0, "mscale": 1.2, "mscale_all_dim": 0.6},
    "yarn-uncut": {"rope_type": "yarn", **SCALED, "factor": 8.0, "truncate": False},
}
MIXED = {
    "use_sliding_window": True,
    "sliding_window": 3,
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}
# (family, what is odd about it)
CASES = {
    **{family: (family, {}) for family in DECODERS},
    **{f"llama-{kind}": ("llama", {"rotary": rotary, "head_dim": 8}) for kind, rotary in ROTARIES.items()},
    "qwen3-yarn": ("qwen3", {"rotary": ROTARIES["yarn"]}),
    "gpt2-by-layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2-unscaled": ("gpt2", {"scale_attn_weights": False}),
    "trocr-computed": ("trocr", {"use_learned_position_embeddings": False}),
    "bigbird_pegasus-biases": ("bigbird_pegasus", {"use_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-ungrouped": ("llama", {"num_key_value_heads": 4}),
    "llama-one-key": ("llama", {"num_key_value_heads": 1}),
    "llama-attention-bias": ("llama", {"attention_bias": True}),
    "llama-mlp-bias": ("llama", {"mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 12}),
    "llama-gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "mistral-everywhere": ("mistral", {"sliding_window": None}),
    "mistral-heads": ("mistral", {"head_dim": 6, "sliding_window": 5}),
    "mistral-tied": ("mistral", {"tie_word_embeddings": True}),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen2-mixed": ("qwen2", MIXED),
    "qwen2-upper": ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "qwen3-untied": ("qwen3", {"tie_word_embeddings": False}),
    "qwen3-attention-bias": ("qwen3", {"attention_bias": True}),
    "qwen3-mixed": ("qwen3", MIXED),
    "gemma2-uncapped": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3-linear": ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "gemma3-untied": ("gemma3_text", {"tie_word_embeddings": False, "attention_bias": True}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "stablelm-12b": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "phi-head-norms": ("phi", {"qk_layernorm": True}),
    "starcoder2-plain": ("starcoder2", {"use_bias": False, "sliding_window": None, "tie_word_embeddings": False}),
    "olmo2-tied": ("olmo2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "olmo3-yarn": (
        "olmo3",
        {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8}},
    ),
    "phi3-tied": ("phi3", {"tie_word_embeddings": True, "partial_rotary_factor": 1.0, "sliding_window": None}),
    "glm-unbiased": ("glm", {"attention_bias": False, "tie_word_embeddings": True}),
    "cohere-plus": ("cohere", {"use_qk_norm": True, "logit_scale": 0.0625}),
    "cohere-biases": ("cohere", {"attention_bias": True, "tie_word_embeddings": False}),
    "glm4-unbiased": ("glm4", {"attention_bias": False, "tie_word_embeddings": True}),
    "cohere2-biases": ("cohere2", {"attention_bias": True, "tie_word_embeddings": False, "logit_scale": 0.7}),
    "granite-tied": ("granite", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "gpt_bigcode-heads": ("gpt_bigcode", {"multi_query": False}),
    "smollm3-window": ("smollm3", {"use_sliding_window": True, "sliding_window": 3, "tie_word_embeddings": False}),
    "opt-after": ("opt", {"do_layer_norm_before": False}),
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 12}),
    "opt-unbiased": ("opt", {"enable_bias": False, "tie_word_embeddings": False}),
    "gpt_neo-untied": ("gpt_neo", {"tie_word_embeddings": False}),
    "bloom-heads": ("bloom", {"hidden_size": 18, "n_head": 6}),
    "falcon-groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-one-norm": (
        "falcon",
        {
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
        },
    ),
    "falcon-sequential": ("falcon", {"multi_query": False, "parallel_attn": False, "bias": True}),
}
# The reference's classes that take no positions, do not shift labels, and are never without cross-attention.
HALF = (*HALVES, "trocr")
FIELDS = ("logits", "hidden_states", "attentions")


@dataclass
class Models:
    """The reference's model, the folder of its files, and ours from that."""

    family: str
    theirs: object
    folder: object
    ours: AutoModelForCausalLM


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def models(request, tmp_path_factory):
    family, options = request.param
    skip_in_5(next(name for name, case in CASES.items() if case is request.param))
    theirs = randomise(reference_causal(family, **options))
    folder = saved(theirs, tmp_path_factory.mktemp("causal"))
    return Models(family, theirs, folder, AutoModelForCausalLM.from_pretrained(folder))


def inputs(models, side):
    """Ids, mask, labels; for the reference also the positions, which it does not count from the mask by itself."""
    ids, mask = source_batch(models.theirs.config.pad_token_id, LENGTHS, side)
    labels = ids.masked_fill(mask.cumsum(1) < 2, -100)  # what stands in padding predicts no first token
    given = {"input_ids": ids, "attention_mask": mask, "labels": labels.masked_fill(mask == 0, -100)}
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    counts_itself = models.family in COUNTS_PADDING  # from the padding id
    return given, {} if side == "right" or counts_itself else positions


def loss_of(model, given, family):
    """The loss by `labels`; but some of the reference do not shift them."""
    if family not in HALF:
        return call(model, **given).loss
    labels = given["labels"]
    logits = call(model, **{name: value for name, value in given.items() if name != "labels"}).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@pytest.fixture(params=["right", "left"])
def side(request, models):
    if request.param == "left" and models.family in HALF:
        pytest.skip("this class of the reference takes no positions, so that padding on the left shifts its tokens")
    return request.param


@torch.no_grad()
def test_outputs(models, side):
    given, positions = inputs(models, side)
    found = call(models.ours, **given, **EVERYTHING)
    wanted = call(models.theirs, **given, **positions, **EVERYTHING)
    if models.family == "opt" and models.theirs.config.word_embed_proj_dim == 12:
        # There the last of the states is projected already, here the head does that.
        found.hidden_states, wanted.hidden_states = found.hidden_states[:-1], wanted.hidden_states[:-1]
    if side == "right" and models.family not in ODD_PADDING:
        return assert_same_outputs(found, wanted, FIELDS)
    for name in FIELDS:
        assert_close(*(on_tokens(output[name], given["attention_mask"]) for output in (found, wanted)), name)


def test_loss_and_gradients(models, side):
    given, positions = inputs(models, side)
    losses = []
    for model, more in ((models.ours, {}), (models.theirs, positions)):
        model.train().zero_grad()
        losses.append(loss_of(model, {**given, **more}, None if model is models.ours else models.family))
        losses[-1].backward()
        model.eval()
    assert_close(*losses, "loss")
    assert_same_gradients(models.ours, models.theirs)


@torch.no_grad()
@pytest.mark.parametrize("steps", [(1,) * 12, (3, 1, 5, 3)], ids=["tokens", "chunks"])
def test_cached(models, side, steps):
    """Decoding in steps, each with the cache of those before it, equals one pass of the reference."""
    given, positions = inputs(models, side)
    ids, mask = given["input_ids"], given["attention_mask"]
    wanted = call(models.theirs, input_ids=ids, attention_mask=mask, **positions).logits
    cache, logits, start = None, [], 0
    for step in steps:
        end = start + step
        output = models.ours(ids[:, start:end], mask[:, :end], past_key_values=cache, use_cache=True)
        cache, start = output.past_key_values, end
        logits.append(output.logits)
    found = torch.cat(logits, 1)
    assert_close(found[mask.bool()], wanted[mask.bool()], "logits")


@torch.no_grad()
def test_files(models, tmp_path):
    unused = rf"{UNUSED}|\.encoder_attn" if models.family in HALF else UNUSED
    unused += f"|{POSITIONS}" if models.family in SINUSOIDAL else ""
    assert_same_tensors(saved(models.ours, tmp_path), models.folder, unused)
    if models.family in FORGETFUL:
        return
    opened = type(models.theirs).from_pretrained(tmp_path, attn_implementation="eager")
    ids, mask = source_batch(models.theirs.config.pad_token_id, LENGTHS)
    given = {"input_ids": ids, "attention_mask": mask}
    assert torch.equal(call(opened, **given).logits, call(models.theirs, **given).logits)


@torch.no_grad()
@pytest.mark.parametrize("newest", [False, True], ids=["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ROTARIES)
def test_spellings_of_rotary_positions(kind, newest, tmp_path):
    """Version 4 says `rope_theta` and `rope_scaling`, version 5 `rope_parameters`; both are read."""
    theirs = randomise(reference_causal("llama", rotary=ROTARIES[kind]))
    folder = saved(theirs, tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    for name in ("rope_theta", "rope_scaling", "rope_parameters"):
        fields.pop(name, None)
    (folder / "config.json").write_text(json.dumps(fields | rotary_fields(ROTARIES[kind], newest)))
    ids, mask = source_batch(None, LENGTHS)
    found = AutoModelForCausalLM.from_pretrained(folder)(ids, mask).logits
    assert_close(found, call(theirs, input_ids=ids, attention_mask=mask).logits, "logits")


FACTORS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 3.0, 5.0, 9.0]}
GROWING = {
    "dynamic": {"rotary": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 3.0}, "max_position_embeddings": 8},
    "longrope": {
        "rotary": {"rope_type": "longrope", **SCALED, **FACTORS, "factor": 4.0},
        "original_max_position_embeddings": 8,  # where version 4 has it
        "max_position_embeddings": 32,
    },
    "longrope-attention": {
        "rotary": {"rope_type": "longrope", **SCALED, **FACTORS, "factor": 4.0, "attention_factor": 1.3},
        "original_max_position_embeddings": 8,
        "max_position_embeddings": 32,
    },
}


@torch.no_grad()
@pytest.mark.parametrize("kind", GROWING)
@pytest.mark.parametrize("family", ["llama", "phi"])
def test_rotary_positions_that_change_with_the_length(family, kind, tmp_path):
    """One pass of up to the trained length, and passes of more; then one token after another."""
    options = {**GROWING[kind], **({"head_dim": 8} if family == "llama" else {"hidden_size": 64})}
    theirs = randomise(reference_causal(family, **options))
    ours = AutoModelForCausalLM.from_pretrained(saved(theirs, tmp_path))
    ids = torch.randint(6, 60, (2, 24), generator=torch.Generator().manual_seed(0))
    for length in (7, 8, 9, 24):
        wanted = call(theirs, input_ids=ids[:, :length], use_cache=False).logits
        assert_close(ours(ids[:, :length]).logits, wanted, f"logits of {length} tokens")
    call(theirs, input_ids=ids[:, :3])  # which makes the reference forget the long text
    found = wanted = None
    for end in range(7, 13):
        start = 0 if found is None else end - 1
        found = ours(ids[:, start:end], past_key_values=found and found.past_key_values, use_cache=True)
        more = {} if wanted is None else {"past_key_values": wanted.past_key_values}
        wanted = call(theirs, input_ids=ids[:, start:end], use_cache=True, **more)
        assert_close(found.logits, wanted.logits, f"token {end}")


def test_long_rope_needs_its_factors():
    options = {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0, -2.0]}}
    config = LlamaConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, **options)
    with pytest.raises(ValueError, match="needs 2 numbers above 0 as long_factor"):
        AutoModelForCausalLM(config)


@torch.no_grad()
def test_granite_multiplies_vectors_that_are_given_in_place_of_ids(tmp_path):
    theirs = randomise(reference_causal("granite"))
    ours, vectors = AutoModelForCausalLM.from_pretrained(saved(theirs, tmp_path)), torch.randn(2, 5, 16)
    assert_close(ours(inputs_embeds=vectors).logits, theirs(inputs_embeds=vectors).logits, "logits")
    ids = torch.tensor([[5, 6, 7]])
    vectors = ours.get_input_embeddings()(ids)
    assert_close(ours(inputs_embeds=vectors).logits, ours(input_ids=ids).logits, "logits")


def test_falcon_with_alibi(tmp_path):
    """As falcon-rw. The reference's own attention takes off for distance twice, so it is compared with torch's."""
    options = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
    config = configuration("falcon", **options)
    theirs = randomise(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))
    ours = AutoModelForCausalLM.from_pretrained(saved(theirs, tmp_path))
    ids, mask = source_batch(None, LENGTHS)
    labels = ids.masked_fill(mask == 0, -100)
    found, wanted = (call(x, input_ids=ids, attention_mask=mask, labels=labels) for x in (ours, theirs))
    assert_close(found.logits[mask > 0], wanted.logits[mask > 0], "logits")
    found.loss.backward()
    wanted.loss.backward()
    assert_same_gradients(ours, theirs)
    first = ours(ids[:1, :5], use_cache=True)
    rest = ours(ids[:1, 5:], past_key_values=first.past_key_values).logits
    assert_close(rest, found.logits[:1, 5:], "cached")
