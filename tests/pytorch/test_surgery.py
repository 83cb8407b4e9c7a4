"""Changes to models that exist: vocabularies, embeddings, heads taken out, parameters counted and frozen."""

import pytest
import torch
import transformers
from torch import nn

from tiny_models import PAD, START, VOCABULARY, batch, config, pair, spread_out
from warmstart import AutoModel, AutoModelForCausalLM, EncoderDecoderModel

SIDES = ["encoder", "decoder"]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def same_weights(ours, theirs):
    """Bit for bit; what is computed with them may differ in the last bits, since a loaded matrix may lie turned."""
    pairs = zip(ours.named_parameters(), theirs.named_parameters(), strict=True)
    assert all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)


def fields(family, **more):
    """Keywords for the reference's configuration of the same shape."""
    return {name: x for name, x in config(family, **more).to_dict().items() if name not in ("model_type", "is_causal")}


# Vocabularies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "bart", "llama"])
@pytest.mark.parametrize("size", [VOCABULARY - 7, VOCABULARY + 9])
def test_resized_rows_are_kept_and_new_ones_are_the_mean(family, size):
    model = spread_out(AutoModelForCausalLM(config(family, is_decoder=True)))
    table, bias = model.get_input_embeddings().weight.clone(), getattr(model.head.output, "bias", None)
    bias = None if bias is None else bias.clone()
    returned = model.resize_token_embeddings(size)
    assert returned is model.get_input_embeddings() and returned.num_embeddings == size == model.config.vocab_size
    kept = min(size, VOCABULARY)
    assert torch.equal(returned.weight[:kept], table[:kept])
    assert model.head.output.weight.shape[0] == model.head.output.out_features == size
    for row in range(kept, size):
        close(returned.weight[row], table.mean(0))
        close(model.head.output.weight[row], model.head.output.weight[:kept].mean(0))
        if bias is not None:
            close(model.head.output.bias[row], bias.mean())
    assert model(torch.tensor([[size - 1]])).logits.shape == (1, 1, size)


def test_resizing_at_random_and_to_a_multiple():
    model = AutoModel(config("bert", vocab_size=100, initializer_range=0.05))
    torch.manual_seed(0)
    table = model.resize_token_embeddings(1001, pad_to_multiple_of=8, mean_resizing=False)
    assert table.num_embeddings == 1008
    assert abs(table.weight[100:].std().item() / 0.05 - 1) < 0.05
    assert model.resize_token_embeddings() is table and model.resize_token_embeddings(1008) is table
    for wrong in (0, -3, 2.5):
        with pytest.raises(ValueError, match=r"new_num_tokens.*len\(tokenizer\)"):
            model.resize_token_embeddings(wrong)


def test_resizing_a_pair_needs_a_side_where_the_sizes_differ():
    model = pair("bert", config("gpt2", vocab_size=VOCABULARY + 1))
    with pytest.raises(ValueError, match=f"vocabularies of {VOCABULARY} and {VOCABULARY + 1}: say side="):
        model.resize_token_embeddings(50)
    with pytest.raises(ValueError, match="side 'both of them' is not known"):
        model.resize_token_embeddings(50, side="both of them")
    model.resize_token_embeddings(50, side="both")
    assert model.config.encoder.vocab_size == model.config.decoder.vocab_size == 50


def test_the_joint_vocabulary_of_a_pair_follows_the_decoders():
    """`config.vocab_size`, which the documentation sets on the pair."""
    model = pair("bert", "bert")
    model.config.vocab_size = model.config.decoder.vocab_size
    model.resize_token_embeddings(50, side="decoder")
    assert model.config.vocab_size == 50


def test_resizing_keeps_what_is_frozen_frozen_and_types():
    model = pair("bert", "gpt2").to(torch.bfloat16)
    model.freeze_encoder()
    model.resize_token_embeddings(50, side="both")
    table, other = model.encoder.embeddings.token, model.decoder.embeddings.token
    assert not table.weight.requires_grad and other.weight.requires_grad
    assert table.weight.dtype == other.weight.dtype == torch.bfloat16
    assert table.padding_idx == PAD


# Embeddings -------------------------------------------------------------------------------------------------------


