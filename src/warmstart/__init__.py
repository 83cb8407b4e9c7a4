"""Any pretrained encoder and any pretrained decoder made one sequence-to-sequence model.

Public names are found when they are asked for (PEP 562), so that `import warmstart` loads no framework.
After a change of the table run `make stub`, which tells type checkers and editors.
"""

import gc
import importlib
import sys
from typing import Any

# Module -> the public names it holds.
_NAMES_BY_MODULE = {
    "config": ["PretrainedConfig"],
    "generation_config": ["GenerationConfig"],
    "decoding.constraints": ["DisjunctiveConstraint", "PhrasalConstraint"],
    "outputs": [
        "ModelOutput",
        "BaseModelOutput",
        "BaseModelOutputWithPastAndCrossAttentions",
        "CausalLMOutputWithCrossAttentions",
        "MaskedLMOutput",
        "Seq2SeqLMOutput",
        "FlaxBaseModelOutputWithPastAndCrossAttentions",
        "FlaxCausalLMOutputWithCrossAttentions",
        "FlaxGenerateOutput",
        "FlaxMaskedLMOutput",
        "FlaxSeq2SeqLMOutput",
    ],
    "families.auto": ["AutoConfig"],
    "families.bart": ["BartConfig"],
    "families.bart_relatives": [
        "BigBirdPegasusConfig",
        "BlenderbotConfig",
        "BlenderbotSmallConfig",
        "MBartConfig",
        "MarianConfig",
        "MvpConfig",
        "PLBartConfig",
        "PegasusConfig",
    ],
    "families.bert": ["BertConfig"],
    "families.bert_generation": ["BertGenerationConfig"],
    "families.encoder_decoder": ["EncoderDecoderConfig"],
    "families.gemma": ["Gemma2Config", "Gemma3TextConfig", "GemmaConfig"],
    "families.gpt2": ["GPT2Config"],
    "families.llama": ["LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config"],
    "families.roberta": ["CamembertConfig", "RobertaConfig", "XLMRobertaConfig"],
    "families.xglm": ["TrOCRConfig", "XGLMConfig"],
    "tokenization": [
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
    ],
    "flax.encoder_decoder": ["FlaxEncoderDecoderModel"],
    "flax.models": [
        "FlaxAutoModel",
        "FlaxAutoModelForCausalLM",
        "FlaxAutoModelForMaskedLM",
        "FlaxBartForCausalLM",
        "FlaxBartModel",
        "FlaxBertForCausalLM",
        "FlaxBertForMaskedLM",
        "FlaxBertGenerationDecoder",
        "FlaxBertGenerationEncoder",
        "FlaxBertModel",
        "FlaxBigBirdPegasusForCausalLM",
        "FlaxBigBirdPegasusModel",
        "FlaxBlenderbotForCausalLM",
        "FlaxBlenderbotModel",
        "FlaxBlenderbotSmallForCausalLM",
        "FlaxBlenderbotSmallModel",
        "FlaxCamembertForCausalLM",
        "FlaxCamembertForMaskedLM",
        "FlaxCamembertModel",
        "FlaxGemma2ForCausalLM",
        "FlaxGemma2Model",
        "FlaxGemma3ForCausalLM",
        "FlaxGemma3TextModel",
        "FlaxGemmaForCausalLM",
        "FlaxGemmaModel",
        "FlaxGPT2LMHeadModel",
        "FlaxGPT2Model",
        "FlaxLlamaForCausalLM",
        "FlaxLlamaModel",
        "FlaxMBartForCausalLM",
        "FlaxMBartModel",
        "FlaxMarianForCausalLM",
        "FlaxMarianModel",
        "FlaxMistralForCausalLM",
        "FlaxMistralModel",
        "FlaxMvpForCausalLM",
        "FlaxMvpModel",
        "FlaxPLBartForCausalLM",
        "FlaxPLBartModel",
        "FlaxPegasusForCausalLM",
        "FlaxPegasusModel",
        "FlaxQwen2ForCausalLM",
        "FlaxQwen2Model",
        "FlaxQwen3ForCausalLM",
        "FlaxQwen3Model",
        "FlaxRobertaForCausalLM",
        "FlaxRobertaForMaskedLM",
        "FlaxRobertaModel",
        "FlaxTrOCRForCausalLM",
        "FlaxXGLMForCausalLM",
        "FlaxXGLMModel",
        "FlaxXLMRobertaForCausalLM",
        "FlaxXLMRobertaForMaskedLM",
        "FlaxXLMRobertaModel",
    ],
    "tf.encoder_decoder": ["TFEncoderDecoderModel"],
    "tf.models": [
        "TFAutoModel",
        "TFAutoModelForCausalLM",
        "TFAutoModelForMaskedLM",
        "TFBartForCausalLM",
        "TFBartModel",
        "TFBertForMaskedLM",
        "TFBertGenerationDecoder",
        "TFBertGenerationEncoder",
        "TFBertLMHeadModel",
        "TFBertModel",
        "TFBigBirdPegasusForCausalLM",
        "TFBigBirdPegasusModel",
        "TFBlenderbotForCausalLM",
        "TFBlenderbotModel",
        "TFBlenderbotSmallForCausalLM",
        "TFBlenderbotSmallModel",
        "TFCamembertForCausalLM",
        "TFCamembertForMaskedLM",
        "TFCamembertModel",
        "TFGemma2ForCausalLM",
        "TFGemma2Model",
        "TFGemma3ForCausalLM",
        "TFGemma3TextModel",
        "TFGemmaForCausalLM",
        "TFGemmaModel",
        "TFGPT2LMHeadModel",
        "TFGPT2Model",
        "TFLlamaForCausalLM",
        "TFLlamaModel",
        "TFMBartForCausalLM",
        "TFMBartModel",
        "TFMarianForCausalLM",
        "TFMarianModel",
        "TFMistralForCausalLM",
        "TFMistralModel",
        "TFMvpForCausalLM",
        "TFMvpModel",
        "TFPLBartForCausalLM",
        "TFPLBartModel",
        "TFPegasusForCausalLM",
        "TFPegasusModel",
        "TFQwen2ForCausalLM",
        "TFQwen2Model",
        "TFQwen3ForCausalLM",
        "TFQwen3Model",
        "TFRobertaForCausalLM",
        "TFRobertaForMaskedLM",
        "TFRobertaModel",
        "TFTrOCRForCausalLM",
        "TFXGLMForCausalLM",
        "TFXGLMModel",
        "TFXLMRobertaForCausalLM",
        "TFXLMRobertaForMaskedLM",
        "TFXLMRobertaModel",
    ],
    "tf.outputs": ["TFSeq2SeqLMOutput"],
    "torch.encoder_decoder": ["EncoderDecoderModel"],
    "torch.streamers": ["AsyncTextIteratorStreamer", "TextIteratorStreamer", "TextStreamer"],
    "torch.models": [
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForMaskedLM",
        "BartForCausalLM",
        "BartModel",
        "BertForMaskedLM",
        "BertGenerationDecoder",
        "BertGenerationEncoder",
        "BertLMHeadModel",
        "BertModel",
        "BigBirdPegasusForCausalLM",
        "BigBirdPegasusModel",
        "BlenderbotForCausalLM",
        "BlenderbotModel",
        "BlenderbotSmallForCausalLM",
        "BlenderbotSmallModel",
        "CamembertForCausalLM",
        "CamembertForMaskedLM",
        "CamembertModel",
        "Gemma2ForCausalLM",
        "Gemma2Model",
        "Gemma3ForCausalLM",
        "Gemma3TextModel",
        "GemmaForCausalLM",
        "GemmaModel",
        "GPT2LMHeadModel",
        "GPT2Model",
        "LlamaForCausalLM",
        "LlamaModel",
        "MBartForCausalLM",
        "MBartModel",
        "MarianForCausalLM",
        "MarianModel",
        "MistralForCausalLM",
        "MistralModel",
        "MvpForCausalLM",
        "MvpModel",
        "PLBartForCausalLM",
        "PLBartModel",
        "PegasusForCausalLM",
        "PegasusModel",
        "Qwen2ForCausalLM",
        "Qwen2Model",
        "Qwen3ForCausalLM",
        "Qwen3Model",
        "RobertaForCausalLM",
        "RobertaForMaskedLM",
        "RobertaModel",
        "TrOCRForCausalLM",
        "XGLMForCausalLM",
        "XGLMModel",
        "XLMRobertaForCausalLM",
        "XLMRobertaForMaskedLM",
        "XLMRobertaModel",
    ],
}

# Package that may be missing -> the extra that brings it.
_EXTRAS = {"torch": "torch", "jax": "flax", "flax": "flax", "tensorflow": "tf", "keras": "tf", "rouge_score": "train"}

_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("warmstart")
    elif name in _MODULE_OF:
        value = getattr(_load(name, f"warmstart.{_MODULE_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'warmstart' has no attribute {name!r}")
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _load(name: str, module: str) -> Any:
    """Import the module that holds a public name; a missing extra is named with the command that brings it."""
    try:
        return _import(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        raise ImportError(
            f'warmstart.{name} needs {missing}, which is not installed: pip install "warmstart[{_EXTRAS[missing]}]"',
            name=missing,
        ) from error


def _import(module: str) -> Any:
    """Import a module; if that brings torch, let the garbage collector rest meanwhile.

    torch's import makes a quarter of a million objects that stay until the end. Looking through them again and again
    takes a tenth of the import, and later a third of a model's loading: so they are set apart from what is looked at.
    """
    if not module.startswith("warmstart.torch") or "torch" in sys.modules or not gc.isenabled():
        return importlib.import_module(module)
    gc.disable()
    try:
        found = importlib.import_module(module)
        gc.freeze()
        return found
    finally:
        gc.enable()
