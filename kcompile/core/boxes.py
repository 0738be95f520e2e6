"""Boxes of a batch: one common extent per axis, one origin per query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kcompile.core.axis_map import AxisMap, Identity, Sliding, Table
from kcompile.core.interval import IntArray, Interval
from kcompile.core.region import Region


@dataclass(frozen=True)
class Boxes:
    """Boxes of equal size: ``origins`` [N, axes] and ``extent`` (cells per axis)."""

    origins: IntArray
    extent: tuple[int, ...]

    @classmethod
    def around(cls, region: Region, shape: Sequence[int], units: Sequence[int] = ()) -> Boxes:
        """The smallest common extent that holds each region, moved to lie inside the tensor.

        Args:
            region: One box per query.
            shape: The tensor's size per axis.
            units: Per axis the cells that stand or fall together (`InputRegion.units`); default 1.

        A box wider than its region is sound only inside the tensor: cells beyond it would be read as values where
        padding belongs (docs/design.md, section 5; Krypton's eq. 33-34). Empty regions get a box all the same.
        """
        least = units or (1,) * len(region.axes)
        extents = [int(axis.size.max(initial=unit)) for axis, unit in zip(region.axes, least, strict=True)]
        origins = [np.minimum(axis.lo, size - e) for axis, size, e in zip(region.axes, shape, extents, strict=True)]
        return cls(np.stack(origins, axis=-1), tuple(extents))

    @classmethod
    def changed(cls, region: Region, shape: Sequence[int]) -> Boxes:
        """As `around`, but of no cells where all regions are empty: what may differ from the base."""
        extent = tuple(int(axis.size.max(initial=0)) for axis in region.axes)
        low = np.stack([axis.lo for axis in region.axes], axis=-1)
        return cls(np.clip(low, 0, np.asarray(shape, dtype=np.int64) - extent), extent)

    def window(self, maps: Sequence[AxisMap]) -> Boxes:
        """What an op must read to compute the outputs inside these boxes; again of equal size."""
        pairs = [_read(m, lo, size) for m, lo, size in zip(maps, self.origins.T, self.extent, strict=True)]
        return Boxes(np.stack([lo for lo, _ in pairs], axis=-1), tuple(size for _, size in pairs))

    def offsets(self, window: Boxes) -> IntArray:
        """Where these boxes begin inside ``window`` [N, axes]; negative where they begin before it."""
        return self.origins - window.origins


def _read(m: AxisMap, lo: IntArray, size: int) -> tuple[IntArray, int]:
    """Where the windows for ``[lo, lo + size)`` begin, and their common size: `AxisMap.window` for equal boxes."""
    if isinstance(m, Identity):
        return lo, size
    if isinstance(m, Sliding):
        return lo * m.stride - m.padding, (size - 1) * m.stride + m.span + 1
    window = m.window(Interval.of(lo, lo + size))
    extent = int(window.size.max(initial=0))
    return (np.minimum(window.lo, m.in_size - extent) if isinstance(m, Table) else window.lo), extent
