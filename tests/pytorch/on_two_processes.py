"""One of two processes of a distributed run: `python on_two_processes.py RANK FOLDER`; asserts as a test does."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny_models import PAIRS, batch, pair
from warmstart import EncoderDecoderModel

BOUND = 1e-5


def shard(model, **options):
    """As the tutorials do it: each layer, then the rest."""
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def parts(rank, rows=4):
    """A whole batch, this process's half of it, and the count of its labels over one process's share."""
    whole = batch(rows)
    mine = {name: value[rank * rows // 2 :][: rows // 2] for name, value in whole.items()}
    return whole, mine, (whole["labels"] != -100).sum() / 2


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def compare(distributed, alone, rank):
    """Two training steps of both: losses, gradients and weights are the same."""
    whole, mine, count = parts(rank)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (distributed, alone)]
    for _ in range(2):
        loss = distributed(**mine, num_items_in_batch=count).loss
        expected = alone(**whole).loss
        loss.backward()
        expected.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        torch.testing.assert_close(mean / 2, expected.detach(), rtol=0, atol=BOUND)
        named = dict(alone.named_parameters())
        for name, parameter in distributed.named_parameters():
            name = name.removeprefix("module.")
            assert parameter.grad is not None, name
            torch.testing.assert_close(full(parameter.grad), named.pop(name).grad, rtol=0, atol=BOUND, msg=name)
        assert not named
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(distributed.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(full(one), other, rtol=0, atol=BOUND)


def fully_shard_tied_and_projected(rank):
    """Bert to GPT-2: a tied head, and a projection between the widths; then it generates."""
    model, alone = shard(pair("bert", "gpt2").train()), pair("bert", "gpt2").train()
    assert {type(parameter).__name__ for parameter in model.parameters()} == {"DTensor"}
    assert model.decoder.head.output.weight is model.decoder.embeddings.token.weight
    compare(model, alone, rank)
    register_fsdp_forward_method(model, "generate")
    whole = {name: value for name, value in batch(4).items() if name != "labels"}
    alone.load_state_dict({name: full(value) for name, value in model.state_dict().items()})
    tokens = model.eval().generate(**whole, num_beams=2, max_new_tokens=6)
    assert torch.equal(tokens, alone.eval().generate(**whole, num_beams=2, max_new_tokens=6))


def fully_shard_rotary(rank):
    compare(shard(pair("roberta", "llama").train()), pair("roberta", "llama").train(), rank)


def fully_shard_from_files(rank):
    """Weights as they come from a checkpoint, GPT-2's stored turned."""
    folder = Path(sys.argv[2], f"model-{rank}")
    pair("gpt2", "gpt2").save_pretrained(folder)
    compare(shard(EncoderDecoderModel.from_pretrained(folder).train()), pair("gpt2", "gpt2").train(), rank)


def fully_shard_one_stack_for_both(rank):
    """The whole encoder is the decoder's: one group holds what is shared."""
    fields = {"tie_encoder_decoder": True}
    compare(fully_shard(pair("bert", "bert", **fields).train()), pair("bert", "bert", **fields).train(), rank)


def fully_shard_in_bfloat16(rank):
    """Parameters are cast when they are gathered; the loss stays in fp32."""
    model = shard(pair("bert", "llama", spread=0.1).train(), mp_policy=MixedPrecisionPolicy(torch.bfloat16))
    _, mine, count = parts(rank)
    output = model(**mine, num_items_in_batch=count)
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    expected = pair("bert", "llama", spread=0.1)(**mine, num_items_in_batch=count).loss
    assert 0 < (output.loss - expected).abs() < 0.03


def data_parallel(rank):
    """No parameter waits for a gradient, so that `find_unused_parameters` is not needed."""
    for encoder, decoder in PAIRS:
        compare(DistributedDataParallel(pair(encoder, decoder).train()), pair(encoder, decoder).train(), rank)
    tied = {"tie_encoder_decoder": True}
    compare(DistributedDataParallel(pair("bert", "bert", **tied).train()), pair("bert", "bert", **tied), rank)


RUNS = (
    fully_shard_tied_and_projected,
    fully_shard_rotary,
    fully_shard_from_files,
    fully_shard_one_stack_for_both,
    fully_shard_in_bfloat16,
    data_parallel,
)

if __name__ == "__main__":
    rank, folder = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=int(rank), world_size=2)
    for run in RUNS:
        run(int(rank))
        print(run.__name__, flush=True)
    dist.destroy_process_group()
