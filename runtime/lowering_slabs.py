"""CPU lowering of PyTorch's ops that write into a given tensor: inside `in_slabs` their results lie in slabs too.

Outside, and for what a function doesn't know, they are PyTorch's own ops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.cuda_ops import slab
from kcompile.cuda_ops.schema import channels_last_empty

aten = torch.ops.aten


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """``torch.cat`` along the channels of images."""
    first = tensors[0]
    alike = all(part.dim() == 4 and part.dtype is first.dtype for part in tensors)
    if not slab.active() or dim != 1 or not alike:
        return torch.cat(list(tensors), dim)
    channels = sum(part.shape[1] for part in tensors)
    out = channels_last_empty(first, first.shape[0], channels, list(first.shape[2:]))
    return torch.cat(list(tensors), dim, out=out)


def avg_pool2d(image: Tensor, kernel: Sequence[int], *rest: Any) -> Tensor:
    """``aten.avg_pool2d``."""
    if not slab.active() or image.dim() != 4:
        return aten.avg_pool2d.default(image, kernel, *rest)  # type: ignore[no-any-return]
    out = channels_last_empty(image, image.shape[0], image.shape[1], _sizes(image, kernel, *rest[:3]))
    return aten.avg_pool2d.out(image, kernel, *rest, out=out)  # type: ignore[no-any-return]


def max_pool2d(
    image: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Tensor:
    """``aten.max_pool2d``, which makes the places of the largest values too, twice as large as the values."""
    geometry = (kernel, stride, padding, dilation, ceil_mode)
    if not slab.active() or image.dim() != 4:
        return aten.max_pool2d.default(image, *geometry)  # type: ignore[no-any-return]
    sizes = _sizes(image, kernel, stride, padding, ceil_mode, dilation)
    out = channels_last_empty(image, image.shape[0], image.shape[1], sizes)
    places = slab.empty(image.new_empty(0, dtype=torch.int64), (out.shape[0], *sizes, out.shape[1])).movedim(-1, 1)
    aten.max_pool2d_with_indices.out(image, *geometry, out=out, indices=places)
    return out


_INTO: dict[Any, Any] = {
    aten.cat.default: cat,
    aten.avg_pool2d.default: avg_pool2d,
    aten.max_pool2d.default: max_pool2d,
}


def lower_results(graph: fx.Graph) -> None:
    """Let a graph's ops make their results in slabs, in place."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _INTO and not node.kwargs:
            node.target = _INTO[node.target]


def _sizes(
    image: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    dilation: Sequence[int] = (1,),
) -> list[int]:
    """Cells per axis of a pool's result; a last window that begins in the padding behind is none."""
    sizes = []
    for axis, cells in enumerate(image.shape[2:]):
        taps, zeros, apart = (values[axis % len(values)] for values in (kernel, padding, dilation))
        step = stride[axis % len(stride)] if stride else taps
        room = cells + 2 * zeros - apart * (taps - 1) - 1
        count = -(-room // step) + 1 if ceil_mode else room // step + 1
        sizes.append(count - (ceil_mode and (count - 1) * step >= cells + zeros))
    return sizes
