"""Rothe et al. (2020) at pocket scale."""
