"""`AutoTokenizer`: the tokenizer class that a folder asks for; and the ids of its special tokens."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from warmstart.hub import find_file, hub_options, read_json
from warmstart.tokenization import blenderbot_small, chinese, language_names, marian, names, sentence_piece_names
from warmstart.tokenization.files import CONFIG, TOKENIZER
from warmstart.tokenization.tokenizer import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

CLASSES: dict[str, type[PreTrainedTokenizerFast]] = {
    cls.__name__: cls
    for module in (names, sentence_piece_names, language_names, marian, blenderbot_small, chinese)
    for cls in vars(module).values()
    if isinstance(cls, type) and issubclass(cls, PreTrainedTokenizerFast) and not cls.__name__.startswith("_")
}

# What the classes of other tokenizers are here: those that add nothing to `tokenizer.json`, and other names.
_SAME_AS = {"PreTrainedTokenizer": "", "TokenizersBackend": "", "MT5Tokenizer": "T5Tokenizer"}

# model_type -> tokenizer, for folders whose files do not say
BY_MODEL_TYPE = {
    "albert": "Albert",
    "bart": "Bart",
    "bert": "Bert",
    "bert-generation": "BertGeneration",
    "big_bird": "BigBird",
    "bigbird_pegasus": "Pegasus",
    "blenderbot": "Blenderbot",
    "blenderbot-small": "BlenderbotSmall",
    "bloom": "Bloom",
    "camembert": "Camembert",
    "data2vec-text": "Roberta",
    "deberta-v2": "DebertaV2",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "ernie": "Bert",
    "gemma": "Gemma",
    "gemma2": "Gemma",
    "gemma3_text": "Gemma",
    "gpt-sw3": "GPTSw3",
    "gpt2": "GPT2",
    "gpt_bigcode": "GPT2",
    "gpt_neo": "GPT2",
    "gpt_neox": "GPTNeoX",
    "gptj": "GPT2",
    "granite": "GPT2",
    "llama": "Llama",
    "longformer": "Longformer",
    "marian": "Marian",
    "mbart": "MBart",
    "mbart50": "MBart50",
    "megatron-bert": "Bert",
    "mistral": "Llama",
    "mpnet": "MPNet",
    "mt5": "T5",
    "mvp": "Mvp",
    "nomic_bert": "Bert",
    "olmo2": "GPTNeoX",
    "olmo3": "GPT2",
    "opt": "GPT2",
    "pegasus": "Pegasus",
    "phi": "CodeGen",
    "phi3": "Llama",
    "plbart": "PLBart",
    "qwen2": "Qwen2",
    "qwen3": "Qwen2",
    "rembert": "RemBert",
    "roberta": "Roberta",
    "roberta-prelayernorm": "Roberta",
    "roc_bert": "RoCBert",
    "roformer": "RoFormer",
    "stablelm": "GPTNeoX",
    "starcoder2": "GPT2",
    "t5": "T5",
    "t5gemma": "Gemma",
    "trocr": "XLMRoberta",
    "xglm": "XGLM",
    "xlm-roberta": "XLMRoberta",
    "xlm-roberta-xl": "XLMRoberta",
}
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id")


class AutoTokenizer:
    """Reads any tokenizer; it is not made itself.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = names.BertTokenizer(vocab={"[UNK]": 0, "hi": 1}).save_pretrained(folder)
    >>> type(AutoTokenizer.from_pretrained(folder)).__name__
    'BertTokenizer'
    """

    def __init__(self) -> None:
        raise OSError("AutoTokenizer is not made; use AutoTokenizer.from_pretrained(folder)")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *inputs: Any, **kwargs: Any) -> Any:
        """Read a tokenizer from a folder or a hub id; keywords replace what its files say.

        The class is the one that `tokenizer_config.json` names in `tokenizer_class`; else that `config.json` names;
        else that of its `model_type`, the encoder's in a whole encoder-decoder. A class that is not known here is read
        from its `tokenizer.json` as it stands.

        Raises:
            FileNotFoundError: no such folder or repository, or no tokenizer in it.
            ImportError: the extra that it needs is not installed, for a SentencePiece model or for Chinese words.
            OSError: a file is not what it should be.
        """
        config, kind = kwargs.pop("config", None), kwargs.pop("tokenizer_type", None)
        if kind is not None and kind not in BY_MODEL_TYPE:
            raise ValueError(f"tokenizer_type={kind!r} is not known; it is one of {', '.join(sorted(BY_MODEL_TYPE))}")
        if kind is not None:
            name = f"{BY_MODEL_TYPE[kind]}Tokenizer"
        else:
            name = _choose(pretrained_model_name_or_path, config, hub_options(dict(kwargs)))
        chosen = CLASSES.get(name, PreTrainedTokenizerFast)
        return chosen.from_pretrained(pretrained_model_name_or_path, *inputs, **kwargs)


def special_token_ids(name_or_path: str | os.PathLike[str], **options: Any) -> dict[str, int | None]:
    """The ids of the start, the end, padding, `[CLS]` and `[SEP]` in the tokenizer of a folder or hub id.

    Keys are `bos_token_id`, `eos_token_id`, `pad_token_id`, `cls_token_id` and `sep_token_id`, each None where the
    tokenizer has no such token; without tokenizer files that can be read here there are no keys.

    Raises:
        FileNotFoundError: there is no such folder or repository.
        OSError: a file is not what it should be.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> special_token_ids(folder)
    {}
    >>> _ = names.GPT2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[]).save_pretrained(folder)
    >>> special_token_ids(folder)["eos_token_id"]
    1
    """
    options = hub_options(options)
    if not has_tokenizer(name_or_path, options):
        return {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **options)
    except ImportError as error:  # a model's ids may all stand in its config.json
        logger.warning("no token ids are taken from the tokenizer: %s", error)
        return {}
    return {name: getattr(tokenizer, name) for name in IDS}


def _choose(place: Any, config: Any, options: Mapping[str, Any]) -> str:
    """The name of the tokenizer class that a folder asks for; empty for one that its `tokenizer.json` describes."""
    said = _read(place, CONFIG, options).get("tokenizer_class")
    if said is None:
        values = config.to_dict() if hasattr(config, "to_dict") else config or _read(place, "config.json", options)
        said = values.get("tokenizer_class")
        if said is None:
            values = values.get("encoder") or values
            family = BY_MODEL_TYPE.get(values.get("model_type", ""))
            return "" if family is None else f"{family}Tokenizer"
    name = str(said).removesuffix("Fast")
    name = _SAME_AS.get(name, name)
    if name and name not in CLASSES:
        logger.info("%s: tokenizer_class %s is not known here; its tokenizer.json is read as it stands", place, said)
    return name


def has_tokenizer(place: Any, options: Mapping[str, Any]) -> bool:
    """Whether a folder or hub id has a tokenizer that can be had here."""
    name = _choose(place, None, options)
    cls = CLASSES.get(name, PreTrainedTokenizerFast)
    if cls.has_tokenizer_file and find_file(place, TOKENIZER, required=False, **options) is not None:
        return True
    needed = cls.vocab_files_names.values()
    return bool(needed) and all(find_file(place, name, required=False, **options) is not None for name in needed)


def _read(place: Any, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    path = find_file(place, name, required=False, **options)
    return read_json(path) if path is not None else {}
