"""How weights lie in memory: made without draws, row by row, each in memory of its own or the file's."""

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


def test_every_weight_lies_row_by_row(folder):
    """Optimizers, `fully_shard` and `safetensors` want it; GPT-2's matrices are stored turned."""
    model = EncoderDecoderModel.from_pretrained(folder)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_no_two_parameters_share_memory(folder):
    """Tools that save drop what shares memory, taking it for tied: query, key and value of one stored tensor."""
    model = EncoderDecoderModel.from_pretrained(folder)
    places = [parameter.untyped_storage().data_ptr() for parameter in model.parameters()]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_from_a_file_are_copied_and_saved_as_any_other(folder, tmp_path, dtype):
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
