"""Boxes of a batch: one common extent per axis, one origin per query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kcompile.core.axis_map import AxisMap
from kcompile.core.interval import IntArray, Interval
from kcompile.core.region import Region


@dataclass(frozen=True)
class Boxes:
    """Boxes of equal size: ``origins`` [N, axes] and ``extent`` (cells per axis)."""

    origins: IntArray
    extent: tuple[int, ...]

    @classmethod
    def around(cls, region: Region, shape: Sequence[int]) -> Boxes:
        """The smallest common extent that holds each region, moved to lie inside the tensor.

        A box wider than its region is sound only inside the tensor: cells beyond it would be read as values where
        padding belongs (docs/design.md, section 5; Krypton's eq. 33-34). Empty regions get a box all the same.
        """
        extents = [max(1, int(axis.size.max(initial=1))) for axis in region.axes]
        origins = [np.minimum(axis.lo, size - e) for axis, size, e in zip(region.axes, shape, extents, strict=True)]
        return cls(np.stack(origins, axis=-1), tuple(extents))

    def window(self, maps: Sequence[AxisMap]) -> Boxes:
        """What an op must read to compute the outputs inside these boxes; again of equal size."""
        wanted = [Interval.of(lo, lo + size) for lo, size in zip(self.origins.T, self.extent, strict=True)]
        windows = [m.window(interval) for m, interval in zip(maps, wanted, strict=True)]
        extent = tuple(int(w.size.max(initial=0)) for w in windows)
        return Boxes(np.stack([w.lo for w in windows], axis=-1), extent)

    def offsets(self, window: Boxes) -> IntArray:
        """Where these boxes begin inside ``window`` [N, axes]; negative where they begin before it."""
        return self.origins - window.origins
