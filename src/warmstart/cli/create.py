"""`warmstart create`: one encoder-decoder of two checkpoints, saved as a folder, with an account of its weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from warmstart.checkpoint.writer import TARGET_TOKENIZER
from warmstart.cli.rendering import busy, console, count, patterns, say, table
from warmstart.cli.settings import DataType, parse_settings, prepare_torch
from warmstart.cli.token_ids import missing, rows, token_ids
from warmstart.folder import check_can_write

CHECKPOINTS, WEIGHTS, HUB = "Checkpoints", "Weights and settings", "The hub"


class Tie(str, Enum):
    """What may be one in a model."""

    all = "all"
    head = "head"

    @property
    def fields(self) -> dict[str, bool]:
        """What it sets in the configuration."""
        return {"tie_encoder_decoder": True} if self is Tie.all else {"decoder_tie_word_embeddings": True}


class Start(str, Enum):
    """Where new cross-attention starts."""

    random = "random"
    copy = "copy"


def _option(panel: str, metavar: str | None, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, metavar=metavar, help=text, **more)


def create(
    *,
    encoder: Annotated[str, _option(CHECKPOINTS, "DIR|ID", "The encoder: a folder or a hub id.", show_default=False)],
    decoder: Annotated[
        str | None, _option(CHECKPOINTS, "DIR|ID", "The decoder; with --tie all, the encoder's.")
    ] = None,
    output: Annotated[Path, _option(CHECKPOINTS, "DIR", "The folder to make.", "--output", "-o", show_default=False)],
    force: Annotated[bool, _option(CHECKPOINTS, None, "Write into a folder that is not empty.", "--force")] = False,
    tie: Annotated[
        Tie | None,
        _option(
            WEIGHTS,
            None,
            "all: the sides share their weights. head: the decoder's output layer is its token embeddings. "
            "Left out: as the checkpoints have it.",
        ),
    ] = None,
    cross_attention: Annotated[
        Start,
        _option(WEIGHTS, None, "How new cross-attention starts; copy: from self-attention."),
    ] = Start.random,
    seed: Annotated[int, _option(WEIGHTS, "N", "Seed of the weights that start at random.")] = 0,
    dtype: Annotated[
        DataType, _option(WEIGHTS, "TYPE", "float32, bfloat16, float16, or auto: as in the files.")
    ] = DataType.float32,
    settings: Annotated[
        list[str] | None,
        _option(
            WEIGHTS,
            "NAME=X",
            "A field of the configuration: num_beams=4, decoder_start_token_id=101, encoder_NAME=X and decoder_NAME=X "
            "for a side's own. As often as needed.",
            "--set",
        ),
    ] = None,
    max_shard_size: Annotated[str, _option(WEIGHTS, "SIZE", "Larger weights are split over files.")] = "5GB",
    encoder_revision: Annotated[str | None, _option(HUB, "NAME", "Branch, tag or commit of the encoder.")] = None,
    decoder_revision: Annotated[str | None, _option(HUB, "NAME", "Branch, tag or commit of the decoder.")] = None,
    cache_dir: Annotated[Path | None, _option(HUB, "DIR", "Where downloads are kept.")] = None,
    offline: Annotated[bool, _option(HUB, None, "Ask no hub; use what was downloaded.", "--offline")] = False,
) -> None:
    """Make one encoder-decoder model of two checkpoints.

    Keeps the weights that exist, makes what is missing (cross-attention, and a
    projection where the widths differ), and tells which is which. The model
    has to be fine-tuned before it writes sense.
    """
    from warmstart.checkpoint.writer import size_in_bytes

    if decoder is None and tie is not Tie.all:
        raise ValueError("--decoder is missing; give a folder or a hub id (only --tie all does without)")
    size_in_bytes(max_shard_size)
    _check_output(output, force)
    shared = {"cache_dir": cache_dir, "local_files_only": offline}
    sides = {
        "encoder": (encoder, {**shared, "revision": encoder_revision}),
        "decoder": (decoder or encoder, {**shared, "revision": decoder_revision if decoder else encoder_revision}),
    }
    with busy("loading the checkpoints"):
        fields = parse_settings(settings or [], _known(sides))
        fields |= {} if tie is None else tie.fields
        model = _load(sides, cross_attention, dtype, seed, fields)
        tokenizers = {side: _tokenizer(side, *sides[side]) for side in sides}
        if sides["encoder"] == sides["decoder"]:
            tokenizers["decoder"] = tokenizers["encoder"]
    show(model, {side: place for side, (place, _) in sides.items()}, fields, tokenizers["decoder"])
    with busy(f"saving to {output}"):
        _save(model, output, max_shard_size, tokenizers)
    console().print(f"Saved to {output}. Fine-tune it before use: what is new knows nothing yet.", soft_wrap=True)


def _known(sides: Mapping[str, tuple[str, dict[str, Any]]]) -> list[str]:
    """The names that may be set: fields of a pair, and those of each side with the side before them."""
    from warmstart.config import COMMON
    from warmstart.families.auto import AutoConfig
    from warmstart.generation_config import GenerationConfig
    from warmstart.warm_start import half

    names = [*GenerationConfig.DEFAULTS, *COMMON]
    for side, (place, hub) in sides.items():
        config, _ = half(AutoConfig.from_pretrained(place, **hub), side)
        names += [f"{side}_{name}" for name in (*config.defaults, *config.attribute_map, *COMMON)]
    return names


def _check_output(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output {folder} is a file; give a folder")
    check_can_write(folder)
    if folder.is_dir() and not force and any(folder.iterdir()):
        raise FileExistsError(f"--output {folder} is not empty; give another folder, or --force to write into it")


def _load(
    sides: Mapping[str, tuple[str, dict[str, Any]]],
    cross_attention: Start,
    dtype: DataType,
    seed: int,
    fields: Mapping[str, Any],
) -> Any:
    from warmstart import EncoderDecoderModel, GenerationConfig

    GenerationConfig(**{name: value for name, value in fields.items() if name in GenerationConfig.DEFAULTS})
    prepare_torch(seed)
    hub = {f"{side}_{name}": value for side, (_, options) in sides.items() for name, value in options.items()}
    places = (place for place, _ in sides.values())
    return EncoderDecoderModel.from_encoder_decoder_pretrained(
        *places, cross_attention_init=cross_attention.value, dtype=dtype.value, **{**hub, **fields}
    )


def _tokenizer(side: str, place: str, hub: Mapping[str, Any]) -> Any:
    from warmstart.tokenization.auto import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, **hub)
    except FileNotFoundError as error:
        say(f"warning: the {side} brings no tokenizer, so the new folder will lack it: {error}")
        return None


def _save(model: Any, folder: Path, max_shard_size: str, tokenizers: Mapping[str, Any]) -> None:
    """Save the model with its tokenizers, and let none of an earlier model stand beside it."""
    encoder, decoder = tokenizers["encoder"], tokenizers["decoder"]
    both = {"encoder_tokenizer": encoder, "decoder_tokenizer": decoder} if encoder is not None else {}
    model.save_pretrained(folder, max_shard_size=max_shard_size, **both)
    if encoder is None:
        from warmstart.tokenization import files

        for name in files.ALL:
            (folder / name).unlink(missing_ok=True)
    if decoder is None or decoder is encoder:
        shutil.rmtree(folder / TARGET_TOKENIZER, ignore_errors=True)
    elif encoder is None:
        decoder.save_pretrained(folder / TARGET_TOKENIZER)


def show(model: Any, places: Mapping[str, str], fields: Mapping[str, Any], tokenizer: Any) -> None:
    """Print where the weights come from, a table for each side, and which token ids were found."""
    from warmstart.config import TOKEN_IDS
    from warmstart.tokenization.auto import IDS
    from warmstart.warm_start import PROJECTION

    out = console()
    for side, place in places.items():
        config, stack = getattr(model.config, side), getattr(model, side)
        _print_weights(
            out,
            f"{side.capitalize()}: {config.model_type} from {place}, "
            f"{stack.spec.layers} layers of {stack.spec.hidden_size:,}",
            origins(model, f"{side}."),
            stack.load_report.left_out,
        )
    if between := origins(model, PROJECTION):
        _print_weights(out, "Between", between)
    _print_weights(out, "Together", origins(model, ""), share=True)
    settings = model.config.decoder.generation_config.explicit()
    source = [("--set", fields), ("decoder's settings", {name: settings.get(name) for name in TOKEN_IDS})]
    ids = {name: getattr(tokenizer, name) for name in IDS} if tokenizer is not None else {}
    found = token_ids(model.config, [*source, ("decoder's tokenizer", ids)], tokenizer)
    shown = table("token", "id", "text", "from")
    for row in rows(found):
        shown.add_row(*row)
    out.print(shown)
    out.print()
    for name in missing(found):
        say(f"warning: {name} was not found: give it with --set {name}=ID, or training and generate will ask for it")


def origins(model: Any, prefix: str) -> dict[str, dict[str, int]]:
    """Origin -> weights whose names start with a prefix -> numbers in them; tied weights stand where they come from.

    A decoder's weights that are the encoder's too are "shared" in the decoder's own table, and left out of the whole.
    """
    report = model.load_report
    origin = {name: kind for kind in ("loaded", "new", "copied") for name in getattr(report, kind)}
    if prefix == "decoder." and model.config.tie_encoder_decoder:
        origin |= {name.replace("encoder.", prefix, 1): "shared" for name in origin if name.startswith("encoder.")}
    found: dict[str, dict[str, int]] = {"loaded": {}, "shared": {}, "copied": {}, "new": {}}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.startswith(prefix) and name in origin:
            found[origin[name]][name] = parameter.numel()
    return {kind: weights for kind, weights in found.items() if weights}


def _print_weights(
    out: Any, title: str, groups: Mapping[str, Mapping[str, int]], left_out: Sequence[str] = (), share: bool = False
) -> None:
    from warmstart.cli.parts import part_of

    shown = table("", "weights", "parameters", "")
    for column, width in zip(shown.columns, (8, 7, 10), strict=False):
        column.min_width = width
    shown.columns[1].justify = shown.columns[2].justify = "right"
    total = sum(sum(weights.values()) for weights in groups.values())
    for origin, weights in groups.items():
        numbers = sum(weights.values())
        what = f"{numbers / total:.1%}" if share else ", ".join(dict.fromkeys(map(part_of, weights)))
        shown.add_row(origin, f"{len(weights):,}", count(numbers), what)
    if left_out:
        shown.add_row("left out", f"{len(left_out):,}", "", patterns(left_out))
    out.print(title, soft_wrap=True)
    out.print(shown)
    out.print()
