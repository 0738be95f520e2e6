"""Grids of positions: stride or overlap, the region of interest, the size of the patch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from kcompile.core.checks import per_axis
from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray

STRIDE = 4  # pixels, where neither stride nor overlap is given
_EDGES = {1: "(start, end)", 2: "(top, left, bottom, right)", 3: "(front, top, left, back, bottom, right)"}


def grid(
    image: Sequence[int], patch: Sequence[int], stride: int | Sequence[int], roi: Sequence[int] | None = None
) -> IntArray:
    """Positions [rows, cols, 2] of a map: every ``stride`` pixels, patches inside the image (and inside ``roi``).

    A map has ``(H - h) // stride + 1`` rows. With another number of axes the grid has as many: [*grid, axes].

    Args:
        image: Size per axis, in pixels.
        patch: Size per axis, in pixels.
        stride: Distance of positions, in pixels; one number or one per axis.
        roi: Where patches stay, in pixels: the low edge of each axis, then the high edge of each.

    Raises:
        InputError: A stride below 1, or a roi outside the image or smaller than the patch.
    """
    axes = len(image)
    steps = per_axis(stride, axes, "stride")
    low, high = _edges(roi, image)
    if any(b - a < size for a, b, size in zip(low, high, patch, strict=True)):
        raise InputError(f"roi is {roi}: smaller than the {'x'.join(map(str, patch))} patch")
    along = [np.arange(a, b - size + 1, by) for a, b, size, by in zip(low, high, patch, steps, strict=True)]
    return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).astype(np.int64)


def strides_of(positions: IntArray) -> tuple[int, ...]:
    """Distance of neighbouring positions [*grid, axes] per axis, in pixels; 1 along an axis that has one alone."""
    axes = positions.shape[-1]
    origin = positions[(0,) * axes]
    steps = []
    for axis in range(axes):
        second = tuple(int(a == axis) for a in range(axes))
        steps.append(int(positions[second][axis] - origin[axis]) if positions.shape[axis] > 1 else 1)
    return tuple(steps)


def steps(
    stride: int | Sequence[int] | None, overlap: float | Sequence[float] | None, patch: Sequence[int]
) -> tuple[int, ...]:
    """Distance of positions per axis, in pixels, from a stride or from the share of the patch that windows share.

    An overlap makes a stride of ``max(1, round(patch * (1 - overlap)))``. Without either it is 4.

    Raises:
        InputError: Both are given, a stride below 1, or an overlap outside 0 … 1 (1 excluded).
    """
    if overlap is None:
        return per_axis(STRIDE if stride is None else stride, len(patch), "stride")
    if stride is not None:
        raise InputError(f"stride is {stride} and overlap is {overlap}; allowed is one of them")
    given: Any = overlap
    shares = tuple(given) if isinstance(given, (list, tuple)) else (given,) * len(patch)
    if len(shares) != len(patch) or not all(isinstance(s, Real) and 0 <= float(s) < 1 for s in shares):
        raise InputError(f"overlap is {overlap!r}; allowed is a share of the patch, 0 <= overlap < 1 (or one per axis)")
    return tuple(max(1, round(size * (1 - float(share)))) for size, share in zip(patch, shares, strict=True))


def patch_within(patch_shape: int | Sequence[int] | None, most: tuple[int, ...]) -> tuple[int, ...]:
    """Patch size per axis: the largest that was compiled for, or a smaller one; InputError otherwise."""
    size = most if patch_shape is None else per_axis(patch_shape, len(most), "patch_shape")
    if any(s > m for s, m in zip(size, most, strict=True)):
        raise InputError(f"patch_shape is {size}; this module was compiled for 1 … {most}")
    return size


def _edges(roi: Any, image: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The low and the high edge per axis; the whole image without a roi."""
    axes = len(image)
    edges: tuple[Any, ...] = (
        (*[0] * axes, *image) if roi is None else tuple(roi) if hasattr(roi, "__iter__") else (roi,)
    )
    if len(edges) == 2 * axes and all(isinstance(edge, Integral) for edge in edges):
        low, high = edges[:axes], edges[axes:]
        if all(0 <= a < b <= size for a, b, size in zip(low, high, image, strict=True)):
            return tuple(map(int, low)), tuple(map(int, high))
    whole = ", ".join(map(str, (*[0] * axes, *image)))
    raise InputError(f"roi is {roi}; allowed is {_EDGES[axes]} inside ({whole})")
