"""The CUDA kernels' source on CPU tensors."""

from tests.support.cuda_on_cpu import built, on_cpu

__all__ = ["built", "on_cpu"]
