"""The Python in README and docs runs as it stands, in order, on tiny checkpoints under the names it uses."""

import re
from pathlib import Path

import pytest
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer

ROOT = Path(__file__).parents[1]
TEXT = ["the first article is about trains and where they go", "the second one is about birds fly", "a long summary"]


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """A folder with tiny checkpoints called `bert-base-uncased` and `gpt2`, as the current directory."""
    from warmstart import AutoModelForMaskedLM, BertConfig, GPT2Config, GPT2LMHeadModel

    monkeypatch.chdir(tmp_path)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    words = BertWordPieceTokenizer()
    words.train_from_iterator(TEXT, vocab_size=120, show_progress=False)
    AutoModelForMaskedLM(BertConfig(vocab_size=words.get_vocab_size(), **size)).save_pretrained("bert-base-uncased")
    words.save_model("bert-base-uncased")
    pieces = ByteLevelBPETokenizer()
    pieces.train_from_iterator(TEXT, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    count = pieces.get_vocab_size()
    config = GPT2Config(vocab_size=count, n_embd=24, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained("gpt2")
    pieces.save_model("gpt2")


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_the_code_of_the_page_runs(page, checkpoints, capsys):
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)
    assert blocks
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
