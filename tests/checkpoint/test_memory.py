"""Loading takes no second copy: weights that need no change stay views of the mapped file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Makes checkpoints of about 150 MB, loads each, and prints how much memory of its own the process took for it, at the
# end and at most, beside the size of the weights.
SCRIPT = """
import json, os, sys, threading
from pathlib import Path
import torch
from warmstart import (
    AutoConfig, AutoModel, AutoModelForCausalLM, BertConfig, EncoderDecoderConfig, EncoderDecoderModel, GPT2Config
)

torch.set_num_threads(1)
root = Path(sys.argv[1])
bert = dict(vocab_size=44_000, hidden_size=768, num_hidden_layers=1, num_attention_heads=12, intermediate_size=1024)
gpt2 = dict(vocab_size=300, n_embd=1024, n_layer=3, n_head=16, bos_token_id=0, eos_token_id=0)

def own():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

def make(name, model, **options):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    model.save_pretrained(root / name, **options)

def make_all():
    make("whole", AutoModel(BertConfig(**bert)))
    make("sharded", AutoModel(BertConfig(**bert)), max_shard_size="40MB")
    make("pickled", AutoModel(BertConfig(**bert)), safe_serialization=False)
    make("half", AutoModel(BertConfig(**bert)).half())
    make("transposed", AutoModelForCausalLM(GPT2Config(**gpt2)))
    pair = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**bert), GPT2Config(**gpt2 | dict(n_layer=1)))
    make("pair", EncoderDecoderModel(config=pair))

def alone(function, *arguments, **options):  # in a process that holds nothing which was given back and not away
    child = os.fork()
    if child == 0:
        function(*arguments, **options)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def measure(name, cls, **options):
    before, peak, loaded = own(), [0], threading.Event()
    def watch():
        while not loaded.wait(0.001):
            peak[0] = max(peak[0], own())
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = cls.from_pretrained(root / name, **options)
    loaded.set()
    watcher.join()
    after = own()
    size = sum(x.numel() * x.element_size() for x in model.parameters())
    mapped = name in Path("/proc/self/maps").read_text()
    total = float(sum(x.double().sum() for x in model.parameters()))
    numbers = sum(x.numel() for x in model.parameters())
    kind = str(next(model.parameters()).dtype)
    print(json.dumps([name, kind, {
        "size": size, "own": after - before, "most": max(peak[0], after) - before, "mapped": mapped,
        "read": abs(total / numbers - 0.5) < 1e-6, "compiler": "torch._dynamo" in sys.modules,
    }]))

alone(make_all)
alone(measure, "whole", AutoModel)
alone(measure, "sharded", AutoModel)
alone(measure, "pickled", AutoModel)
alone(measure, "half", AutoModel, dtype="auto")
alone(measure, "half", AutoModel)
alone(measure, "whole", AutoModel, dtype="bfloat16")
alone(measure, "transposed", AutoModelForCausalLM)
alone(measure, "pair", EncoderDecoderModel)
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    for path in folder.rglob("*.*"):
        path.unlink()  # rather than have them kept with the last few runs
    assert done.returncode == 0, done.stderr
    return {(name, kind): facts for name, kind, facts in map(json.loads, done.stdout.splitlines())}


# GPT-2's matrices lie transposed in files, and three of them in one tensor; they are not laid out until they must be.
AS_IT_IS = [(name, "torch.float32") for name in ("whole", "sharded", "pickled", "transposed", "pair")]
AS_IT_IS.append(("half", "torch.float16"))
SLACK = 12_000_000  # what the process takes for other things


@pytest.mark.parametrize("case", AS_IT_IS, ids=" ".join)
def test_weights_that_need_no_change_take_no_memory(measured, case):
    facts = measured[case]
    assert facts["read"] and facts["mapped"]
    assert facts["size"] > 70_000_000
    assert facts["most"] < facts["size"] / 10 + SLACK


@pytest.mark.parametrize("case", [("half", "torch.float32"), ("whole", "torch.bfloat16")], ids=" ".join)
def test_weights_of_another_type_are_there_once(measured, case):
    facts = measured[case]
    assert facts["read"]
    assert facts["most"] < facts["size"] * 1.05 + SLACK


def test_loading_does_not_import_torchs_compiler(measured):
    """Which takes 70 MB and seconds; a draw on the device "meta" does it."""
    assert not any(facts["compiler"] for facts in measured.values())
