"""The tokenizers that put the code of a language beside a text: mBART's and PLBART's, from SentencePiece models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tokenizers import Tokenizer

from warmstart.tokenization import framing
from warmstart.tokenization import sentence_piece as pieces
from warmstart.tokenization.names import ANGLED, IDS_AND_MASK
from warmstart.tokenization.sentence_piece import Layout, Pieces, Scored, Settings, around
from warmstart.tokenization.sentence_piece_names import FAIRSEQ, MASK_AFTER_SPACE, with_own
from warmstart.tokenization.tokenizer import PreTrainedTokenizerFast

# The languages of mBART (arXiv:2001.08210, table 1) and those that mBART-50 adds (arXiv:2008.00401), in order of ids.
_MBART = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
_MBART50 = (
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN "
    "te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)
MBART_LANGUAGES = _MBART.split()
MBART50_LANGUAGES = MBART_LANGUAGES + _MBART50.split()
_PLBART_LANGUAGES = {
    "base": ["__java__", "__python__", "__en_XX__"],
    "multi": ["__java__", "__python__", "__en_XX__", "__javascript__", "__php__", "__ruby__", "__go__"],
}


class _LanguageTokenizer(PreTrainedTokenizerFast):
    """Puts the code of a language beside a text: `src_lang` beside sources, `tgt_lang` beside targets."""

    languages: ClassVar[Any]  # settings -> the codes
    language_frame: ClassVar[framing.Frame]
    frame = framing.frame_end  # where there is no language
    first_language: ClassVar[str | None] = "en_XX"  # where `src_lang` says nothing
    written: ClassVar[Mapping[str, str]] = {}  # how a language that users name is written in the vocabulary
    special_tokens: ClassVar[dict[str, Any]] = ANGLED
    token_flags: ClassVar[dict[str, dict[str, bool]]] = MASK_AFTER_SPACE
    defaults: ClassVar[dict[str, Any]] = {"src_lang": None, "tgt_lang": None, "model_input_names": IDS_AND_MASK}
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "sentencepiece.bpe.model"}

    def more_special_tokens(self, settings: Settings) -> list[Any]:
        return with_own(settings, self.languages(settings))

    @property
    def lang_code_to_id(self) -> dict[str, int]:
        """The id of each language's code."""
        return {code: self.convert_tokens_to_ids(code) for code in self.languages(self.settings)}

    def adapt(self, backend: Tokenizer, settings: Settings) -> None:
        self._put_language("src_lang", settings.get("src_lang") or self.first_language)

    def _put_language(self, name: str, language: str | None) -> None:
        code = None if language is None else self.written.get(language, language)
        if code is not None and code not in self.languages(self.settings):
            raise ValueError(
                f"{name}={language!r} is not a language of {type(self).__name__}; they are "
                f"{', '.join(self.languages(self.settings))}"
            )
        frame = self.frame if code is None else self.language_frame
        frame(self._tokenizer, {**self.special_tokens_map, "language": code})

    def _encode_target(self, text: Any, pair: Any, options: dict[str, Any]) -> Any:
        language = self.settings["tgt_lang"]
        if language is None and self.first_language is not None and options.get("add_special_tokens", True):
            raise ValueError("text_target needs the language it is in; set tokenizer.tgt_lang, such as 'ro_RO', first")
        with self._lock:
            self._put_language("tgt_lang", language)
            try:
                return super()._encode_target(text, pair, options)
            finally:
                self.adapt(self._tokenizer, self.settings)


class MBartTokenizer(_LanguageTokenizer):
    """mBART's: unigrams in fairseq's order, then the languages; `a </s> en_XX`."""

    languages = staticmethod(lambda settings: MBART_LANGUAGES)
    build = Layout(around(FAIRSEQ, 3, [*MBART_LANGUAGES, "<mask>"]), unknown=3)
    language_frame = framing.frame_language_last


class MBart50Tokenizer(_LanguageTokenizer):
    """mBART-50's: unigrams in fairseq's order, then the languages; `en_XX a </s>`."""

    special_tokens: ClassVar[dict[str, Any]] = {name: token for name, token in ANGLED.items() if name != "bos_token"}
    token_flags: ClassVar[dict[str, dict[str, bool]]] = {"mask_token": {"lstrip": True, "normalized": True}}
    languages = staticmethod(lambda settings: MBART50_LANGUAGES)
    build = Layout(around(FAIRSEQ, 3, [*MBART50_LANGUAGES, "<mask>"]), unknown=3)
    language_frame = framing.frame_language_first


def _plbart_vocab(model: Pieces, settings: Settings) -> Scored:
    base = ["<mask>"] if settings["language_codes"] == "base" else []
    return around(FAIRSEQ, 3, [*_PLBART_LANGUAGES[settings["language_codes"]], *base])(model, settings)


class PLBartTokenizer(_LanguageTokenizer):
    """PLBART's: pieces in fairseq's order, then the languages; `a </s> __java__`.

    `language_codes` is "base" or "multi" and says which languages there are.
    """

    defaults: ClassVar[dict[str, Any]] = {
        **_LanguageTokenizer.defaults,
        "language_codes": "base",
        "clean_up_tokenization_spaces": True,
    }
    languages = staticmethod(lambda settings: _PLBART_LANGUAGES[settings["language_codes"]])
    first_language = None
    written: ClassVar[Mapping[str, str]] = {code.strip("_"): code for code in _PLBART_LANGUAGES["multi"]}
    build = Layout(
        _plbart_vocab,
        unknown=3,
        normalizer=pieces.as_trained,
        pre_tokenizer=pieces.user_defined_apart,
        decoder=pieces.words_joined_and_stripped,
        adds_tokens=False,
    )
    language_frame = framing.frame_language_last


# There is one kind of tokenizer here; the other spelling is for code that asks for it.
MBartTokenizerFast = MBartTokenizer
MBart50TokenizerFast = MBart50Tokenizer
