"""Whether a model is what it was built as, so that the engine may compute what its modules would.

Hooks, adapters, tensors of other kinds, subclasses with a `forward` of their own: all that is left to the modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.positions import beyond
from warmstart.spec import StackSpec
from warmstart.torch import attention, dropout, elements, ends, layers
from warmstart.torch.engine.int8 import Int8Linear

_KINDS = {
    nn.Linear,
    nn.Embedding,
    nn.LayerNorm,
    dropout.Dropout,
    nn.ModuleDict,
    nn.ModuleList,
    Int8Linear,
    elements.RMSNorm,
    elements.RMSNormFromOne,
    attention.Attention,
    layers.MLP,
    layers.Layer,
    ends.Embeddings,
    ends.Sinusoids,
    ends.Head,
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_TYPES = {"cpu": {torch.float32, torch.bfloat16}, "cuda": {torch.float32, torch.bfloat16, torch.float16}}


def is_plain(model: Any, place: str = "cpu") -> bool:
    """Whether the engine may run this model: its modules as they were built, on one device of a kind, in eval mode."""
    if model.training or _watched(place):
        return False
    types, devices = set(), set()
    for module in _modules(model):
        if not _as_built(module):
            return False
        for tensor in module._parameters.values():
            if tensor is not None:
                if type(tensor) is not nn.Parameter or tensor.device.type != place:
                    return False
                types.add(tensor.dtype)
                devices.add(tensor.device)
    return types <= _TYPES[place] and len(types) <= 1 and len(devices) <= 1


def tensors_of(model: nn.Module) -> list[Tensor]:
    """All parameters and buffers; one that has several names is there several times."""
    held = (x for module in _modules(model) for x in (*module._parameters.values(), *module._buffers.values()))
    return [x for x in held if x is not None]


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """All modules, in a third of the time that torch's own walk takes."""
    found = [model]
    for module in found:
        found += [child for child in module._modules.values() if child is not None]
        yield module


def knows(spec: StackSpec) -> bool:
    """Whether the engine can compute every word of a spec; it leaves the rarer ones to the modules."""
    attention, norm = spec.attention, spec.norm
    return not (
        attention.soft_cap
        or attention.whole_norm
        or attention.alibi
        or attention.relative
        or attention.disentangled
        or attention.global_tokens
        or attention.rotaries
        or attention.head_norms_apart
        or (attention.rotary is not None and (attention.rotary.interleaved or beyond(attention.rotary) is not None))
        or norm.output
        or not norm.first
        or spec.parallel
        or spec.residual_scale != 1.0
        or spec.convolution
        or (spec.head is not None and (spec.head.soft_cap or spec.head.scale != 1.0 or not spec.head.transform_norm))
    )


def _watched(place: str) -> bool:
    """Whether somebody traces, maps over or casts what is computed now."""
    return bool(
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch.is_autocast_enabled(place)
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or nn.modules.module._has_any_global_hook()
    )


def _as_built(module: Any) -> bool:
    own = module.__dict__
    if "forward" in own or own.get("_compiled_call_impl") is not None or any(own.get(hooks) for hooks in _HOOKS):
        return False
    kind = type(module)
    if kind in _KINDS:
        return True
    from warmstart.torch.encoder_decoder import EncoderDecoderModel
    from warmstart.torch.models import AutoModel, AutoModelForCausalLM

    known = (AutoModel, AutoModelForCausalLM, EncoderDecoderModel)
    return any(issubclass(kind, model) and _same(kind, model) for model in known)


def _same(kind: type, model: Any) -> bool:
    """Whether a subclass overrides nothing that computes."""
    names = ("forward", "__call__", "states", "_source", "encode", "encoder_attention_mask")
    return all(getattr(kind, name, None) is getattr(model, name, None) for name in names)
