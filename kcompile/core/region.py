"""Boxes of cells that may differ from the base, and the table of all boxes of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import lcm
from typing import Any, TypeAlias

import numpy as np

from kcompile.core.axis_map import AxisMap, Blocks
from kcompile.core.interval import BoolArray, IntArray, Interval


@dataclass(frozen=True, eq=False)
class Region:
    """A batch of boxes, one interval per spatial axis. A box that is empty on one axis is empty on all."""

    axes: tuple[Interval, ...]

    @classmethod
    def of(cls, *axes: Interval) -> Region:
        """Build boxes; emptiness on one axis empties the whole box (docs/design.md, section 5)."""
        full = ~reduce(np.logical_or, [axis.empty for axis in axes])
        return cls(tuple(axis.where(full) for axis in axes))

    @property
    def empty(self) -> BoolArray:
        """True where the box holds no cell."""
        return self.axes[0].empty

    @property
    def cells(self) -> Any:
        """Number of cells of each box."""
        return np.prod([axis.size for axis in self.axes], axis=0)

    def through(self, maps: Sequence[AxisMap]) -> Region:
        """Where the output may change when the input changes inside these boxes."""
        return Region.of(*(m.region(axis) for m, axis in zip(maps, self.axes, strict=True)))

    def window(self, maps: Sequence[AxisMap]) -> Region:
        """What must be read to compute the output inside these boxes."""
        return Region.of(*(m.window(axis) for m, axis in zip(maps, self.axes, strict=True)))

    def take(self, rows: IntArray) -> Region:
        """The boxes of some queries, by their indices."""
        return Region(tuple(Interval(axis.lo[rows], axis.hi[rows]) for axis in self.axes))

    def shift(self, cells: Sequence[int]) -> Region:
        """Move by a number of cells per axis."""
        return Region.of(*(axis.shift(by) for axis, by in zip(self.axes, cells, strict=True)))

    def contains(self, other: Region) -> BoolArray:
        """True where every cell of ``other`` lies in this box."""
        inside = [mine.contains(theirs) for mine, theirs in zip(self.axes, other.axes, strict=True)]
        return np.asarray(other.empty | reduce(np.logical_and, inside))

    def __or__(self, other: Region) -> Region:
        """Hull of both boxes (eq. 22); the empty box is neutral."""
        return Region(tuple(a | b for a, b in zip(self.axes, other.axes, strict=True)))

    def __and__(self, other: Region) -> Region:
        """Intersection of both boxes."""
        return Region.of(*(a & b for a, b in zip(self.axes, other.axes, strict=True)))

    def __eq__(self, other: Any) -> bool:
        """Equality of the whole batch, as sets of cells."""
        if not isinstance(other, Region):
            return NotImplemented
        return self.axes == other.axes

    def __repr__(self) -> str:
        """Show one interval per axis."""
        return " x ".join(map(repr, self.axes))


@dataclass(frozen=True)
class InputRegion:
    """The part of the patch that lies on the image; ``shape`` is the image's size per axis."""

    shape: tuple[int, ...]

    @property
    def units(self) -> tuple[int, ...]:
        """Per axis the cells that stand or fall together."""
        return (1,) * len(self.shape)


@dataclass(frozen=True)
class MappedRegion:
    """The hull of what other regions become through an op.

    ``sources`` are indices of earlier regions of the table, ``maps`` holds one tuple of axis maps for each of them and
    ``shape`` is the tensor's size per axis.
    """

    sources: tuple[int, ...]
    maps: tuple[tuple[AxisMap, ...], ...]
    shape: tuple[int, ...]

    @property
    def units(self) -> tuple[int, ...]:
        """Per axis the cells that stand or fall together: an op that writes blocks writes whole ones."""
        factors = [[m.factor if isinstance(m, Blocks) else 1 for m in axis] for axis in zip(*self.maps, strict=True)]
        return tuple(lcm(*axis) for axis in factors)


@dataclass(frozen=True)
class CroppedRegion(MappedRegion):
    """A mapped region of which only the middle is kept: an approximation (docs/design.md, section 10).

    ``most`` is the largest number of cells per axis that stays. ``centre`` has per axis ``(a, b)``: a patch whose
    middle is the image's cell c has its middle here at cell ``a * c + b``, whatever the borders clip.
    """

    most: tuple[int, ...] = ()
    centre: tuple[tuple[float, float], ...] = ()

    def cropped(self, hull: Region, patch: Region) -> Region:
        """The part of the region that is kept; ``patch`` is the input's region."""
        axes = zip(hull.axes, patch.axes, self.most, self.centre, self.units, strict=True)
        return Region.of(*(crop(axis, given, most, centre, unit) for axis, given, most, centre, unit in axes))


def crop(hull: Interval, patch: Interval, most: int, centre: tuple[float, float], unit: int = 1) -> Interval:
    """Of each interval at most ``most`` cells (in whole units) around where the patch's middle comes to lie.

    Args:
        hull: What can change.
        patch: The patches, in the image.
        most: Cells.
        centre: As in `CroppedRegion`.
        unit: Cells that stand or fall together.
    """
    kept = -(-most // unit) * unit
    scale, shift = centre
    middle = scale * (patch.lo + patch.hi - 1) / 2 + shift
    low = np.ceil(middle - (kept - 1) / 2 - 0.5).astype(np.int64) // unit * unit  # a half goes down
    low = np.clip(low, hull.lo, np.maximum(hull.hi - kept, hull.lo))
    wide = hull.size > kept
    return Interval.of(np.where(wide, low, hull.lo), np.where(wide, low + kept, hull.hi)).where(~hull.empty)


RegionDef: TypeAlias = InputRegion | MappedRegion


def evaluate(table: Sequence[RegionDef], patch: Region) -> list[Region]:
    """Evaluate all regions of a table.

    Args:
        table: Definitions in topological order.
        patch: Boxes of the patches in image coordinates; may stick out of the image.

    Returns:
        One region per definition, each clipped to its own tensor.
    """
    regions: list[Region] = []
    for entry in table:
        if isinstance(entry, InputRegion):
            regions.append(patch & Region.of(*(Interval.of(0, size) for size in entry.shape)))
        else:
            pairs = zip(entry.sources, entry.maps, strict=True)
            hull = reduce(Region.__or__, [regions[source].through(maps) for source, maps in pairs])
            regions.append(entry.cropped(hull, regions[0]) if isinstance(entry, CroppedRegion) else hull)
    return regions
