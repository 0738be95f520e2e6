"""Scratch: memory that ops take beside their inputs and results, which the metering of a graph can't see."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.cuda_ops import winograd

# Convolutions by minimal filtering, and which tensor argument has their weights.
_FILTERS: dict[Any, int] = {torch.ops.kcompile.winograd.default: 1, torch.ops.kcompile.gather_winograd.default: 4}
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
    if op in _FILTERS:
        images = [part for part in inputs if part.dim() == 4 and part is not inputs[_FILTERS[op]]]
        moved = sum(_bytes(part) for part in images if not part.movedim(1, -1).is_contiguous() and part.shape[1] > 1)
        return winograd.scratch_bytes(inputs[_FILTERS[op]]) + (moved if op is kcompile.winograd.default else 0)
    if op is kcompile.read_linear.default:  # the window, where it is one product for the batch
        weight = [part for part in inputs if part.dim() == 3][-1]
        return results[0].shape[0] * prod(weight.shape[:2]) * weight.element_size()
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


def surplus_bytes(lowered: fx.GraphModule) -> int:
    """By how much a lowered graph's packed weights are larger than the weights themselves."""
    total = 0
    for node in lowered.graph.nodes:
        if node.op == "call_function" and node.target in _FILTERS:
            *_, packed, _, _, _, filters, tile, _, _ = node.args
            weights = attrgetter(packed.target)(lowered)
            channels = weights.shape[2]
            rows, columns = winograd.TILES[tile]
            total += _bytes(weights) - 4 * filters * channels * rows.taps * columns.taps
    return total


def _unfolds(image: Tensor) -> bool:
    """True where a CPU convolves by a matrix product with unfolded windows: types that oneDNN doesn't know."""
    return image.dtype is torch.float64 or not torch.backends.mkldnn.is_available()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
