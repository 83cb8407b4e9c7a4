"""`generate` in TensorFlow: works a call out, and runs it as one graph that is traced once for each kind of call.

Shapes: b sources, p prompt length, s source length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from warmstart.decoding.beams import LOW
from warmstart.decoding.outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)
from warmstart.decoding.settings import Plan, lay_over, resolve
from warmstart.generation_config import GenerationConfig
from warmstart.tf.generation_inputs import (
    check_arguments,
    check_settings,
    decoder_prompt,
    prompt_only,
    source_tensors,
)
from warmstart.tf.generation_loops import Search
from warmstart.tf.inputs import eager
from warmstart.tf.layers import size_of

_MOST_TRACES = 32  # kept by a model: the oldest goes


@tf.autograph.experimental.do_not_convert  # nothing here is to be rewritten, and looking takes most of a trace
def generate(
    model: Any,
    inputs: Any = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Sequence[Callable[..., Any]] | None = None,
    seed: Any = None,
    jit_compile: bool = False,
    pad_to_multiple_of: int | None = None,
    **kwargs: Any,
) -> Any:
    """Generate token ids: greedy search, sampling, beam search, diverse beams or beam sampling, as the settings say.

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
        seed: two whole numbers that the random numbers of sampling follow from; drawn anew if None.
        jit_compile: compile with XLA, once for each shape of the inputs. Inside a `tf.function` it says that this is
            compiled itself, and lays the decoder's matrices out for that.
        pad_to_multiple_of: round source lengths up to a multiple of so many tokens, so that few shapes are compiled.
        kwargs: settings; `attention_mask` (derived from the pad id if left out), `inputs_embeds`, `encoder_outputs`,
            `token_type_ids`; `decoder_input_ids` and `decoder_attention_mask`, a prompt for the decoder.

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
    check_arguments(arguments)
    check_settings(config)
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
    if plan.sample:
        given["seed"] = _seed(seed)
    functions = tuple(logits_processor or ())
    if tf.executing_eagerly():
        result = _traced(model, config, plan, functions, given, jit_compile)(given)
        result = _cut(result, plan)
    else:
        result = Search(model, config, plan, functions, jit_compile)(given)
    return _output(result, config, plan, encoder_decoder) if config.return_dict_in_generate else result["sequences"]


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


def _traced(
    model: Any,
    config: GenerationConfig,
    plan: Plan,
    functions: tuple[Callable[..., Any], ...],
    given: dict[str, Any],
    jit_compile: bool,
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The graph of this kind of call; its batch and its source may have any size."""
    kind = (repr(config), plan, functions, tuple(given), jit_compile, model.compute_dtype)
    traces = model.__dict__.setdefault("_generate_traces", {})
    if kind not in traces:
        while len(traces) >= _MOST_TRACES:
            traces.pop(next(iter(traces)))
        signature = {name: _any_batch(name, x) for name, x in given.items()}
        search = Search(model, config, plan, functions, jit_compile)
        traces[kind] = tf.function(
            search.__call__, input_signature=[signature], jit_compile=jit_compile, autograph=False
        )
    return traces[kind]


def _any_batch(name: str, x: Any) -> tf.TensorSpec:
    fixed = {"prompt": 1, "prompt_mask": 1, "seed": 0}.get(name, 2)
    shape = [size if axis >= fixed else None for axis, size in enumerate(x.shape)]
    return tf.TensorSpec(shape, x.dtype, name=name)


def _cut(result: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The result as long as its longest sequence."""
    length = int(result["length"])
    new = length - plan.prompt_length
    cut = {**result, "sequences": result["sequences"][:, :length]}
    if plan.strategy != "rows":
        best = tf.reshape(result["sequences_scores"], [-1, plan.sequences])[:, 0].numpy()
        if not (best > LOW / 2).all():
            raise ValueError(
                f"no sequence is possible for source {int((best <= LOW / 2).argmax())}: the settings that forbid or "
                "force tokens leave none, or the model's logits are no numbers"
            )
        cut["beam_indices"] = result["beam_indices"][:, :new]
    return cut


def _output(result: dict[str, Any], config: GenerationConfig, plan: Plan, encoder_decoder: bool) -> Any:
    """The result as one of the output classes."""
    steps = tf.get_static_value(result["length"])
    steps = plan.max_length - plan.prompt_length if steps is None else int(steps) - plan.prompt_length
    fields = {"sequences": result["sequences"]}
    for name in ("scores", "logits"):
        if name in result:
            fields[name] = tuple(tf.unstack(result[name])[:steps])
    if plan.strategy == "rows":
        return (GenerateEncoderDecoderOutput if encoder_decoder else GenerateDecoderOnlyOutput)(**fields)
    fields["beam_indices"] = result["beam_indices"]
    if config.output_scores:
        fields["sequences_scores"] = result["sequences_scores"]
    return (GenerateBeamEncoderDecoderOutput if encoder_decoder else GenerateBeamDecoderOnlyOutput)(**fields)
