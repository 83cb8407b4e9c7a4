"""The models in PyTorch: layers, stack, models and generation."""
