"""CPU lowering of convolutions to minimal filtering (`kcompile.cuda_ops.winograd`), where that saves work.

Those of single cells (1x1) go there too: the same products as oneDNN's at the same rate, but windows needn't be made,
and results lie in slabs (`kcompile.cuda_ops.slab`).
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.cuda_ops import winograd

aten = torch.ops.aten
ops = torch.ops.kcompile

# Bounds that a convolution's results can be clamped to on the way out.
_CLAMPS: dict[Any, tuple[float, float]] = {
    aten.relu.default: (0.0, inf),
    aten.hardtanh.default: (-1.0, 1.0),
    aten.relu6.default: (0.0, 6.0),
}
# The result is a tensor of its own, so that these may write into it.
_IN_PLACE = {
    aten.silu.default: aten.silu_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.tanh.default: aten.tanh_.default,
    aten.hardswish.default: aten.hardswish_.default,
    aten.leaky_relu.default: aten.leaky_relu_.default,
}
_GAIN = 1.15  # by how much the estimate must be less than a direct convolution's
_SINGLE_CELLS = platform.machine().lower() in ("x86_64", "amd64")  # where the kernel was compared with oneDNN's


def tile_for(
    weight: Tensor, sizes: Sequence[int], padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
    groups: int,
) -> int | None:  # fmt: skip
    """The tile that saves most for windows of such sizes, or None where oneDNN's convolution is better.

    Args:
        weight: [K, C, r, s].
        sizes: Usual size of the windows per axis.
        padding: Of the convolution, per axis.
        stride: Per axis.
        dilation: Per axis.
        groups: Of the convolution.
    """
    filters, channels, *kernel = weight.shape
    plain = groups == 1 and {*dilation} == {1} and len(kernel) == 2
    if not plain or min(filters, channels) < winograd.LEAST_CHANNELS or not winograd.supported():
        return None
    single = max(kernel) == 1
    if single and not _SINGLE_CELLS:
        return None
    axes = zip(sizes, padding, kernel, stride, strict=True)
    height, width = (max((cells + 2 * zeros - taps) // step + 1, 1) for cells, zeros, taps, step in axes)
    best = inf if single else height * width * weight.numel() / _GAIN
    chosen = None
    for tile, sides in enumerate(winograd.TILES):
        if [side.taps for side in sides] == kernel and [side.stride for side in sides] == list(stride):
            work = winograd.work(tile, height, width, channels, filters)
            if work < best:
                best, chosen = work, tile
    return chosen


def insert(
    graph: fx.Graph, conv: fx.Node, arguments: Sequence[Any], packed: fx.Node, filters: int, tile: int,
    other: fx.Node | None, activation: fx.Node | None,
) -> tuple[fx.Node, bool]:  # fmt: skip
    """Add the op; the gather before a convolution goes into it where nothing else reads the window.

    Args:
        graph: Of the convolution; inserts where the graph is told to.
        conv: The convolution.
        arguments: Its image, bias and padding.
        packed: Its packed weights.
        filters: Number of its filters.
        tile: Index into `winograd.TILES`.
        other: What is added to it, or None.
        activation: The op that alone uses the result, or None.

    Returns:
        The op, and whether it clamps as ``activation`` would.
    """
    image, bias, padding = arguments
    low, high = -inf, inf
    clamps = activation is not None and activation.target in _CLAMPS
    if activation is not None and clamps:
        low, high = (*map(float, activation.args[1:]), *_CLAMPS[activation.target][len(activation.args) - 1 :])  # type: ignore[arg-type]
    rest = (packed, bias, other, padding, filters, tile, low, high)
    if image.target is ops.gather_superimpose.default and len(image.users) == 1:
        node = graph.call_function(ops.gather_winograd.default, (*image.args, *rest))
    else:
        node = graph.call_function(ops.winograd.default, (image, *rest))
    if activation is not None and activation.target in _IN_PLACE:
        activation.target = _IN_PLACE[activation.target]
    return node, clamps
