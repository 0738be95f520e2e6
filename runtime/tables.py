"""Tables: the geometry of all batches of a call, worked out at once, and brought to the device in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from kcompile.core.axis_map import AxisMap, Identity, Sliding, Table
from kcompile.core.interval import IntArray, Interval
from kcompile.core.plan import RAW_PATCH, Plan, Read
from kcompile.core.region import Region
from kcompile.runtime.scheduler import Geometry
from kcompile.runtime.transfers import upload

_Axis: TypeAlias = tuple[IntArray, IntArray]  # origins and extents of all queries' boxes along one axis


@dataclass(frozen=True)
class _Batches:
    """Queries batch by batch: where each batch begins, and each query's batch."""

    starts: IntArray
    of: IntArray

    def most(self, values: IntArray) -> IntArray:
        """For each query the largest of its batch's values."""
        return np.asarray(np.maximum.reduceat(values, self.starts)[self.of])


def geometries(
    plan: Plan, positions: IntArray, sizes: Sequence[int], regions: Sequence[Region], batches: Sequence[IntArray]
) -> list[dict[str, Geometry]]:
    """What `scheduler.geometry` gives for each batch; some hundred array operations for all of them together.

    Args:
        plan: Gives the reads.
        positions: [N, axes], of all queries.
        sizes: Patch size per axis.
        regions: The plan's regions for all queries.
        batches: Indices of queries; none is empty.
    """
    rows, counts = np.concatenate(batches), np.array([len(batch) for batch in batches])
    split = _Batches(np.cumsum(counts) - counts, np.repeat(np.arange(len(batches)), counts))
    boxes = [
        _around(region.take(rows), entry.shape, entry.units, split)
        for region, entry in zip(regions, plan.regions, strict=True)
    ]
    raw = [(low, np.full_like(low, size)) for low, size in zip(positions[rows].T, sizes, strict=True)]
    made: list[dict[str, Geometry]] = [{} for _ in batches]
    known: dict[object, tuple[list[_Axis], IntArray | None]] = {}
    for read in plan.reads:
        key = (read.target, read.maps, read.native)
        if key not in known:
            known[key] = _window(read, boxes, len(rows), split)
        window, native = known[key]
        over = None if read.patch is None else raw if read.patch == RAW_PATCH else boxes[read.patch]
        low = np.array([low for low, _ in plan.base(read.base).padding], dtype=np.int64)
        origins = np.stack([at for at, _ in window], axis=-1)
        laid = None if over is None else np.stack([at for at, _ in over], axis=-1) - origins
        box = boxes[read.target] if read.placed and read.target is not None else None
        wanted = None if box is None else np.stack([at for at, _ in box], axis=-1)
        for number, (first, count) in enumerate(zip(split.starts, counts, strict=True)):
            part = slice(first, first + count)
            made[number][read.name] = Geometry(
                origins[part] + low,
                tuple(int(extent[first]) for _, extent in window),
                None if laid is None else laid[part],
                None if box is None else origins[part],
                None if wanted is None else wanted[part],
                () if box is None else tuple(int(extent[first]) for _, extent in box),
                () if native is None else tuple(int(cells) for cells in native[first]),
            )
    return made


def _around(region: Region, shape: Sequence[int], units: Sequence[int], split: _Batches) -> list[_Axis]:
    """As `Boxes.around`, batch by batch."""
    boxes = []
    for axis, size, unit in zip(region.axes, shape, units or (1,) * len(region.axes), strict=True):
        extent = np.maximum(split.most(axis.size), unit)
        boxes.append((np.minimum(axis.lo, size - extent), extent))
    return boxes


def _window(read: Read, boxes: list[list[_Axis]], count: int, split: _Batches) -> tuple[list[_Axis], IntArray | None]:
    """The windows of a read, and the padding [N, axes] that the op adds by itself; None for a whole tensor."""
    if read.target is None:
        zeros = np.zeros(count, dtype=np.int64)
        return [(zeros, np.full_like(zeros, m.in_size)) for m in read.maps], None
    wanted = boxes[read.target]
    native, windows = np.zeros((count, len(read.native)), dtype=np.int64), []
    for axis, (m, (at, size)) in enumerate(zip(read.maps, wanted, strict=True)):
        first, extent = _read(m, at, size, split)
        if axis < len(read.native) and read.native[axis]:
            spans = size == m.out_size
            native[:, axis] = spans * read.native[axis]
            first, extent = np.where(spans, 0, first), np.where(spans, m.in_size, extent)
        windows.append((first, extent))
    return windows, native


def _read(m: AxisMap, at: IntArray, size: IntArray, split: _Batches) -> _Axis:
    """As `boxes._read`, batch by batch."""
    if isinstance(m, Identity):
        return at, size
    if isinstance(m, Sliding):
        return at * m.stride - m.padding, (size - 1) * m.stride + m.span + 1
    window = m.window(Interval.of(at, at + size))
    extent = split.most(window.size)
    return (np.minimum(window.lo, m.in_size - extent) if isinstance(m, Table) else window.lo), extent


def uploaded(batches: Sequence[dict[str, IntArray]], device: torch.device) -> list[dict[str, Tensor]]:
    """The arrays of each batch as tensors; one copy for all, which isn't waited for if there are several."""
    if device.type == "cpu":
        return [{name: torch.from_numpy(array) for name, array in arrays.items()} for arrays in batches]
    flat = [array.reshape(-1) for arrays in batches for array in arrays.values()]
    joined = np.concatenate(flat)
    # A lone batch is also what is metered, on tensors without memory, which can't be pinned.
    whole = upload(joined, device) if len(batches) > 1 else torch.from_numpy(joined).to(device)
    parts = iter(whole.split([len(part) for part in flat]))
    return [{name: next(parts).view(array.shape) for name, array in arrays.items()} for arrays in batches]


def index_arrays(found: dict[str, Geometry], bases: dict[str, IntArray]) -> dict[str, IntArray]:
    """What the graphs' arguments for one batch are made of, by name.

    Args:
        found: By read.
        bases: By read, which base [N] each query reads.
    """
    arrays = {}
    for name, where in found.items():
        arrays[f"{name}_origins"] = np.concatenate([bases[name][:, None], where.origins], axis=1)
        if where.offsets is not None:
            arrays[f"{name}_offsets"] = where.offsets
        if where.start is not None and where.at is not None:
            arrays[f"{name}_start"], arrays[f"{name}_at"] = where.start, where.at
    return arrays


def sizes_of(found: dict[str, Geometry]) -> dict[str, list[int]]:
    """The graphs' arguments for one batch that are lists of numbers, by name."""
    given = {}
    for name, where in found.items():
        given[f"{name}_extent"], given[f"{name}_padding"] = list(where.extent), list(where.padding)
        if where.start is not None:
            given[f"{name}_size"] = list(where.size)
    return given
