"""Tokenizers: a thin coat over the `tokenizers` library, with the classes and options that users know."""

from warmstart.tokenization.auto import AutoTokenizer, special_token_ids
from warmstart.tokenization.batch import BatchEncoding
from warmstart.tokenization.names import (
    BartTokenizer,
    BartTokenizerFast,
    BertGenerationTokenizer,
    BertTokenizer,
    BertTokenizerFast,
    CamembertTokenizer,
    CamembertTokenizerFast,
    GPT2Tokenizer,
    GPT2TokenizerFast,
    LlamaTokenizer,
    LlamaTokenizerFast,
    Qwen2Tokenizer,
    Qwen2TokenizerFast,
    RobertaTokenizer,
    RobertaTokenizerFast,
    XLMRobertaTokenizer,
    XLMRobertaTokenizerFast,
)
from warmstart.tokenization.tokenizer import PreTrainedTokenizerFast

__all__ = [
    "AutoTokenizer",
    "BartTokenizer",
    "BartTokenizerFast",
    "BatchEncoding",
    "BertGenerationTokenizer",
    "BertTokenizer",
    "BertTokenizerFast",
    "CamembertTokenizer",
    "CamembertTokenizerFast",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "PreTrainedTokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "RobertaTokenizer",
    "RobertaTokenizerFast",
    "XLMRobertaTokenizer",
    "XLMRobertaTokenizerFast",
    "special_token_ids",
]
