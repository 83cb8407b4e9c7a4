"""How weights lie in memory: made without draws, left as the file has them, straight as soon as the model trains."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch

import tiny_models
from warmstart import AutoModel, AutoModelForCausalLM, EncoderDecoderModel


@pytest.fixture
def folder(tmp_path):
    tiny_models.pair("bert", "gpt2").save_pretrained(tmp_path)
    return tmp_path


def turned(model):
    return {name for name, parameter in model.named_parameters() if not parameter.is_contiguous()}


def test_gpt2_matrices_stay_as_the_file_has_them_until_training(folder):
    model = EncoderDecoderModel.from_pretrained(folder)
    parameters = dict(model.named_parameters())
    stored_turned = {name for name, x in parameters.items() if name.startswith("decoder.layers") and x.dim() == 2}
    assert turned(model) == stored_turned != set()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    assert model.train() is model and model.training
    assert turned(model) == set()
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())  # optimizers keep them
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_evaluation_changes_no_layout(folder):
    model = EncoderDecoderModel.from_pretrained(folder)
    before = turned(model)
    assert turned(model.eval()) == before != set()


def test_turned_matrices_compute_what_straight_ones_do(folder):
    model = EncoderDecoderModel.from_pretrained(folder)
    inputs = {"input_ids": torch.randint(5, tiny_models.VOCABULARY, (2, 7)), "labels": torch.tensor([[6, 7], [8, 9]])}
    turned_logits = model(**inputs).logits
    straight_logits = model.train().eval()(**inputs).logits
    torch.testing.assert_close(turned_logits, straight_logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("prepare", [EncoderDecoderModel.state_dict, EncoderDecoderModel.train])
def test_no_two_parameters_share_memory(folder, prepare):
    """Tools that save drop what shares memory, taking it for tied: query, key and value of one stored tensor."""
    model = EncoderDecoderModel.from_pretrained(folder)
    prepare(model)
    places = [parameter.untyped_storage().data_ptr() for parameter in model.parameters()]
    assert len(places) == len(set(places))


def test_parts_of_a_stored_matrix_are_views_of_it(folder):
    own = EncoderDecoderModel.from_pretrained(folder).decoder.layers[0].attention
    assert len({part.weight.untyped_storage().data_ptr() for part in (own.query, own.key, own.value)}) == 1
    assert len({part.bias.untyped_storage().data_ptr() for part in (own.query, own.key, own.value)}) == 3


def test_generating_lays_matrices_out_once(folder):
    model = EncoderDecoderModel.from_pretrained(folder)
    with torch.inference_mode():
        model.generate(torch.tensor([[5, 6, 7]]), decoder_start_token_id=1, max_length=4)
    assert turned(model) == set()
    assert not any(parameter.is_inference() for parameter in model.parameters())  # it may still train


def test_straight_at_once_where_processes_work_together(folder, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert turned(EncoderDecoderModel.from_pretrained(folder)) == set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turned_matrices_are_copied_and_saved_as_any_other(folder, tmp_path, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    expected = model.state_dict()
    file = io.BytesIO()
    torch.save(expected, file)
    file.seek(0)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=dtype).state_dict()
    pickled = pickle.loads(pickle.dumps(model)).state_dict()
    for found in (copy.deepcopy(model).state_dict(), pickled, torch.load(file), again):
        assert found.keys() == expected.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_making_without_memory_and_loading_draw_nothing(folder):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    EncoderDecoderModel.from_pretrained(folder)
    with torch.device("meta"):
        AutoModel(tiny_models.config("bert"))
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_does_not_import_the_compiler(folder):
    """A draw without memory (`nn.Embedding` on "meta") would: seconds for nothing."""
    code = f"import sys, warmstart; warmstart.EncoderDecoderModel.from_pretrained({str(folder)!r})\n"
    code += "print('torch._dynamo' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False False", done.stderr
