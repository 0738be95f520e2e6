"""Scratch: memory that ops take beside their inputs and results, which the metering of a graph can't see."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

import kcompile.cuda_ops  # noqa: F401  (registers torch.ops.kcompile)

UNFOLDED = 20480  # PyTorch leaves smaller batches of values to its own convolution (ConvParams::use_mkldnn)
# Ops that write into one of their inputs (its number) and have no rule for tensors without memory.
INTO_INPUT: dict[Any, int] = (
    {torch.ops.mkldnn._convolution_pointwise_.binary: 0} if hasattr(torch.ops.mkldnn, "_convolution_pointwise_") else {}
)


def scratch_bytes(op: Any, inputs: Sequence[Tensor], results: Sequence[Tensor]) -> int:
    """Bytes that one call of an op takes for itself while it runs.

    Args:
        op: The operator.
        inputs: Its tensor arguments, in order.
        results: What it returns.
    """
    kcompile = torch.ops.kcompile
    if op in (kcompile.gather.default, kcompile.gather_superimpose.default, kcompile.superimpose.default):
        (made,) = results
        rows = made.numel() // max(made.shape[-1] * made.shape[1], 1)
        return 4 * 8 * rows + (_bytes(made) if inputs[0].is_cuda else 0)  # the rows' places
    if op in (kcompile.crop.default, kcompile.resample.default):
        return _bytes(inputs[0]) + 2 * sum(map(_bytes, results))
    if op is torch.ops.aten.convolution.default and inputs[0].device.type == "cpu":
        weight, made = inputs[1], results[0]
        if _unfolds(inputs[0]):
            return made.shape[0] * prod(made.shape[2:]) * prod(weight.shape[1:]) * made.element_size()
        unfolded = UNFOLDED * prod(weight.shape[2:]) * weight.element_size()  # of a few small images
        small = inputs[0].numel() // len(inputs[0]) <= UNFOLDED and max(weight.shape[2:]) <= 3
        packed = 2 * _bytes(weight)  # brought to channels-last, then to oneDNN's layout
        return max(packed, unfolded) if small else packed
    return 0


def held_bytes(lowered: fx.GraphModule) -> int:
    """Bytes of a lowered graph's packed weights beyond one copy of the weights themselves."""
    return 0


def _unfolds(image: Tensor) -> bool:
    """True where a CPU convolves by a matrix product with unfolded windows: types that oneDNN doesn't know."""
    return image.dtype is torch.float64 or not torch.backends.mkldnn.is_available()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
