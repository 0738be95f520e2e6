"""Value numbering of regions: two regions that are equal for every possible patch are one region."""

from __future__ import annotations

from functools import reduce

import numpy as np

from kcompile.core.axis_map import AxisMap, Identity, centre
from kcompile.core.interval import Interval
from kcompile.core.region import CroppedRegion, InputRegion, MappedRegion, RegionDef, crop


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
        self._centres: list[tuple[tuple[float, float], ...]] = [((1.0, 0.0),) * len(image)]

    def number(
        self,
        sources: list[tuple[int, tuple[AxisMap, ...]]],
        shape: tuple[int, ...],
        most: tuple[int, ...] | None = None,
    ) -> int:
        """The number of the hull of ``sources`` moved through their maps; an existing one where equal.

        Args:
            sources: Region numbers with the axis maps that they go through.
            shape: Size per axis of the tensor that the region lies in.
            most: Cells per axis to which the region is cropped; default: it is not.
        """
        moved = [tuple(m.region(axis) for m, axis in zip(maps, self._values[i], strict=True)) for i, maps in sources]
        value = tuple(reduce(Interval.__or__, axis) for axis in zip(*moved, strict=True))
        unique = list(dict.fromkeys(sources))
        if most is not None and any(
            int(axis.size.max(initial=0)) > cells for axis, cells in zip(value, most, strict=True)
        ):
            return self._cropped(unique, moved, value, shape, most)
        if len(unique) == 1 and all(isinstance(m, Identity) for m in unique[0][1]):
            return unique[0][0]
        joint = any(i in self._joint for i, _ in unique) or not _is_product(moved, value)
        key = ("joint", *unique) if joint else _key(value, shape)
        if key not in self._numbers:
            made = MappedRegion(tuple(i for i, _ in unique), tuple(maps for _, maps in unique), shape)
            self._add(key, made, value, joint)
        return self._numbers[key]

    def _cropped(
        self,
        sources: list[tuple[int, tuple[AxisMap, ...]]],
        moved: list[tuple[Interval, ...]],
        value: tuple[Interval, ...],
        shape: tuple[int, ...],
        most: tuple[int, ...],
    ) -> int:
        """As `number`, of a region that is larger than it may be."""
        middle = self._centre(sources)
        made = CroppedRegion(tuple(i for i, _ in sources), tuple(maps for _, maps in sources), shape, most, middle)
        value = tuple(
            crop(axis, patch, cells, at, unit)
            for axis, patch, cells, at, unit in zip(value, self._values[0], most, middle, made.units, strict=True)
        )
        joint = any(i in self._joint for i, _ in sources) or not _is_product(moved, value)
        key = ("joint", *sources, most) if joint else _key(value, shape)
        if key not in self._numbers:
            self._add(key, made, value, joint)
        return self._numbers[key]

    def _add(self, key: tuple[object, ...], made: MappedRegion, value: tuple[Interval, ...], joint: bool) -> None:
        self._numbers[key] = len(self.defs)
        self._joint |= {len(self.defs)} if joint else set()
        self.defs.append(made)
        self._values.append(value)
        self._centres.append(self._centre(list(zip(made.sources, made.maps, strict=True))))

    def centre(self, number: int) -> tuple[tuple[float, float], ...]:
        """Per axis, where the middle of a patch comes to lie: ``(a, b)`` as in `CroppedRegion`."""
        return self._centres[number]

    def widest(self, number: int) -> tuple[int, ...]:
        """The most cells per axis that the region has for any patch."""
        return tuple(int(axis.size.max(initial=0)) for axis in self._values[number])

    def _centre(self, sources: list[tuple[int, tuple[AxisMap, ...]]]) -> tuple[tuple[float, float], ...]:
        """Where the middle of a patch comes to lie, per axis: the mean over the sources."""
        found = []
        for axis in range(len(self._centres[0])):
            pairs = [(self._centres[i][axis], centre(maps[axis])) for i, maps in sources]
            ends = [(scale * a, scale * b + shift) for (a, b), (scale, shift) in pairs]
            found.append((sum(a for a, _ in ends) / len(ends), sum(b for _, b in ends) / len(ends)))
        return tuple(found)

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