def test_input_and_output_embeddings_of_a_pair():
    model = pair("bert", "gpt2")
    assert model.get_input_embeddings() is model.encoder.embeddings.token
    assert model.get_output_embeddings() is model.decoder.head.output
    assert AutoModel(config("bert")).get_output_embeddings() is None
    table = nn.Embedding(VOCABULARY, 16)
    model.set_input_embeddings(table)
    assert model.encoder.embeddings.token is table
    head = nn.Linear(12, VOCABULARY, bias=False)
    model.set_output_embeddings(head)
    assert model.decoder.head.output is head
    assert model(**batch()).loss.isfinite()


@pytest.mark.parametrize("tied", [True, False])
def test_new_input_embeddings_are_the_heads_where_it_is_tied(tied):
    model = AutoModelForCausalLM(config("gpt2", tie_word_embeddings=tied))
    table = nn.Embedding(VOCABULARY, 12)
    model.set_input_embeddings(table)
    assert (model.get_output_embeddings().weight is table.weight) == tied
    model.tie_weights()
    assert (model.get_output_embeddings().weight is table.weight) == tied


# Heads ------------------------------------------------------------------------------------------------------------

PRUNED = {0: [1], 1: [0, 2]}


def pruned_pair(family, tmp_path):
    """A model of the reference and ours with the same weights, both pruned in two steps."""
    sizes = {"gpt2": {"n_embd": 16, "n_head": 4}}.get(family, {"num_attention_heads": 4})
    kinds = {"gpt2": (transformers.GPT2Config, transformers.GPT2Model)}
    settings, kind = kinds.get(family, (transformers.BertConfig, transformers.BertModel))
    torch.manual_seed(0)
    theirs = spread_out(kind(settings(**fields(family, **sizes))).eval())
    theirs.save_pretrained(tmp_path / "whole")
    ours = AutoModel.from_pretrained(tmp_path / "whole")
    for heads in ({1: [2]}, PRUNED):
        theirs.prune_heads(heads)
        ours.prune_heads(heads)
    return theirs, ours


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_pruned_heads_equal_the_reference_here_and_there(family, tmp_path):
    theirs, ours = pruned_pair(family, tmp_path)
    ids = batch()["input_ids"]
    expected = theirs(ids).last_hidden_state
    whole = AutoModel.from_pretrained(tmp_path / "whole")
    assert (whole(ids).last_hidden_state - expected).abs().max() > 0.01
    close(ours(ids).last_hidden_state, expected)
    assert ours.config.pruned_heads == PRUNED
    ours.save_pretrained(tmp_path / "ours")
    again = AutoModel.from_pretrained(tmp_path / "ours")
    same_weights(again, ours)
    close(again(ids).last_hidden_state, ours(ids).last_hidden_state)
    close(type(theirs).from_pretrained(tmp_path / "ours")(ids).last_hidden_state, expected)
    theirs.save_pretrained(tmp_path / "theirs")
    close(AutoModel.from_pretrained(tmp_path / "theirs")(ids).last_hidden_state, expected)
    with pytest.raises(ValueError, match="none of its 4 heads left"):
        again.prune_heads({1: [1, 3]})


def test_pruning_a_side_of_a_pair(tmp_path):
    """Cross-attention keeps its heads, as in the reference."""
    model = pair("bert", "gpt2")
    model.prune_heads({0: [1]})
    model.prune_heads({1: [0]}, side="decoder")
    assert model.encoder.layers[0].attention.query.out_features == 8
    decoder = model.decoder.layers[1]
    assert (decoder.attention.query.out_features, decoder.cross_attention.query.out_features) == (6, 12)
    assert (model.config.encoder.pruned_heads, model.config.decoder.pruned_heads) == ({0: [1]}, {1: [0]})
    model.save_pretrained(tmp_path)
    again = EncoderDecoderModel.from_pretrained(tmp_path)
    inputs = batch()
    same_weights(again, model)
    close(again(**inputs).logits, model(**inputs).logits)
    again(**inputs).loss.backward()
    assert all(parameter.grad is not None for parameter in again.parameters())
    assert again.generate(inputs["input_ids"], max_new_tokens=3, num_beams=2).shape[0] == 3


