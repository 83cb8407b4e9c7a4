"""`generate` in TensorFlow: works a call out, and runs it as one graph that is traced once for each kind of call.

Shapes: b sources, p prompt length, s source length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from warmstart.decoding.arguments import check_arguments, listed
from warmstart.decoding.choice import check_choice, check_found
from warmstart.decoding.outputs import output_of, transition_scores
from warmstart.decoding.settings import Plan, lay_over, resolve
from warmstart.generation_config import GenerationConfig
from warmstart.tf.arrays import Array, TensorFlowArrays
from warmstart.tf.cache import KeyValueCache, apart
from warmstart.tf.elements import size_of
from warmstart.tf.generation.inputs import (
    REFUSED,
    check_settings,
    decoder_prompt,
    encoder_inputs,
    negative_tensors,
    prompt_only,
    source_tensors,
)
from warmstart.tf.generation.rules import Strings
from warmstart.tf.generation.search import Search
from warmstart.tf.inputs import eager

_MOST_TRACES = 32  # kept by a model: the oldest goes


@tf.autograph.experimental.do_not_convert  # nothing here is to be rewritten, and looking takes most of a trace
def generate(
    model: Any,
    inputs: Any = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Sequence[Callable[..., Any]] | None = None,
    stopping_criteria: Sequence[Callable[..., Any]] | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Any], Any] | None = None,
    seed: Any = None,
    jit_compile: bool = False,
    pad_to_multiple_of: int | None = None,
    **kwargs: Any,
) -> Any:
    """Generate token ids: greedy search, sampling, beams, also diverse or constrained, or contrastive search.

    The settings are the model's `generation_config`, under those of the `generation_config` given here, under the
    keyword arguments. The encoder runs once; its states are shared by all sequences of a source. A call is one graph,
    traced once for each set of settings whatever the batch; inside a `tf.function` it becomes part of that.

    Args:
        model: an encoder-decoder, or a causal language model.
        inputs: source ids `(batch, source_length)`, or for a model without an encoder the prompt, padded on the left;
            the same as `input_ids`.
        generation_config: settings for this call.
        logits_processor: functions `(ids (rows, max_length), scores (rows, vocabulary), cur_len) -> scores`, traced
            with the rest, applied after those of the settings and before temperature, top_k and the like.
        stopping_criteria: rules that end rows, `(ids (rows, max_length), cur_len) -> booleans (rows,)` or one, traced.
        prefix_allowed_tokens_fn: `(source, ids (length,)) -> token ids` that may follow; asked at each step.
        seed: two whole numbers that the random numbers of sampling follow from; drawn anew if None.
        jit_compile: compile with XLA, once for each shape of the inputs. Inside a `tf.function` it says that this is
            compiled itself, and lays the decoder's matrices out for that.
        pad_to_multiple_of: round source lengths up to a multiple of so many tokens, so that few shapes are compiled.
        kwargs: settings; `attention_mask` (derived from the pad id if left out), `inputs_embeds`, `encoder_outputs`,
            `token_type_ids`; `decoder_input_ids` and `decoder_attention_mask`, a prompt for the decoder;
            `negative_prompt_ids` and their mask, for `guidance_scale`; `tokenizer`, for `stop_strings`.

    Returns:
        Token ids `(batch * num_return_sequences, length)`, prompt included, rows that ended early filled with the pad
        id; inside a `tf.function` the length is always the maximal one. With `return_dict_in_generate=True` one of the
        classes of `warmstart.decoding.outputs`.

    Raises:
        ValueError: an argument is unknown or needs shapes that change, settings contradict each other, a special
            token's id is missing, or inputs have a wrong shape; the message names it and says what to do.

    >>> from warmstart import BertConfig, EncoderDecoderConfig, TFEncoderDecoderModel
    >>> size = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**size), BertConfig(**size))
    >>> model = TFEncoderDecoderModel(config)
    >>> source = [[4, 5, 6], [7, 8, 0]]
    >>> ids = generate(model, source, decoder_start_token_id=1, eos_token_id=2, min_length=4, max_length=4, num_beams=3)
    >>> ids.shape, ids.numpy()[:, 0].tolist()
    (TensorShape([2, 4]), [1, 1])
    """
    config, arguments = lay_over(model.generation_config, generation_config, kwargs)
    check_arguments(config, arguments, "TensorFlow", REFUSED)
    check_settings(config, prefix_allowed_tokens_fn, jit_compile)
    if inputs is not None:
        if arguments.get("input_ids") is not None:
            raise ValueError("the source was given twice, as `inputs` and as `input_ids`; give one of them")
        arguments["input_ids"] = inputs
    encoder_decoder = hasattr(model, "encode")  # a BART's decoder alone says is_encoder_decoder in its config
    given: dict[str, Any] = {}
    if encoder_decoder:
        given = source_tensors(model, arguments, pad_to_multiple_of)
        prompt, mask = decoder_prompt(config, arguments, size_of(next(iter(given.values())), 0))
    else:
        prompt, mask = prompt_only(model, config, arguments)
    if prompt.shape[1] is None:
        raise ValueError("the prompt's length must be known when generate is traced; give it a fixed shape")
    plan = _plan(model, config, kwargs, prompt.shape[1], encoder_decoder)
    given["prompt"] = prompt
    if mask is not None and not (eager(mask) and bool(tf.reduce_all(tf.cast(mask, tf.bool)))):
        given["prompt_mask"] = tf.cast(mask, tf.int32)
    given |= negative_tensors(model, config, arguments, prompt, encoder_decoder)
    if plan.sample:
        given["seed"] = _seed(seed)
    search = Search(
        model,
        config,
        plan,
        custom=listed(logits_processor),
        rules=listed(stopping_criteria),
        prefix=prefix_allowed_tokens_fn,
        strings=None if config.stop_strings is None else Strings(config.stop_strings, arguments.get("tokenizer")),
        compiled=jit_compile,
    )
    if tf.executing_eagerly():
        result = _cut(_run(search, given), plan, config.length_penalty)
    else:
        result = search(given)
    if not config.return_dict_in_generate:
        return result["sequences"]
    return _output(result, search, arguments if encoder_decoder else None)


def compute_transition_scores(
    model: Any,
    sequences: Any,
    scores: Sequence[Any],
    beam_indices: Any = None,
    normalize_logits: bool = False,
) -> Any:
    """The score of each generated token: (b * m, new tokens), 0 behind the end of a beam.

    Args:
        model: not used; this is a method of models.
        sequences: what `generate` returned with `return_dict_in_generate=True`, (b * m, n).
        scores: its `scores`, (r, v) for each step.
        beam_indices: its `beam_indices` (b * m, new tokens), with beams.
        normalize_logits: make log-probabilities of the scores first.

    Raises:
        ValueError: there are more steps than tokens, or no scores.
    """
    indices = None if beam_indices is None else Array(beam_indices)
    found = transition_scores(
        TensorFlowArrays(), Array(sequences), [Array(x) for x in scores], indices, normalize_logits
    )
    return found.value


def _plan(
    model: Any, config: GenerationConfig, call: dict[str, Any], prompt_length: int, encoder_decoder: bool
) -> Plan:
    decoder = model.decoder if encoder_decoder else model
    exact = decoder.spec.positions
    positions = exact
    if exact is None and not encoder_decoder:
        positions = getattr(model.config, "max_position_embeddings", None)
    return resolve(
        config,
        call,
        prompt_length=prompt_length,
        encoder_decoder=encoder_decoder,
        positions=positions,
        exact_positions=exact is not None,
    )


def _seed(seed: Any) -> Any:
    if seed is None:
        return tf.random.uniform([2], minval=0, maxval=2**31 - 1, dtype=tf.int32)
    seed = [0, seed] if isinstance(seed, int) else seed
    seed = tf.convert_to_tensor(seed)
    if seed.shape != (2,):
        raise ValueError(f"seed of shape {tuple(seed.shape)}: give one whole number or two")
    return tf.cast(seed, tf.int32)


def _run(search: Search, given: dict[str, Any]) -> dict[str, Any]:
    """What the search finds, in graphs that are traced once for each kind of call.

    On a processor the encoder is a graph of its own, which is not compiled: TensorFlow's products of large matrices are
    faster there than XLA's.
    """
    strings, encoded = search.strings, {}
    if search.compiled and search.is_pair and "states" not in given and not tf.config.list_physical_devices("GPU"):
        source = encoder_inputs(given)
        encoded = _traced(search.model, ("encoder", search.wants), search.encoded, source)(source)
        given = {**given, "states": encoded["states"]}
    settings = repr(search.config), search.plan, search.compiled, None if strings is None else strings.key
    kind = (*settings, search.custom, search.rules, search.prefix)
    result = _traced(search.model, kind, search.__call__, given, search.compiled)(given)
    return {**result, "encoder": encoded["encoder"]} if encoded else result


def _traced(
    model: Any, kind: tuple[Any, ...], function: Callable[..., Any], given: dict[str, Any], compiled: bool = False
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The graph of this kind of call; its batch and its source may have any size."""
    signature = {name: _any_batch(name, x) for name, x in given.items()}
    kind = (*kind, *signature.items(), model.compute_dtype)
    traces = model.__dict__.setdefault("_generate_traces", {})
    if kind not in traces:
        while len(traces) >= _MOST_TRACES:
            traces.pop(next(iter(traces)))
        traces[kind] = tf.function(function, input_signature=[signature], jit_compile=compiled, autograph=False)
    return traces[kind]


