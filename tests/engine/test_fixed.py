"""The step in fixed shapes gives what the modules give, and can be recorded: it is, here on a tape, and is replayed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from engine_helpers import difference
from tiny_models import FIRST, PAIRS, RELATED, VOCABULARY, batch, config, generated, pair, spread_out, trained
from warmstart import AutoModelForCausalLM
from warmstart.torch import runner
from warmstart.torch.engine import encoder_graphs, graphs
from warmstart.torch.engine.encoder_graphs import encode_in_parts
from warmstart.torch.engine.fixed import Shape, Space, bucket, can_fix
from warmstart.torch.engine.graphs import Graphs, graphs_for
from warmstart.torch.generation import loops, many

LOGITS = {"return_dict_in_generate": True, "output_logits": True}
ENDS = [2, 7, 8, 11, 14, 19, 20, 23, 26, 28, 31, 33]  # many, so that random models end soon, and at different times
STRATEGIES = [{}, {"num_beams": 3, "num_return_sequences": 2}]
_READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2"}


class Tape(TorchDispatchMode):
    """A recording as a device makes it: operations over tensors that stay where they are, and no Python between them.

    It refuses what reads a number back, and what makes a size of one.
    """

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        assert name not in _READS, f"{function} reads a number back"
        if name.startswith("index"):
            assert not any(x.dtype is torch.bool for x in tree_flatten(arguments[1:2])[0] if torch.is_tensor(x))
        out = function(*arguments, **(options or {}))
        self.operations.append((function, arguments, options or {}, out))
        return out

    def replay(self):
        for function, arguments, options, out in self.operations:
            again = tree_flatten(function(*arguments, **options))[0]
            for x, y in zip(tree_flatten(out)[0], again, strict=True):
                if torch.is_tensor(x) and x.data_ptr() != y.data_ptr():
                    x.copy_(y)


def record(step):
    """Unlike a device, a tape runs what it records, so that its first replay is done already."""
    tape, ran = Tape(), [True]
    with tape:
        out = step()

    def replay():
        if not ran:
            tape.replay()
        ran.clear()
        return out

    return replay


@pytest.fixture
def fixed(monkeypatch):
    """Run something through the steps in fixed shapes, recorded on tapes; gives the graphs, too."""
    made = []

    def taped(device):
        made.append(Graphs(record, lambda step: step()))
        return made[-1]

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(runner, "can_run", lambda *arguments: False)
            patch.setattr(runner, "is_plain", lambda *arguments: False)
            patch.setattr(runner, "can_record", lambda model, *arguments: can_fix(graphs.decoder_of(model).spec))
            patch.setattr(graphs, "graphs_for", taped)
            return function(), made

    return run


def sources(model, rows=3):
    inputs = batch(rows, encoder_pad=model.config.encoder.pad_token_id)
    inputs.pop("labels")
    return inputs


def causal(family):
    torch.manual_seed(0)
    return spread_out(AutoModelForCausalLM(config(family, is_decoder=True))).eval()


CASES = [(sides, strategy) for sides in (*PAIRS, ("bert", "mistral"), ("bart", "qwen3")) for strategy in STRATEGIES]
CASES += [(sides, STRATEGIES[1]) for sides in RELATED if sides[1] != "bloom"]  # bloom's scores lean with distance


@pytest.mark.parametrize(("sides", "strategy"), CASES, ids=lambda x: str(x) if isinstance(x, dict) else "-".join(x))
def test_tokens_and_logits_are_the_modules(sides, strategy, fixed, by_modules):
    model = pair(*sides)
    inputs = sources(model)

    def run():
        return model.generate(**inputs, **strategy, **LOGITS, max_new_tokens=9, min_new_tokens=9)

    ours, (made,) = fixed(run)
    assert difference(ours, by_modules(run)) <= 1e-5
    assert made.replays == 8 and len(made.made) == 1


@pytest.mark.parametrize(
    "strategy",
    [
        {"do_sample": True, "seed": 3, "num_return_sequences": 3},
        {"num_beams": 3, "do_sample": True, "seed": 3},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beams": 3, "force_words_ids": [[9], [6, 7]]},
        {"prompt_lookup_num_tokens": 3},
        {"prompt_lookup_num_tokens": 3, "num_return_sequences": 2, "do_sample": True, "seed": 1},
    ],
    ids=str,
)
def test_other_searches(strategy, fixed, by_modules):
    model = pair("bert", "llama")
    inputs = sources(model, 2)

    def run():
        return model.generate(**inputs, **strategy, max_new_tokens=12)

    ours, (made,) = fixed(run)
    assert torch.equal(ours, by_modules(run))
    assert made.replays > 0


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "roberta"])
def test_prompts_with_padding_on_the_left(family, beams, fixed, by_modules):
    model = pair("bert", family)
    prompt = torch.randint(FIRST, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(prompt)
    mask[0, :3], mask[1, :1] = 0, 0
    inputs = sources(model) | {"decoder_input_ids": prompt * mask, "decoder_attention_mask": mask}

    def run():
        return model.generate(**inputs, **LOGITS, num_beams=beams, max_new_tokens=7)

    assert difference(fixed(run)[0], by_modules(run)) <= 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_models_without_an_encoder(family, fixed, by_modules):
    model = causal(family)
    ids = torch.randint(FIRST, VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(1))

    def run():
        return model.generate(ids, **LOGITS, num_beams=2, max_new_tokens=7, eos_token_id=2, pad_token_id=0)

    assert difference(fixed(run)[0], by_modules(run)) <= 1e-5


def test_drafts_of_a_model(fixed, by_modules):
    model, assistant = pair("bert", "gpt2"), pair("bert", "gpt2", seed=1)
    inputs = sources(model, 1)

    def run():
        return model.generate(**inputs, assistant_model=assistant, max_new_tokens=12)

    assert torch.equal(fixed(run)[0], by_modules(run))


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 2}], ids=str)
def test_sources_that_leave(strategy, fixed, by_modules):
    model = pair("bert", "llama")
    inputs = sources(model, 6)

    def run():
        return model.generate(**inputs, **strategy, max_new_tokens=20, eos_token_id=ENDS)

    ours, (made,) = fixed(run)
    assert torch.equal(ours, by_modules(run))
    assert len({shape.sources for shape in made.made}) > 1


def test_more_tokens_than_a_bucket(fixed, by_modules):
    model = pair("bert", config("llama", max_position_embeddings=200))
    inputs = sources(model, 2)

    def run():
        return model.generate(**inputs, **LOGITS, num_beams=2, max_new_tokens=130, min_new_tokens=130)

    ours, (made,) = fixed(run)
    assert difference(ours, by_modules(run)) <= 1e-5
    assert [shape.length for shape in made.made] == [64, 96, 128, 192]


def test_past_key_values_are_what_the_modules_hold(fixed, by_modules):
    model = pair("bert", "llama")
    inputs = sources(model)

    def run():
        return model.generate(**inputs, **LOGITS, num_beams=2, max_new_tokens=5, min_new_tokens=5).past_key_values

    for ours, theirs in zip(fixed(run)[0], by_modules(run), strict=True):
        for own, other in zip(ours, theirs, strict=True):
            assert (own - other).abs().max() <= 1e-5


def test_graphs_stay_from_call_to_call_and_see_weights_that_change(fixed, by_modules):
    model = pair("bert", "gpt2")
    inputs = batch(encoder_pad=0)

    def run():
        return generated(model, inputs)

    before, made = fixed(run)
    space = graphs._idle[model.decoder][1]
    for keys, values in (*space.own, *space.pairs):  # as a model that failed may leave them
        keys.fill_(float("nan")), values.fill_(float("nan"))
    with torch.no_grad():
        model.decoder.layers[0].mlp.up.weight.mul_(-1.0)
    after, _ = fixed(run)
    assert len(made) == 1 and made[0].replays == 11  # all but the first pass
    assert torch.equal(after, by_modules(run)) and not torch.equal(before, after)
    weight = model.decoder.layers[0].mlp.up.weight
    weight.data = -weight.data  # in another place
    replaced, _ = fixed(run)
    assert len(made) == 2
    assert torch.equal(replaced, by_modules(run))
    assert model.decoder in graphs._idle
    trained(model, inputs)
    assert model.decoder not in graphs._idle
    assert torch.equal(fixed(run)[0], by_modules(run))


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}, {"num_beams": 2, "length_penalty": 2.0}], ids=str)
def test_refilled_batches(strategy, fixed, monkeypatch):
    monkeypatch.setattr(many, "ROWS", 7)  # so that sources join and leave
    model = pair(config("bert", max_position_embeddings=200), "llama")
    draw = torch.Generator().manual_seed(0)
    lengths = [*torch.randint(1, 14, (12,), generator=draw).tolist(), 70, 3, 130, 5, 2]  # and have more room
    inputs = [torch.randint(FIRST, VOCABULARY, (length,), generator=draw).tolist() for length in lengths]

    def run():
        settings = {**strategy, "max_length": 11, "eos_token_id": ENDS}
        return model.generate_many(inputs, batch_tokens=80, window=5, **settings)

    ours, (made,) = fixed(run)
    for answer, other in zip(ours, run(), strict=True):
        assert [row.tolist() for row in answer.sequences] == [row.tolist() for row in other.sequences]
    assert len({len(answer.sequences[0]) for answer in ours}) > 1 and made.replays > 0


def test_two_calls_at_once_have_buffers_of_their_own(fixed, by_modules):
    model = pair("bert", "gpt2")
    inputs = sources(model)
    inner = []

    def within(ids, scores):
        if not inner:
            inner.append(model.generate(**inputs, max_new_tokens=5))
        return scores

    def run():
        inner.clear()
        return model.generate(**inputs, max_new_tokens=9, logits_processor=[within])

    ours, made = fixed(run)
    assert len(made) == 2
    assert torch.equal(inner[0], by_modules(lambda: model.generate(**inputs, max_new_tokens=5)))
    assert torch.equal(ours, by_modules(run))


def test_what_cannot_be_recorded_runs_all_the_same():
    def refuse(step):
        raise RuntimeError("the device says no")

    made = Graphs(refuse, lambda step: step())
    shape = Shape(1, 1, 64, 0)
    assert made(shape, lambda: 1) == 1
    with pytest.warns(UserWarning, match="device says no"):
        assert made(shape, lambda: 2) == 2
    assert made(shape, lambda: 3) == 3 and made.replays == 0


def test_nothing_is_recorded_on_a_processor_or_where_it_is_not_wanted(monkeypatch):
    assert graphs_for(torch.device("cpu")).record is None
    monkeypatch.setenv("WARMSTART_GRAPHS", "0")
    assert graphs_for(torch.device("cuda")).record is None
    assert not graphs.can_record(pair("bert", "bert"), {}, None)


SIDES = [("bert", "bert"), ("bert", "llama"), ("gpt2", "bart"), ("bert", "mistral")]


def begun(model, each, capacity=20, source=7):
    """Buffers with two sources, and a new token in each row."""
    weight, heads = model.decoder.embeddings.token.weight, model.decoder.spec.cross_attention
    space = Space(model.decoder, 2, each, capacity, source)
    shape = 2, heads.key_value_heads, source, heads.head_size
    pair = [torch.zeros(shape, dtype=weight.dtype, device=weight.device)] * 2
    space.join(
        [(slice(2), [pair] * model.decoder.spec.layers)], weight.new_ones(2, source, dtype=torch.bool), [source] * 2
    )
    space.ids[1] = weight.new_full((2 * each, 1), FIRST, dtype=torch.long)
    return space


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sides", SIDES, ids="-".join)
def test_a_step_stays_on_its_device_and_reads_nothing_back(sides, dtype):
    """On a device whose tensors have no numbers that could be read, and meet no others; in the types of GPUs."""
    model = pair(*sides).to("meta", dtype)
    for module in model.modules():  # what the model computes, and has in memory even there
        module._buffers.update({name: x.to("meta") for name, x in module._buffers.items()})
    space = begun(model, 2)
    ids = torch.zeros(4, 3, dtype=torch.long, device="meta")
    with torch.no_grad():
        out = space.step(model.decoder, Shape(2, 1, 64, 64))
        assert space.logits(model.decoder, ids, 3).shape == (4, 3, VOCABULARY)
        space.take(torch.arange(4, device="meta"))
        space.crop(2)
        assert space.as_cache(2).layers[0].held()[0].device.type == "meta"
        space.widen(100)
        space.take(torch.arange(2, device="meta"), torch.tensor([1]))  # which sources stay is known
        assert space.places == [0] and space.logits(model.decoder, ids[:2], 3).shape == (2, 3, VOCABULARY)
    assert out.device.type == "meta" and out.dtype is torch.float32 and out.shape == (4, 1, VOCABULARY)
    with pytest.raises(RuntimeError):
        bool(out.max() > 0)


@pytest.mark.parametrize("sides", SIDES, ids="-".join)
def test_a_beam_step_copies_no_keys(sides):
    """Neither those of the source for each beam, nor those of heads that share them, nor those of beams that move."""
    model = pair(*sides)
    space, tape = begun(model, 3, 300, 4000), Tape()
    kept = [space.bias, *(x for pair in (*space.own, *space.pairs) for x in pair)]
    buffers = {x.untyped_storage().data_ptr() for x in kept}
    with torch.no_grad():
        with tape:
            space.step(model.decoder, Shape(2, 1, 192, 4096))
        made = [x for *_, out in tape.operations for x in tree_flatten(out)[0] if torch.is_tensor(x)]
        made = [x.numel() for x in made if x.untyped_storage().data_ptr() not in buffers]
    assert max(made) < min(keys[:, :, :192].numel() for keys, _ in space.own)
    tape = Tape()
    with tape:
        space.take(torch.tensor([1, 1, 0, 5, 3, 4]))
    assert not any(
        x.untyped_storage().data_ptr() in buffers
        for *_, out in tape.operations
        for x in tree_flatten(out)[0]
        if torch.is_tensor(x)
    )


@pytest.mark.parametrize("sides", SIDES, ids="-".join)
def test_a_step_compiles_without_a_break(sides):
    model, shape = pair(*sides), Shape(2, 1, 64, 64)
    spaces = [begun(model, 2) for _ in range(2)]
    compiled = torch.compile(spaces[0].step, fullgraph=True, backend="eager")
    with torch.no_grad():
        for token in range(3):
            for space in spaces:
                space.ids[1].fill_(FIRST + token)
            assert torch.allclose(compiled(model.decoder, shape), spaces[1].step(model.decoder, shape), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "deberta-v2", "bart", "gpt2"])
def test_an_encoder_part_by_part_gives_what_it_gives_at_once(family, monkeypatch):
    model, made = pair(family, "bert"), []

    def taped(device):
        made.append(Graphs(record, lambda step: step()))
        return made[-1]

    monkeypatch.setattr(graphs, "graphs_for", taped)
    monkeypatch.setattr(graphs, "TOGETHER", 20)
    for place in ("stack", "masks"):  # as on a GPU
        monkeypatch.setattr(f"warmstart.torch.{place}.eager", lambda x: False)
    inputs = sources(model, 7)
    with torch.no_grad():
        for _ in range(3):
            for rows in (7, 5):
                given = {name: x[:rows] for name, x in inputs.items()}
                assert (encode_in_parts(model, given) - model.encode(**given)[0]).abs().max() <= 1e-5
            model.encoder.layers[0].mlp.up.weight.mul_(1.1)
        assert len(made) == 1 and made[0].replays > 6
        model.encoder.to(torch.float64)  # other tensors: what was recorded reads the old ones
        assert encode_in_parts(model, inputs).dtype is torch.float64 and len(made) == 2
    model.train()
    assert model.encoder not in encoder_graphs._kept


def test_the_sizes_of_parts_that_were_not_seen_for_longest_are_forgotten(monkeypatch):
    model, made = pair("bert", "bert"), Graphs(record, lambda step: step())
    monkeypatch.setattr(graphs, "graphs_for", lambda device: made)
    monkeypatch.setattr(encoder_graphs, "_MOST", 3)
    for place in ("stack", "masks"):  # as on a GPU
        monkeypatch.setattr(f"warmstart.torch.{place}.eager", lambda x: False)
    inputs = sources(model, 6)
    with torch.no_grad():
        for rows in (1, 2, 1, 3, 1, 4, 1, 2, 2, 1, 2):
            given = {name: x[:rows] for name, x in inputs.items()}
            assert (encode_in_parts(model, given) - model.encode(**given)[0]).abs().max() <= 1e-5
            assert len(encoder_graphs._kept[model.encoder].inputs) == len(made.made) <= 3
    assert made.replays == 6  # 1 from its second time on; 2 was forgotten once


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}], ids=str)
def test_the_choice_of_tokens_is_recorded_with_its_processors(strategy, fixed, by_modules):
    model = pair("bert", "llama")
    inputs = sources(model)
    rules = {
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.3,
        "min_new_tokens": 6,
        "bad_words_ids": [[7, 8], [9]],
        "exponential_decay_length_penalty": (4, 1.2),
        "begin_suppress_tokens": [6],
        "forced_eos_token_id": 2,
        "encoder_no_repeat_ngram_size": 2,
    }
    recorded = []
    call = loops.Recorded.__call__

    def seen(self, *arguments):
        out = call(self, *arguments)
        recorded.append(self.replay is not None)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops.Recorded, "__call__", seen)
        ours, _ = fixed(lambda: model.generate(**inputs, **strategy, **rules, max_new_tokens=20))
    assert recorded[:5] == [False, True, True, True, True]
    assert torch.equal(ours, by_modules(lambda: model.generate(**inputs, **strategy, **rules, max_new_tokens=20)))


def test_buckets():
    assert [bucket(n) for n in (1, 64, 65, 96, 97, 128, 129, 193, 1000)] == [64, 64, 96, 96, 128, 128, 192, 256, 1024]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=["greedy", "beams"])
@pytest.mark.parametrize("sides", SIDES, ids="-".join)
def test_cuda_graphs_give_what_the_modules_give(sides, strategy, dtype, by_modules, monkeypatch):
    model = pair(*sides).to("cuda", dtype)
    inputs = sources(model)
    made = []

    def kept(device):
        made.append(graphs_for(device))
        return made[-1]

    monkeypatch.setattr(graphs, "graphs_for", kept)

    def run():
        return model.generate(**inputs, **strategy, **LOGITS, max_new_tokens=9, min_new_tokens=9)

    ours, again = run(), run()
    assert made[0].record is not None and made[0].replays >= 14 and len(made) == 1
    assert torch.equal(ours.sequences, again.sequences)
    monkeypatch.setattr(runner, "can_record", lambda *arguments: False)
    theirs = by_modules(run)
    if dtype is torch.float32:
        assert difference(ours, theirs) <= 1e-4
    else:  # one token may fall the other way, so that what follows differs: the first is the same
        bound = 0.05 * float(theirs.logits[0].abs().max())
        assert (ours.logits[0] - theirs.logits[0]).abs().max() <= bound


@pytest.mark.gpu
@pytest.mark.parametrize(
    "strategy",
    [
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_new_tokens": 5, "bad_words_ids": [[7, 8], [9]]},
        {"num_beams": 3, "encoder_no_repeat_ngram_size": 2, "forced_eos_token_id": 2, "sequence_bias": {(6, 7): 2.0}},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beams": 3, "force_words_ids": [[9], [6, 7]]},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"prompt_lookup_num_tokens": 3},
        {"guidance_scale": 1.5},
    ],
    ids=str,
)
def test_searches_on_a_gpu_find_what_they_find_on_the_processor(strategy):
    model = pair("bert", "gpt2")
    inputs = sources(model)
    settings = {**strategy, "max_new_tokens": 14, "eos_token_id": 2}
    here = model.generate(**inputs, **settings)
    there = model.to("cuda").generate(**{name: x.cuda() for name, x in inputs.items()}, **settings)
    assert torch.equal(here, there.cpu())
