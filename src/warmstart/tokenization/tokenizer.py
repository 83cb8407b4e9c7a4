"""The tokenizer that users hold: text to ids and back, over the `tokenizers` library."""

from __future__ import annotations

import copy
import os
import tempfile
from typing import Any, ClassVar

from tokenizers import Tokenizer

from warmstart.hub import UPLOADING, upload_folder
from warmstart.tokenization import backend as backends
from warmstart.tokenization import files, training
from warmstart.tokenization.batch import BatchEncoding
from warmstart.tokenization.framing import FramedVocabulary, tokens_around
from warmstart.tokenization.padding import UNLIMITED, lengths, pad_rows, say_once
from warmstart.tokenization.special_tokens import NAMES
from warmstart.tokenization.texts import as_inputs, clean_up, decode_batch, encode_batch
from warmstart.tokenization.vocabulary import take_special_tokens

# the settings that are attributes of their own, and what they are when nothing is said
_ATTRIBUTES: dict[str, Any] = {
    "padding_side": "right",
    "truncation_side": "right",
    "model_input_names": ("input_ids", "token_type_ids", "attention_mask"),
    "clean_up_tokenization_spaces": False,
    "split_special_tokens": False,
    "chat_template": None,
}
# What `transformers` has and this does not -> what does it here.
_INSTEAD = {
    "as_target_tokenizer": "tokenizer(text_target=...)",
    "prepare_seq2seq_batch": "tokenizer(texts, text_target=targets, ...)",
    "prepare_for_model": "tokenizer(text), or build_inputs_with_special_tokens for ids",
    "truncate_sequences": "tokenizer(text, truncation=True, max_length=...)",
    "save_vocabulary": "save_pretrained, which writes the vocabulary's files too",
    "apply_chat_template": "the template's own text; pairs of encoder and decoder hold no conversations",
}


