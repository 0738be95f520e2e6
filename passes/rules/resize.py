"""Ops that read a fixed, uneven set of cells per output: resizing, unequal pooling windows, mirrored borders, rolls.

Their maps and weights are not derived from formulas but read off the op itself, run on the unit vectors of one axis: so
the indices are PyTorch's own, rounding included. They are separable: each axis has its own table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kcompile.core.axis_map import AxisMap, Identity, Table
from kcompile.core.interval import BoolArray
from kcompile.passes.record import OpRecord
from kcompile.passes.rules.registry import FloatArray, Refusal, Spatial, Weights, rule

_SIZES = {"output_size", "size"}  # arguments with the result's size per axis


_KINDS = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
)  # fmt: skip


@rule(*(f"aten.{kind}.{overload}" for kind in _KINDS for overload in ("vec", "default")))
def resize(record: OpRecord) -> Spatial | Refusal:
    """Interpolation: each output is a weighted sum of a few inputs per axis (docs/design.md, section 5)."""
    return resampled(record)


@rule(
    *(f"aten._upsample_{kind}2d_aa.{overload}" for kind in ("bilinear", "bicubic") for overload in ("vec", "default"))
)
def antialiased(record: OpRecord) -> Spatial | Refusal:
    """PyTorch's kernels read cells with weight 0 that depend on the map's other axis: NaN would leave the region."""
    return Refusal("antialiased resizing has no rule yet")


@rule(*(f"aten.{kind}_pad{axes}d.default" for kind in ("reflection", "replication") for axes in (1, 2, 3)))
def mirror(record: OpRecord) -> Spatial | Refusal:
    """A border that repeats cells of the map: what changes near it changes twice, and the hull is the region."""
    return resampled(record)


@rule("aten.flip.default", "aten.roll.default")
def move(record: OpRecord) -> Spatial | Refusal:
    """Cells that change their place, but not their value."""
    axes = set(record.image.axes)
    moved = record.dims("dims", record.image.rank)
    if not record.params["dims"] or 0 in moved or (moved & axes and moved - axes):
        return Refusal("it moves cells through space and other dimensions at once")
    return resampled(record) if moved & axes else Spatial((tuple(Identity(size) for size in record.image.sizes),))


def resampled(record: OpRecord) -> Spatial | Refusal:
    """Read the table of each axis off the op.

    Axes are those of the image; of the other dimensions the op may do nothing but keep them.
    """
    assert record.out is not None
    image = record.image
    kept = [dim for dim in range(1, image.rank) if dim not in image.axes]
    if record.out.rank != image.rank or any(record.out.size(dim) != image.size(dim) for dim in kept):
        return Refusal("it changes other dimensions than space")
    weights = tuple(_weights(_matrix(record, axis), ~np.isfinite(_matrix(record, axis, np.nan))) for axis in image.axes)
    maps = tuple(_map(w, image.size(axis)) for w, axis in zip(weights, image.axes, strict=True))
    return Spatial((maps,), op="kcompile.resample.default", weights=weights)


def _map(weights: Weights | None, size: int) -> AxisMap:
    if weights is None:
        return Identity(size)
    first = np.where(weights.index < 0, size, weights.index).min(axis=1)
    stop = weights.index.max(axis=1) + 1
    return Table(tuple(map(int, first)), tuple(map(int, stop)), size)


def _weights(matrix: FloatArray, read: BoolArray) -> Weights | None:
    """Taps of each row of a matrix [out, in]; None for the unit matrix.

    Args:
        matrix: The factors.
        read: Which inputs an output reads: those with a factor of 0, too, count for NaN and infinity.
    """
    if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix))) and (read == matrix).all():
        return None
    taps = max(int(read.sum(axis=1).max()), 1)
    order = np.argsort(~read, axis=1, kind="stable")[:, :taps]  # the columns that are read, in order, come first
    taken = np.take_along_axis(read, order, axis=1)
    factor = np.where(taken, np.take_along_axis(matrix, order, axis=1), 0.0)
    index = np.where(taken, order, -1)  # no cell
    return Weights(index, None if taps == 1 and bool((factor == 1).all()) else factor)


def _matrix(record: OpRecord, axis: int, unit: float = 1.0) -> FloatArray:
    """Weights [out, in] along one axis: the op on the unit vectors of that axis, one cell along all others."""
    image = record.image
    size = image.size(axis)
    shape = [size] + [1] * (image.rank - 1)
    shape[axis] = size
    dtype = torch.float64 if image.dtype == "float64" else torch.float32  # half types compute indices in float32
    single = torch.zeros(size, size, dtype=dtype).fill_diagonal_(unit)
    if record.op.startswith("aten.pad"):
        return _pad_matrix(record, axis, single)
    if "dims" in record.params and axis not in record.dims("dims", image.rank):
        return np.asarray(single.double().numpy())
    units = single.reshape(shape)
    target: Any = torch.ops
    for part in record.op.split("."):
        target = getattr(target, part)
    result = target(units, **_arguments(record, axis))
    return np.asarray(result.reshape(size, -1).T.double().numpy())


def _pad_matrix(record: OpRecord, axis: int, single: torch.Tensor) -> FloatArray:
    """As `_matrix` for `pad`, which on one axis needs a tensor of one axis."""
    given: Sequence[int] = record.params["pad"]
    place = 2 * (record.image.rank - 1 - axis)
    pad = list(given[place : place + 2]) or [0, 0]
    padded: torch.Tensor = torch.nn.functional.pad(single.unsqueeze(1), pad, mode=record.params["mode"])
    return np.asarray(padded.reshape(len(single), -1).T.double().numpy())


def _arguments(record: OpRecord, axis: int) -> dict[str, Any]:
    """The op's arguments with those of all axes but one made neutral."""
    image, out = record.image, record.out
    assert out is not None
    found: dict[str, Any] = {}
    for name, value in list(record.params.items())[1:]:
        listed = isinstance(value, (list, tuple))
        first = image.rank - len(value) if listed else 0
        if name in _SIZES and listed:
            found[name] = [out.size(axis) if first + i == axis else 1 for i in range(len(value))]
        elif name == "scale_factors" and listed:
            found[name] = [v if first + i == axis else 1.0 for i, v in enumerate(value)]
        elif name.startswith("scales"):  # scales, or scales_d, scales_h and scales_w, of the default overloads
            found[name] = value if image.rank - {"d": 3, "h": 2}.get(name[-1], 1) == axis else None
        elif name == "padding":
            last = 2 * (image.rank - 1 - axis)
            found[name] = [v if last <= i < last + 2 else 0 for i, v in enumerate(value)]
        elif name in {"dims", "shifts"}:
            found[name] = _moves(record, axis)[name]
        else:
            found[name] = value
    return found


def _moves(record: OpRecord, axis: int) -> dict[str, list[int]]:
    dims = [dim % record.image.rank for dim in record.params["dims"]]
    mine = [i for i, dim in enumerate(dims) if dim == axis]
    shifts = record.param("shifts", [0] * len(dims))
    shifts = [shifts] if isinstance(shifts, int) else shifts
    return {"dims": [axis] * len(mine), "shifts": [shifts[i] for i in mine]}
