"""What pytest leaves out when it reads examples in `src`: the kernels in Triton, where that is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["src/warmstart/torch/engine/gpu_kernels.py"]