@pytest.mark.parametrize(("layer", "head"), [(2, 0), (-1, 0), (0, 2), (0, -1)])
def test_heads_that_are_not_there(layer, head):
    with pytest.raises(ValueError, match=f"layer {layer}, heads .{head}.: there are 2 layers of 2 heads"):
        AutoModel(config("bert")).prune_heads({layer: [head]})


def test_shared_heads_are_not_pruned():
    with pytest.raises(ValueError, match="llama shares keys and values"):
        AutoModel(config("llama")).prune_heads({0: [0]})


# Counts and frozen parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("excluded", [False, True])
def test_parameters_are_counted_as_the_reference_does(excluded, tmp_path):
    options = {"exclude_embeddings": excluded}
    bert = transformers.BertModel(transformers.BertConfig(**fields("bert")), add_pooling_layer=False)
    assert AutoModel(config("bert")).num_parameters(**options) == bert.num_parameters(**options)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields("gpt2")))
    assert AutoModelForCausalLM(config("gpt2")).num_parameters(**options) == gpt2.num_parameters(**options)
    sides = transformers.BertConfig(**fields("bert")), transformers.GPT2Config(**fields("gpt2"))
    joint = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*sides)
    theirs, ours = transformers.EncoderDecoderModel(joint), pair("bert", "gpt2")
    pooler = sum(parameter.numel() for parameter in theirs.encoder.pooler.parameters())
    assert ours.num_parameters(**options) == theirs.num_parameters(**options) - pooler
    ours.freeze_encoder()
    for parameter in theirs.encoder.parameters():
        parameter.requires_grad_(False)
    assert ours.num_parameters(only_trainable=True, **options) == theirs.num_parameters(only_trainable=True, **options)


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_freezing():
    model = pair("bert", "gpt2")
    everything = trainable(model)
    model.freeze_encoder()
    assert trainable(model) == {name for name in everything if not name.startswith("encoder.")}
    model.freeze_decoder()
    assert trainable(model) == {"enc_to_dec_proj.weight", "enc_to_dec_proj.bias"}
    model.unfreeze()
    assert trainable(model) == everything
    model.freeze_all_but_cross_attention()
    crossing = {name for name in everything if "cross_attention" in name or name.startswith("enc_to_dec_proj")}
    assert trainable(model) == crossing and len(crossing) == 2 * (8 + 2) + 2
    before = {name: value.clone() for name, value in model.named_parameters()}
    model(**batch()).loss.backward()
    torch.optim.AdamW(model.parameters(), 0.1).step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == crossing


def test_norms_on_outputs_belong_to_the_cross_attention():
    model = pair("bert", "gemma2")
    everything = trainable(model)
    model.freeze_all_but_cross_attention()
    assert trainable(model) == {name for name in everything if "cross_attention" in name}
    assert any("cross_attention_output_norm" in name for name in trainable(model))


def test_freezing_one_side_of_what_is_shared():
    """Shared weights are frozen on both sides: they are one."""
    model = pair("bert", "bert", tie_encoder_decoder=True)
    model.freeze_encoder()
    assert {name.split(".")[0] for name in trainable(model)} == {"decoder"}
    assert all("cross_attention" in name or "head" in name for name in trainable(model))


# Labels -----------------------------------------------------------------------------------------------------------


def test_decoder_inputs_from_labels():
    model = pair()
    model.config.decoder_start_token_id, model.config.pad_token_id = 9, 8
    labels = torch.tensor([[5, 6, -100, 7], [-100, -100, 5, -100]])
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == [[9, 5, 6, 8], [9, 8, 8, 5]]
    assert model.prepare_decoder_input_ids_from_labels(labels=labels[:, :1]).tolist() == [[9], [9]]
    assert labels[0, 2] == -100, "the labels were changed"


def test_reference_models_give_the_same_decoder_inputs(tmp_path):
    from transformers.models.encoder_decoder.modeling_encoder_decoder import shift_tokens_right

    labels = torch.tensor([[5, 6, -100, 7], [-100, -100, 5, -100]])
    ours = pair().prepare_decoder_input_ids_from_labels(labels)
    assert torch.equal(ours, shift_tokens_right(labels.clone(), PAD, START))
