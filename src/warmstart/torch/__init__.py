"""The models in PyTorch: layers, stack, models and generation."""

from warmstart.torch import pytree

pytree.register()
