"""``kcompile::read_convolved``: a convolution of windows that are never written out; schema, shapes, reference.

The arguments before ``weight`` say what is read, as in `reads`: the base, with a patch laid over it whose values are
min(max(patch + bias, low), high). Cells beyond the window are zeros. The result is the convolution plus ``own``,
between ``least`` and ``most``. ``tile`` chooses the kernel: an index into `TILES`, or `WINDOWS` for a window that is
written out and PyTorch's convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn import functional

from kcompile.cuda_ops.reads import READ
from kcompile.cuda_ops.schema import LIBRARY, channels_last_empty

LIBRARY.define(
    f"read_convolved({READ}, Tensor weight, Tensor? own, int[] stride, SymInt[] padding, int[] dilation, "
    "float least, float most, int tile) -> Tensor"
)
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


def read_convolved(
    base: Tensor,
    patch: Tensor,
    bias: Tensor | None,
    low: float,
    high: float,
    origins: Tensor,
    offsets: Tensor,
    extent: list[int],
    weight: Tensor,
    own: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    least: float,
    most: float,
    tile: int,
) -> Tensor:
    """The reference: `reads.read_activated`, then PyTorch's convolution.

    Args:
        base: [B, H, W, C], padded as the layer pads.
        patch: [N, C, h, w].
        bias: [C], of the convolution that made the patch, or None.
        low: Least value of the patch.
        high: Largest value of the patch.
        origins: [N, 3].
        offsets: [N, 2].
        extent: Cells of the windows.
        weight: [K, C, r, s]; for TF32 rounded by `rounded_to_tf32`.
        own: [K], or None.
        stride: Of the convolution.
        padding: Zeros on both sides of the window, per axis.
        dilation: Of the convolution.
        least: Least value of the result.
        most: Largest value of the result.
        tile: Of no matter here.

    Returns:
        [N, K, oh, ow], channels-last in memory.
    """
    window = torch.ops.kcompile.read_activated(base, patch, bias, low, high, origins, offsets, extent)
    return finished(window, weight, own, (stride, padding, dilation), least, most)


def finished(
    window: Tensor,
    weight: Tensor,
    own: Tensor | None,
    geometry: tuple[list[int], list[int], list[int]],
    least: float,
    most: float,
) -> Tensor:
    """PyTorch's convolution of a window, and what ends it."""
    result = functional.conv2d(window, weight, None, *geometry)
    if own is None and (least, most) == (-inf, inf):
        laid = result.movedim(1, -1).contiguous()  # an empty batch, too
        return laid.movedim(-1, 1)
    return torch.ops.kcompile.ended(result, own, None, least, most)  # type: ignore[no-any-return]


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


def _fake_convolved(
    base: Tensor,
    patch: Tensor,
    bias: Tensor | None,
    low: float,
    high: float,
    origins: Tensor,
    offsets: Tensor,
    extent: list[int],
    weight: Tensor,
    own: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    least: float,
    most: float,
    tile: int,
) -> Tensor:
    sizes = out_sizes(extent, weight, stride, padding, dilation)
    return channels_last_empty(base, origins.shape[0], weight.shape[0], sizes)


torch.library.register_fake("kcompile::read_convolved", _fake_convolved, lib=LIBRARY)
