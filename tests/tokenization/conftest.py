"""Small tokenizers of every kind, trained on text that comes with Python, in the files that real checkpoints have."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ODD = [
    "",
    " ",
    "   \t  two\ttabs  and   spaces \n\n\r\n next line ",
    "한국어 문장을 요약하는 모델입니다. 서울에서 부산까지 기차로 두 시간 반이 걸린다.",
    "일본어와 한국어, English를 섞어 쓴 문장!",
    "日本語の文章です。トークナイザーは正しく動きますか？ ｶﾀｶﾅ と カタカナ",
    "中文文本没有空格，标点符号也不同。北京大学",
    "繁體中文：臺灣大學 𠮷野家",
    "שלום עולם! זה טקסט מימין לשמאל.",
    "مرحبا بالعالم، هذا نص من اليمين إلى اليسار ١٢٣",
    "हिन्दी में एक वाक्य। நன்றி தமிழ்",
    "Ελληνικά και кириллица: Привет, мир! ΣΊΣΥΦΟΣ",
    "ﬁ ligature, ½ fraction, Ⅷ roman, ①②③, ㎏, ﷺ",
    "Cafe\u0301 nai\u0308ve re\u0301sume\u0301 vs Café naïve résumé",
    "Z\u0351\u036b\u0343\u036a\u0302a\u0336l\u0334g\u0337o",
    "İstanbul ıssız Straße ǅ ŉ",
    "emoji 😀👍🏽 family 👨‍👩‍👧‍👦 flag 🇰🇷🇯🇵 heart ❤️ keycap 1️⃣",
    "zero\u200bwidth\u200djoin\ufeffbom\u00adhyphen\u2060",
    "no\u00a0break\u2003em\u3000wide\u2028line\u2029par\u0085nel",
    "control \x00\x01\x07\x1b[31m \x7f\x9f chars",
    "private \ue000 \U000f0000 unassigned \U000e0fff \uffff\ufffd",
    "[CLS] [SEP] [MASK] [PAD] [UNK] in text",
    "<s> </s><mask> <pad> <unk> <|endoftext|>in text <|im_start|>",
    "a<mask> b <mask>c  <mask>  d",
    "don't can't I'm it's we've they're he'd o'clock ' quoted ' ...",
    "Hello , world ! is n't it ? yes .",
    "1234567890 3.14159 1,000,000 0xDEADBEEF 1e-10 ٣٤٥",
    "def f(x: int) -> int:\n    return x ** 2  # square\n\tif x:\n\t\tpass",
    "https://example.org/path?query=1&other=%20#fragment user@example.org",
    "x" * 150,
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "<div class=\"a\">&amp;&lt;</div> {'k': [1, 2]} $x^2_1$ \\alpha",
    "- - -- --- ____ *** ... …… !!!??? ¿¡ «» “” ‘’ „‟ 〈〉",
    "ALL CAPS AND camelCase snake_case kebab-case MiXeD",
    "\u2581underline ▁▁ Ġ Ċ ## ##ing",
]


def real_lines(count):
    """Lines of the standard library's own source, every so many, so that code, prose and names are all there."""
    folder = Path(os.__file__).parent
    text = [
        (folder / name).read_text(encoding="utf-8") for name in ("argparse.py", "typing.py", "inspect.py", "tarfile.py")
    ]
    lines = [line for part in text for line in part.split("\n") if line.strip()]
    return lines[:: max(1, len(lines) // count)][:count]


@pytest.fixture(scope="session")
def lines():
    """A few thousand lines, real and odd."""
    return ODD + real_lines(2000)


def _train(tokenizer, trainer):
    tokenizer.train_from_iterator(real_lines(600) + ODD * 2, trainer)
    return tokenizer


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=900, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def byte_level(special, add_prefix_space=False):
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    return _train(tokenizer, trainer)


def roberta():
    tokenizer = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    sep, cls = (("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>")))
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, True, False)  # trims, adds no space
    return tokenizer


def qwen2():
    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.normalizer = normalizers.NFC()
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    pattern += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def unigram():
    """As XLM-RoBERTa's and CamemBERT's are after conversion from SentencePiece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    marks = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    _train(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=700, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"],
        pair=["<s>", "$A", "</s>", "</s>", "$B", "</s>"],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return tokenizer


def llama():
    """As Llama 2's is after conversion: prepended space mark, single bytes to fall back on."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), behavior="merged_with_next")  # only to train on
    _train(
        tokenizer, trainers.BpeTrainer(vocab_size=1100, special_tokens=special, limit_alphabet=200, show_progress=False)
    )
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    state["pre_tokenizer"] = None
    state["post_processor"] = json.loads(
        processors.TemplateProcessing(
            single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", 1)]
        ).__getstate__()
    )
    return Tokenizer.from_str(json.dumps(state))


KINDS = {
    "bert": word_piece,
    "gpt2": lambda: byte_level(["<|endoftext|>"]),
    "roberta": roberta,
    "bart": roberta,
    "qwen2": qwen2,
    "xlm-roberta": unigram,
    "camembert": unigram,
    "llama": llama,
}
CLASS_NAMES = {
    "bert": "BertTokenizer",
    "gpt2": "GPT2Tokenizer",
    "roberta": "RobertaTokenizer",
    "bart": "BartTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "llama": "LlamaTokenizer",
}
SLOW = {"bert", "gpt2", "roberta", "bart", "qwen2"}  # those that can be built from vocabulary files


@pytest.fixture(scope="session")
def backends():
    """A trained `tokenizers.Tokenizer` of each kind."""
    made = {}
    return {kind: made.setdefault(make, make()) for kind, make in KINDS.items()}


@pytest.fixture(scope="session")
def folders(backends, tmp_path_factory):
    """For each kind, a folder in each layout: whole, bare (no settings), slow (vocabulary files alone)."""
    root = tmp_path_factory.mktemp("tokenizers")
    found = {}
    for kind, backend in backends.items():
        config = {"model_type": kind, "vocab_size": backend.get_vocab_size()}
        settings = {"tokenizer_class": CLASS_NAMES[kind], "model_max_length": 512, "my_own_key": {"kept": [1, None]}}
        if kind == "llama":
            settings |= {"add_bos_token": True, "add_eos_token": False, "legacy": False}
            settings |= {
                name: {
                    "__type": "AddedToken",
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                }
                for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
            }
        for layout in ("whole", "bare", "slow"):
            folder = root / kind / layout
            if layout == "slow" and kind not in SLOW:
                continue
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(config))
            if layout == "slow":
                backend.model.save(str(folder))
            else:
                backend.save(str(folder / "tokenizer.json"))
            if layout == "whole":
                (folder / "tokenizer_config.json").write_text(json.dumps(settings))
            found[kind, layout] = folder
    return found
