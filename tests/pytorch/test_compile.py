"""`torch.compile` makes one graph of a training step, equal to eager."""

import pytest
import torch

from tiny_models import PAIRS, assert_equal_gradients, batch, config, gradients, pair, shallow
from warmstart import Seq2SeqLMOutput
from warmstart.torch.cache import KeyValueCache

# torch's own compiler warns of itself; what it says is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_training_step(model, inputs, bound=1e-6, **options):
    """A compiled step in one graph: loss, logits, cache and gradients equal those of eager."""
    model.train()
    expected = model(**inputs)
    expected.loss.backward()
    wanted = gradients(model)
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, **options)
    output = compiled(**inputs)
    output.loss.backward()
    assert isinstance(output, Seq2SeqLMOutput) and list(output) == list(expected)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=bound)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=10 * bound)
    assert_equal_gradients(gradients(model), wanted, 10 * bound)
    return compiled


@pytest.mark.parametrize(("encoder", "decoder"), [("bert", "gpt2"), ("gpt2", "llama")])
def test_one_graph_with_labels(encoder, decoder):
    check_training_step(shallow(encoder, decoder), batch(), backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_one_graph_with_labels_of_every_kind_of_pair(encoder, decoder):
    check_training_step(pair(encoder, decoder), batch(), backend="aot_eager")


def test_one_graph_without_an_attention_mask():
    """The mask is made from padding ids inside the graph."""
    inputs = batch(encoder_pad=0)
    del inputs["attention_mask"]
    check_training_step(shallow("bert", "bert"), inputs, backend="eager")


def test_one_graph_for_all_sizes():
    model = shallow("bert", "gpt2")
    compiled = check_training_step(model, batch(), backend="eager", dynamic=True)
    with torch.compiler.set_stance("fail_on_recompile"):
        for inputs in (batch(2, 9, 4), batch(5, 12, 11)):
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)


def test_forward_and_backward_are_traced():
    """Autograd is compiled too, and what the graph changes in place is written back."""
    check_training_step(shallow("bert", "gpt2"), batch(), backend="aot_eager")


def test_one_graph_with_skipped_layers():
    """LayerDrop is no branch of the program."""
    model = pair("bert", config("bart", decoder_layerdrop=0.5)).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert len({compiled(**batch()).loss.item() for _ in range(20)}) == 4


def test_one_graph_that_returns_a_cache():
    model = shallow("bert", "gpt2")
    inputs = {**batch(), "labels": None, "decoder_input_ids": torch.tensor([[1, 7], [1, 8], [1, 9]])}
    expected = model(**inputs)
    output = torch.compile(model, fullgraph=True, backend="eager")(**inputs)
    assert isinstance(output.past_key_values, KeyValueCache)
    torch.testing.assert_close(output.past_key_values[0], expected.past_key_values[0], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "decoder"), [("bert", "bert"), ("gpt2", "llama")])
def test_compiled_to_machine_code(encoder, decoder):
    check_training_step(pair(encoder, decoder), batch(), bound=1e-5)


@pytest.mark.slow
def test_compiled_to_machine_code_for_all_sizes():
    model = pair("roberta", "bart")
    compiled = check_training_step(model, batch(), bound=1e-5, dynamic=True)
    inputs = batch(4, 11, 9)
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-4)
