"""Any pretrained encoder and any pretrained decoder made one sequence-to-sequence model.

Public names are found when they are asked for (PEP 562), so that `import warmstart` loads no framework.
They stand in `public_names.py`.
"""

import gc
import importlib
import sys
from typing import Any

from warmstart.public_names import NAMES_BY_MODULE as _NAMES_BY_MODULE

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