class PreTrainedTokenizerFast(FramedVocabulary):
    """A tokenizer over a `tokenizers.Tokenizer`, with the interface that users of `transformers` know.

    It is read with `from_pretrained`, or made from a `tokenizers.Tokenizer` (`tokenizer_object=`), a `tokenizer.json`
    (`tokenizer_file=`) or, by the classes of a family, from vocabulary files. Other keywords are special tokens and
    settings (`padding_side`, `model_max_length`, `do_lower_case` ...); those that mean nothing here are kept and saved.

    `add_bos_token` and `add_eos_token` say whether a text is given a start and an end. GPT-2 and its like give none
    around labels; `AutoTokenizer.from_pretrained(folder, add_bos_token=True, add_eos_token=True)`, or setting the two
    attributes, asks for them. What they say is saved. Where a family puts tokens of its own around texts (BERT's
    `[CLS]` and `[SEP]`), they tell what it does and cannot be changed.

    >>> from tokenizers.models import WordLevel
    >>> from tokenizers.pre_tokenizers import Whitespace
    >>> words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "hello": 3, "world": 4}, unk_token="<unk>"))
    >>> words.pre_tokenizer = Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    >>> tokenizer.add_eos_token = True
    >>> batch = tokenizer(["hello", "hello world"], padding=True, return_tensors="np")
    >>> batch.input_ids.tolist()
    [[3, 1, 0], [3, 4, 1]]
    >>> tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)
    ['hello', 'hello world']
    """

    # What a family's class says of it, as data.
    special_tokens: ClassVar[dict[str, Any]] = {}
    token_flags: ClassVar[dict[str, dict[str, bool]]] = {}  # how a special token that is given as text matches
    defaults: ClassVar[dict[str, Any]] = {}  # of the settings
    defaults_when_built: ClassVar[dict[str, Any]] = {}  # of the settings, without a `tokenizer.json`
    vocab_files_names: ClassVar[dict[str, str]] = {}  # the files it is built from where there is no tokenizer.json
    more_files_names: ClassVar[dict[str, str]] = {}  # those that need not be there
    has_tokenizer_file: ClassVar[bool] = True  # whether a tokenizer.json can hold all of it
    learns: ClassVar[bool] = True  # whether a new vocabulary can be learned for it
    ids_beside: ClassVar[tuple[str, ...]] = ()  # what a call gives of each token beside its id
    start_and_end: ClassVar[tuple[bool, bool] | None] = None  # whether bos and eos stand around texts, if no file says
    more_special_tokens: ClassVar[Any] = None  # settings -> additional_special_tokens, where those follow from them
    # Functions of `backend`: how it is built from its files, and made to follow its settings.
    build: ClassVar[Any] = None
    adapt: ClassVar[Any] = staticmethod(backends.adapt_prefix_space)
    words_need_prefix_space: ClassVar[bool] = False

    padding_side: str
    truncation_side: str
    model_input_names: list[str]
    clean_up_tokenization_spaces: bool
    split_special_tokens: bool
    chat_template: Any
    name_or_path: str
    model_max_length: int

    is_fast = True
    pad_token_type_id = 0

    def __init__(
        self,
        *vocabulary_files: Any,
        tokenizer_object: Tokenizer | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        names = list(self.vocab_files_names)
        if len(vocabulary_files) > len(names):
            raise ValueError(
                f"{type(self).__name__} takes {', '.join(names) or 'no file'} by position, not {vocabulary_files}"
            )
        settings |= dict(zip(names, vocabulary_files, strict=False))
        vocabulary = {name: settings.pop(name, None) for name in (*names, "vocab", "merges")}
        if tokenizer_object is not None:
            backend = copy.deepcopy(tokenizer_object)
        elif tokenizer_file is not None:
            backend = files.read_tokenizer(tokenizer_file)
        else:
            backend = files.build_tokenizer(
                type(self), vocabulary, {**self.special_tokens, **self.defaults, **settings}
            )
        is_built = tokenizer_object is None and tokenizer_file is None
        if is_built:
            settings = {**self.defaults_when_built, **settings}
        settings = {**self.defaults, **_baked_in(backend), **self.special_tokens, **settings}
        super().__init__(backend)
        self._kept_files = files.kept(type(self), vocabulary)

        longest = settings.pop("model_max_length", None) or settings.get("max_len")
        self.__dict__["model_max_length"] = UNLIMITED if longest is None else longest
        self.__dict__["name_or_path"] = str(settings.pop("name_or_path", None) or "")
        for name, default in _ATTRIBUTES.items():
            self.__dict__[name] = settings.pop(name, default)
        self.model_input_names = list(self.model_input_names)
        for name in ("padding_side", "truncation_side"):
            if self.__dict__[name] not in ("left", "right"):
                raise ValueError(f"{name}={self.__dict__[name]!r}: it is 'right' or 'left'")
        ends = (settings.pop("add_bos_token", None), settings.pop("add_eos_token", None))
        if self.more_special_tokens is not None:
            settings["additional_special_tokens"] = self.more_special_tokens(settings)
        take_special_tokens(self, settings, self.token_flags, checks_ids=is_built)
        self.settings = settings

        if is_built and self.frame is not None:
            self.frame(backend, {**settings, **self.special_tokens_map})
        self.adapt(backend, settings)
        if self.start_and_end is None:
            self.ask_for_ends(*ends)
        elif ends != (None, None) or tokens_around(backend) is None:
            wanted = [default if end is None else end for end, default in zip(ends, self.start_and_end, strict=True)]
            self._put_ends(*wanted)

    def __getattr__(self, name: str) -> Any:
        special, settings = self.__dict__.get("_special", {}), self.__dict__.get("settings", {})
        if name in special:
            return None if special[name] is None else str(special[name])
        if name.removesuffix("_id") in special:
            token = getattr(self, name.removesuffix("_id"))
            return None if token is None else self.convert_tokens_to_ids(token)
        if name in settings:
            return settings[name]
        hint = f"; use {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("settings", ()):
            with self._lock:
                self.settings[name] = value
                self.adapt(self._tokenizer, self.settings)
        elif name not in NAMES and name in self.__dict__.get("_special", ()):
            self.set_special_token(name, value)
        else:
            super().__setattr__(name, value)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"length={len(self)}, model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
            f"special_tokens={self.special_tokens_map})"
        )

    @property
    def max_len_single_sentence(self) -> int:
        return self.model_max_length - self.num_special_tokens_to_add(False)

    @property
    def max_len_sentences_pair(self) -> int:
        return self.model_max_length - self.num_special_tokens_to_add(True)

    # --- text to ids

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        **options: Any,
    ) -> BatchEncoding:
        """Encode one text, a list of texts, or pairs of them; with `text_target`, labels too.

        Options are those of `encode_plus`. `text_target` is encoded alike, and its ids become `labels` beside those of
        `text`; alone, it gives what `text` would. Lists unless `return_tensors` says otherwise; one text gives rows
        without the batch axis.

        Raises:
            ValueError: nothing was given, or something other than text; an option that is not known or cannot be met.
        """
        if text is None and text_target is None:
            raise ValueError("there is nothing to encode: give text, or text_target")
        if text is None:
            return self._encode_target(text_target, text_pair_target, options)
        batch = self.encode_plus(text, text_pair, **options)
        if text_target is not None:
            batch["labels"] = self._encode_target(text_target, text_pair_target, options)["input_ids"]
        return batch

    def _encode_target(self, text: Any, pair: Any, options: dict[str, Any]) -> BatchEncoding:
        """Encode what a model is to write; a family that writes it otherwise than it reads says so here."""
        return self.encode_plus(text, pair, **options)

    def encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Encode one text or pair, or a list of them."""
        if is_split_into_words and self.words_need_prefix_space and not self.settings.get("add_prefix_space"):
            raise ValueError(
                f"is_split_into_words=True: {type(self).__name__} needs a space before each word; make it with "
                "add_prefix_space=True"
            )
        wanted = lengths(
            padding,
            truncation,
            max_length,
            self.model_max_length,
            pad_to_multiple_of,
            padding_side or self.padding_side,
            self.pad_token_id,
        )
        inputs, is_batch = as_inputs(text, text_pair, is_split_into_words)
        inputs, are_words = self._cut(inputs, is_split_into_words)
        if return_offsets_mapping and are_words and not is_split_into_words:
            raise ValueError(
                f"return_offsets_mapping=True: {type(self).__name__} cuts a text before it looks its pieces up, and "
                "where they stood in the text is lost; leave it out"
            )
        splits = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        encodings = encode_batch(self, inputs, wanted, stride, add_special_tokens, are_words, splits)
        if return_overflowing_tokens:
            samples = [row for row, encoding in enumerate(encodings) for _ in (encoding, *encoding.overflowing)]
            encodings = [part for encoding in encodings for part in (encoding, *encoding.overflowing)]
        values: dict[str, list[Any]] = {"input_ids": [encoding.ids for encoding in encodings]}
        values |= self._beside(encodings)
        for name, field, asked in (
            ("token_type_ids", "type_ids", self._wants("token_type_ids", return_token_type_ids)),
            ("attention_mask", "attention_mask", self._wants("attention_mask", return_attention_mask)),
            ("special_tokens_mask", "special_tokens_mask", return_special_tokens_mask),
            ("offset_mapping", "offsets", return_offsets_mapping),
        ):
            if asked:
                values[name] = [getattr(encoding, field) for encoding in encodings]
        if return_length:
            values["length"] = [len(ids) for ids in values["input_ids"]]
        if return_overflowing_tokens:
            values["overflow_to_sample_mapping"] = samples
        longest = max(map(len, values["input_ids"]), default=0)
        if verbose and max_length is None and longest > self.model_max_length:
            say_once(f"a text has {longest} tokens, more than the {self.model_max_length} that the model takes")
        if not is_batch and return_tensors is None and not return_overflowing_tokens:
            values = {name: value[0] if isinstance(value[0], list) else value for name, value in values.items()}
        return BatchEncoding(values, encodings, tensor_type=return_tensors)

    batch_encode_plus = encode_plus

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The ids alone."""
        return self.encode_plus(text, text_pair, **options)["input_ids"]

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """The tokens of a text, as written in the vocabulary."""
        return self.encode_plus(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad encoded texts, one, a batch or a list of them, to one length; what is given is not changed."""
        side = padding_side or self.padding_side
        wanted = lengths(padding, False, max_length, self.model_max_length, pad_to_multiple_of, side, self.pad_token_id)
        masks = self._wants("attention_mask", return_attention_mask)
        return pad_rows(self, encoded_inputs, wanted, masks, return_tensors)

    def _cut(self, inputs: list[Any], are_words: bool) -> tuple[list[Any], bool]:
        """The texts, and whether they are lists of words; a family that cuts them before the backend does so here."""
        return inputs, are_words

    def _beside(self, encodings: list[Any]) -> dict[str, list[list[int]]]:
        """What `ids_beside` names, for each row."""
        return {}

    def _wants(self, name: str, said: bool | None) -> bool:
        return name in self.model_input_names if said is None else said

    # --- ids to text

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> str:
        """The text of a row of ids, a list or a tensor of any framework."""
        return self.batch_decode([token_ids], skip_special_tokens, clean_up_tokenization_spaces)[0]

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> list[str]:
        """The texts of rows of ids; ids that the vocabulary does not have give nothing.

        Raises:
            ValueError: an id below zero, such as the -100 of labels.
        """
        said = clean_up_tokenization_spaces
        cleans = self.clean_up_tokenization_spaces if said is None else said
        return decode_batch(self, sequences, skip_special_tokens, cleans)

    clean_up_tokenization = staticmethod(clean_up)

    # --- files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *inputs: Any, **kwargs: Any) -> Any:
        """Read a tokenizer from a folder or a hub id; keywords replace what its files say.

        Raises:
            FileNotFoundError: no such folder or repository, or neither a `tokenizer.json` nor vocabulary files there.
            OSError: a file is not what it should be.
        """
        found = files.find(cls, pretrained_model_name_or_path, kwargs)
        return cls(*inputs, **found)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, push_to_hub: bool = False, **kwargs: Any
    ) -> tuple[str, ...]:
        """Write the tokenizer's files into a folder, all or none; returns their paths.

        Other keywords are those of `warmstart.hub.upload_folder`, and `repo_id`.

        Raises:
            TypeError: an argument is not known.
        """
        if kwargs.pop("legacy_format", None):
            raise TypeError("legacy_format=True: a tokenizer is saved with its tokenizer.json; leave it out")
        if unknown := kwargs.keys() - {"repo_id", *UPLOADING}:
            raise TypeError(f"{type(self).__name__}.save_pretrained got unknown arguments {sorted(unknown)}")
        written = files.save(self, save_directory)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", None) or os.path.basename(os.path.abspath(save_directory))
            self.push_to_hub(repo_id, **kwargs)
        return written

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Send the tokenizer's files to the hub; options are those of `warmstart.hub.upload_folder`."""
        with tempfile.TemporaryDirectory() as folder:
            files.save(self, folder)
            return upload_folder(folder, repo_id, **options)

    def train_new_from_iterator(self, text_iterator: Any, vocab_size: int, **options: Any) -> Any:
        """A tokenizer that works as this one does, with a vocabulary learned from other texts."""
        return training.train_new(self, text_iterator, vocab_size, **options)


def _baked_in(backend: Tokenizer) -> dict[str, Any]:
    """Take the padding and truncation that a `tokenizer.json` may hold out of it; here each call says them."""
    settings: dict[str, Any] = {}
    if backend.truncation is not None:
        settings["truncation_side"] = backend.truncation["direction"]
        backend.no_truncation()
    if backend.padding is not None:
        settings |= {"padding_side": backend.padding["direction"], "pad_token": backend.padding["pad_token"]}
        backend.no_padding()
    return settings
