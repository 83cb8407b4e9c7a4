"""The engine under `generate`: runs the plain models of this library with fewer copies and faster kernels."""
