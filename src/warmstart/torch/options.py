"""The reference's options of loading that are met otherwise here: those without effect, and those that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# Arguments of the reference's `from_pretrained` that ask for what is always done here.
_ALWAYS = ("low_cpu_mem_usage", "trust_remote_code", "from_pt", "_fast_init", "weights_only")
# Those that ask for what is not here; None and False, which scripts hand on, ask for nothing.
_INT8 = "dtype='int8', or torchao's quantize_ on the loaded model"
_INSTEAD = {
    "add_pooling_layer": "last_hidden_state[:, 0]; models here have no pooler",
    "quantization_config": _INT8,
    "load_in_8bit": _INT8,
    "load_in_4bit": _INT8,
    "gguf_file": "the checkpoint that the file was made from",
    "from_flax": "the Flax class, whose save_pretrained writes what this one reads",
    "state_dict": "from_config(config), then load_state_dict",
    "adapter_kwargs": "peft.PeftModel.from_pretrained(model, ...)",
    "tp_plan": "torch.distributed's fully_shard on the loaded model",
    "device_mesh": "torch.distributed's fully_shard on the loaded model",
    "max_memory": "device_map with one device",
    "offload_folder": "device_map with one device",
    "offload_state_dict": "nothing: weights are read from the mapped file as it is",
    "key_mapping": "a folder whose weights have their family's names",
}


def take_unneeded(kwargs: dict[str, Any], who: str) -> None:
    """Take the reference's options of loading that change nothing here out of `kwargs`.

    Raises:
        TypeError: one asks for what is not here.
        ValueError: an attention that is not known.
    """
    for name in _ALWAYS:
        kwargs.pop(name, None)
    for name in _INSTEAD.keys() & kwargs.keys():
        if (value := kwargs.pop(name)) is not None and value is not False:
            said = value if isinstance(value, (bool, int, str)) else f"a {type(value).__name__}"
            raise TypeError(f"{who}: {name} ({said}) is not done here; use {_INSTEAD[name]}")
    attention = kwargs.pop("attn_implementation", None)
    for name in attention.values() if isinstance(attention, dict) else [attention]:
        if name not in (None, "eager", "sdpa"):
            raise ValueError(
                f"attn_implementation {name!r} is not known here; leave it out: torch's own attention picks the "
                "fastest kernel of the device, flash attention included"
            )


def one_device(device_map: Any) -> Any:
    """The device that a `device_map` names; None if it names none.

    Raises:
        ValueError: it is no device, or shares a model out over several.

    >>> one_device({"": "cpu"})
    device(type='cpu')
    """
    if isinstance(device_map, Mapping):
        devices = set(device_map.values())
        if len(devices) != 1:
            raise ValueError(
                f"device_map={device_map!r} puts parts of the model on different devices; give one device, or "
                "share it out with torch.distributed's fully_shard"
            )
        device_map = devices.pop()
    if device_map is None:
        return None
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device_map={device_map!r} is no device ({str(error)[:80]}); use 'cpu', 'cuda' or 'auto'"
        ) from error
