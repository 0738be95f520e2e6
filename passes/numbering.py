"""Value numbering of regions: two regions that are equal for every possible patch are one region."""

from __future__ import annotations

from functools import reduce

import numpy as np

from kcompile.core.axis_map import AxisMap, Identity
from kcompile.core.interval import Interval
from kcompile.core.region import InputRegion, MappedRegion, RegionDef


class RegionTable:
    """Definitions of regions, deduplicated by their values on the universe of patch intervals.

    The universe holds, per axis, every interval of up to the patch's size that lies in the image: patches that stick
    out are cropped to such intervals. Axes are independent, so equality per axis is equality.
    """

    def __init__(self, image: tuple[int, ...], patch: tuple[int, ...]) -> None:
        """Begin with region 0, the patch on the image."""
        self.defs: list[RegionDef] = [InputRegion(image)]
        self._values: list[tuple[Interval, ...]] = [tuple(map(every_patch, image, patch))]
        self._numbers: dict[tuple[object, ...], int] = {_key(self._values[0], image): 0}
        self._joint: set[int] = set()

    def number(self, sources: list[tuple[int, tuple[AxisMap, ...]]], shape: tuple[int, ...]) -> int:
        """The number of the hull of ``sources`` moved through their maps; an existing one where equal.

        Args:
            sources: Region numbers with the axis maps that they go through.
            shape: Size per axis of the tensor that the region lies in.
        """
        moved = [tuple(m.region(axis) for m, axis in zip(maps, self._values[i], strict=True)) for i, maps in sources]
        value = tuple(reduce(Interval.__or__, axis) for axis in zip(*moved, strict=True))
        unique = list(dict.fromkeys(sources))
        if len(unique) == 1 and all(isinstance(m, Identity) for m in unique[0][1]):
            return unique[0][0]
        joint = any(i in self._joint for i, _ in unique) or not _is_product(moved, value)
        key = ("joint", *unique) if joint else _key(value, shape)
        if key not in self._numbers:
            self._numbers[key] = len(self.defs)
            self._joint |= {len(self.defs)} if joint else set()
            self.defs.append(MappedRegion(tuple(i for i, _ in unique), tuple(maps for _, maps in unique), shape))
            self._values.append(value)
        return self._numbers[key]

    def share(self, number: int) -> float:
        """Mean share of the tensor that the region covers, over the full-sized patches inside the image.

        The two axes are independent, so the mean area is the product of the mean extents.
        """
        total = 1.0
        for values, axis, size in zip(self._values[number], self._values[0], self.defs[number].shape, strict=True):
            full = axis.size == axis.size.max()
            total *= float(values.size[full].mean()) / max(size, 1)  # a slice may be empty
        return total


def _key(value: tuple[Interval, ...], shape: tuple[int, ...]) -> tuple[object, ...]:
    return (shape, *(axis.key() for axis in value))


def _is_product(sources: list[tuple[Interval, ...]], hull: tuple[Interval, ...]) -> bool:
    """True if the hull of the sources' boxes is for every patch the box of the hulls per axis.

    So it is if one source is the whole hull, or if no source is ever empty on an axis where another is not.
    """
    return any(all(a.contains(h).all() for a, h in zip(s, hull, strict=True)) for s in sources) or all(
        np.array_equal(a.empty, h.empty) for s in sources for a, h in zip(s, hull, strict=True)
    )


def every_patch(size: int, patch: int) -> Interval:
    """Every interval of 1 … patch cells inside [0, size)."""
    lengths = np.arange(1, min(size, patch) + 1)
    low = np.concatenate([np.arange(size - n + 1) for n in lengths])
    return Interval.of(low, low + np.repeat(lengths, size - lengths + 1))
