"""``kcompile::read_convolved``: a convolution of windows that are never written out; schema, shapes, reference.

The arguments before ``weight`` say what is read, as in `reads`: the base, with a patch laid over it whose values are
min(max(patch + bias, low), high). Cells beyond the window are zeros. The result is the convolution plus ``own`` plus
what is ``added``, between ``least`` and ``most``. ``tile`` chooses the kernel: an index into `TILES`, or `WINDOWS` for
a window that is written out and PyTorch's convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kcompile.cuda_ops.reads import READ, READS, Part
from kcompile.cuda_ops.schema import LIBRARY, channels_last_empty

LIBRARY.define(
    f"read_convolved({READ}, Tensor weight, Tensor? own, int[] stride, SymInt[] padding, int[] dilation, "
    "Tensor? added_base, Tensor? added_patch, Tensor? added_origins, Tensor? added_offsets, "
    "float least, float most, int tile) -> Tensor"
)


class Convolution(NamedTuple):
    """The op's arguments, in the schema's order.

    Attributes:
        base: [B, H, W, C], padded as the layer pads; this one and the next ones are those of `reads.Read`.
        patch: [N, C, h, w].
        bias: [C].
        low: Of the patch.
        high: Of the patch.
        origins: [N, 3].
        offsets: [N, 2].
        extent: Cells of the windows.
        weight: [K, C, r, s]; for TF32 rounded by `rounded_to_tf32`.
        own: [K], or None.
        stride: Of the convolution.
        padding: Zeros on both sides of the window, per axis.
        dilation: Of the convolution.
        added_base: [B, *, *, K]: what is added is a window of this, which has the result's cells, or None.
        added_patch: [N, K, *, *], laid over that; without a base it is all of what is added. None for nothing.
        added_origins: [N, 3], with a base.
        added_offsets: [N, 2], with base and patch.
        least: Least value of the result.
        most: Largest value of the result.
        tile: Chooses the kernel.
    """

    base: Tensor
    patch: Tensor
    bias: Tensor | None
    low: float
    high: float
    origins: Tensor
    offsets: Tensor
    extent: list[int]
    weight: Tensor
    own: Tensor | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    added_base: Tensor | None
    added_patch: Tensor | None
    added_origins: Tensor | None
    added_offsets: Tensor | None
    least: float
    most: float
    tile: int

    @property
    def sizes(self) -> list[int]:
        """Cells of the result per axis."""
        return out_sizes(self.extent, self.weight, self.stride, self.padding, self.dilation)

    @property
    def added(self) -> Part | None:
        """The window that is added."""
        if self.added_base is None and self.added_patch is None:
            return None
        return Part(self.added_base, self.added_patch, None, -inf, inf, self.added_origins, self.added_offsets)


WINDOWS = -1


@dataclass(frozen=True)
class Tile:
    """What one program of the kernel computes: ``cells`` x ``filters`` results, some summands at a time.

    ``depth`` counts summands of half precision; of float32 it is half as many.
    """

    cells: int
    filters: int
    depth: int
    warps: int
    stages: int

    def summands(self, item: int) -> int:
        """Summands at a time, of so many bytes each."""
        return self.depth * 2 // item


TILES = (
    Tile(128, 64, 64, 4, 3),
    Tile(128, 128, 64, 8, 3),
    Tile(64, 64, 64, 4, 3),
    Tile(64, 128, 64, 4, 3),
    Tile(128, 256, 64, 8, 3),
    Tile(128, 64, 32, 4, 4),
    Tile(64, 32, 32, 4, 4),
)


def read_convolved(*given: Any) -> Tensor:
    """The reference: `reads.read_activated`, then PyTorch's convolution; arguments as of `Convolution`.

    Returns:
        [N, K, oh, ow], channels-last in memory.
    """
    conv = Convolution(*given)
    window = torch.ops.kcompile.read_activated(*conv[:READS])
    result = functional.conv2d(window, conv.weight, None, conv.stride, conv.padding, conv.dilation)
    added = None if conv.added is None else conv.added.window(conv.sizes)
    if conv.own is None and added is None and (conv.least, conv.most) == (-inf, inf):
        laid = result.movedim(1, -1).contiguous()  # an empty batch, too
        return laid.movedim(-1, 1)
    return torch.ops.kcompile.ended(result, conv.own, added, conv.least, conv.most)  # type: ignore[no-any-return]


def rounded_to_tf32(weight: Tensor) -> Tensor:
    """Float32 to the nearest numbers of tensor cores' TF32: these would cut the digits beyond off.

    A kernel would have to round weights wherever it reads them, and could not load them while it multiplies.
    """
    bits = weight.view(torch.int32)
    near = ((bits + 0x1000) & -0x2000).view(torch.float32)
    return torch.where(weight.isfinite(), near, weight)


def out_sizes(
    extent: list[int], weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    """Cells of the result per axis."""
    axes = zip(extent, weight.shape[2:], stride, padding, dilation, strict=True)
    return [(cells + 2 * zeros - step * (taps - 1) - 1) // by + 1 for cells, taps, by, zeros, step in axes]


def _fake_convolved(*given: Any) -> Tensor:
    conv = Convolution(*given)
    return channels_last_empty(conv.base, conv.origins.shape[0], conv.weight.shape[0], conv.sizes)


torch.library.register_fake("kcompile::read_convolved", _fake_convolved, lib=LIBRARY)
