"""Packed weights: each weight once for what it is packed for, shared by the lowered graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from kcompile.cuda_ops import winograd

mkldnn = torch.ops.mkldnn

_USUAL_BATCH = 16
_USUAL_ROWS = 128  # of a linear layer's input

# Packed weights by the weight's address, shape and strides, and by what they are packed for.
Packed: TypeAlias = dict[tuple[Hashable, ...], Tensor]


def for_tile(module: fx.GraphModule, known: Packed, op: fx.Node, weight: Tensor, tile: int) -> fx.Node:
    """The weights of a convolution by minimal filtering."""
    return _kept(module, known, op, weight, tile, partial(winograd.pack, weight, tile))


def known_tile(known: Packed, weight: Tensor, tile: int) -> int:
    """A tile for the same kernel and strides that these weights are packed for already, or the new one."""
    wanted = _kernel(tile)
    fitting = (other for other in range(len(winograd.TILES)) if _kernel(other) == wanted)
    return next((other for other in fitting if (*_identity(weight), other) in known), tile)


def _kernel(tile: int) -> list[tuple[int, int]]:
    return [(axis.taps, axis.stride) for axis in winograd.TILES[tile]]


def surplus_bytes(known: Packed, weight: Tensor, tile: int) -> int:
    """By how much the weights grow if they are packed for a tile; 0 if they are already."""
    return 0 if (*_identity(weight), tile) in known else winograd.surplus_bytes(weight, tile)


def for_conv(
    module: fx.GraphModule,
    known: Packed,
    op: fx.Node,
    weight: Tensor,
    sizes: Sequence[int],
    geometry: tuple[Any, ...],
) -> fx.Node:
    """The weights of oneDNN's convolution with this padding, stride, dilation and groups, for images of such sizes.

    Front and full inference pad differently and share the weights: oneDNN takes any layout, and knows its best one.
    """
    padding, stride, dilation, groups = geometry
    padding = [0, 0] if isinstance(padding, fx.Node) else padding
    fixed = (tuple(stride), tuple(dilation), groups)
    size = [_USUAL_BATCH, weight.shape[1] * groups, *sizes]
    pack = partial(mkldnn._reorder_convolution_weight, weight.detach(), padding, *fixed, size)
    return _kept(module, known, op, weight, fixed, pack)


def for_linear(module: fx.GraphModule, known: Packed, op: fx.Node, weight: Tensor) -> fx.Node:
    """The weights of oneDNN's linear layer."""
    pack = partial(mkldnn._reorder_linear_weight, weight.detach(), _USUAL_ROWS)
    return _kept(module, known, op, weight, "linear", pack)


def _kept(
    module: fx.GraphModule, known: Packed, op: fx.Node, weight: Tensor, kind: Hashable, pack: Callable[[], Tensor]
) -> fx.Node:
    """The packed weights as a buffer of the module, read before the op."""
    key = (*_identity(weight), kind)
    if key not in known:
        known[key] = pack()
    name = f"packed_{op.name}"
    module.register_buffer(name, known[key], persistent=False)
    with module.graph.inserting_before(op):
        return module.graph.get_attr(name)


def _identity(weight: Tensor) -> tuple[Hashable, ...]:
    return weight.data_ptr(), tuple(weight.shape), weight.stride()