def _any_batch(name: str, x: Any) -> tf.TensorSpec:
    fixed = {"seed": 0}.get(name, 1 if name.startswith(("prompt", "negative")) else 2)
    shape = [size if axis >= fixed else None for axis, size in enumerate(x.shape)]
    return tf.TensorSpec(shape, x.dtype, name=name)


def _cut(result: dict[str, Any], plan: Plan, length_penalty: float) -> dict[str, Any]:
    """The result as long as its longest sequence.

    Raises:
        ValueError: a row had no token to choose, or nothing was found for a source, which a graph could not raise.
    """
    length = int(result["length"])
    new = length - plan.prompt_length
    check_choice(*result["trouble"][0].numpy().tolist())
    cut = {**result, "sequences": result["sequences"][:, :length]}
    if plan.beams > 1:
        best = tf.reshape(result["sequences_scores"], [-1, plan.sequences])[:, 0]
        check_found(best.numpy().tolist(), new, length_penalty)
        cut["beam_indices"] = result["beam_indices"][:, :new]
    return cut


def _output(result: dict[str, Any], search: Search, source: dict[str, Any] | None) -> Any:
    """The result as one of the output classes; inside a `tf.function`, of all steps that there are room for."""
    plan = search.plan
    steps = tf.get_static_value(result["held"])
    steps = (plan.max_length if steps is None else int(steps)) - plan.prompt_length
    found = {**result, "cache": _cache(result, search)}
    new = (result["sequences"].shape[1] or plan.max_length) - plan.prompt_length
    return output_of(found, plan, search.config, new, steps, source, _joined)


def _joined(before: Any, after: Any) -> Any:
    return tf.concat([tf.repeat(before, tf.shape(after)[0] // tf.shape(before)[0], 0), after], -2)


def _cache(result: dict[str, Any], search: Search) -> KeyValueCache:
    """The cache of what was read, which a call of the model goes on from."""
    length = result["held"] - 1
    cache: KeyValueCache = search.decoder.new_cache()
    pairs = apart(result["cache"])
    cache = cache.with_own(([tuple(x[:, :, :length] for x in pair) for pair in pairs], ()), length)
    for layer, pair in zip(cache.layers, result["source_cache"], strict=False):
        layer.source = pair
    return cache
