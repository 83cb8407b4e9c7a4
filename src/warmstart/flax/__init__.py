"""The models in Flax Linen: layers, stack, models and generation."""

from warmstart.flax import pytree

pytree.register()
