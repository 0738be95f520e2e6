"""A batch's geometry inside the graph: regions, boxes, windows from positions (as `runtime.scheduler.geometry`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from kcompile.core.axis_map import AxisMap
from kcompile.core.interval import Interval
from kcompile.core.plan import RAW_PATCH, Plan, Read
from kcompile.core.region import InputRegion, MappedRegion
from kcompile.passes.numbering import every_patch
from kcompile.passes.to_onnx.axes import Span, region, window
from kcompile.passes.to_onnx.graph import Graph
from kcompile.passes.to_onnx.integers import Ints

_FAR = 2**40  # beyond any position


@dataclass(frozen=True)
class Place:
    """Where one read takes its windows: names of int64 values, [N, axes] or (extent, size) [axes].

    As `runtime.scheduler.Geometry`: ``origins`` count the base tensor's padding, ``start`` and ``at`` don't.
    """

    origins: str
    extent: str
    offsets: str | None
    start: str
    at: str
    size: str


class Geometry:
    """Writes what the reads of a plan need, as they are asked for."""

    def __init__(self, graph: Graph, plan: Plan, positions: str, sizes: str) -> None:
        """Begin with the patches.

        Args:
            graph: Where to.
            plan: Gives regions and reads.
            positions: int64 [N, axes], anywhere; N is at least 1.
            sizes: int64 [axes], of the patches: at most the plan's.
        """
        self.graph, self.plan, self.positions = graph, plan, positions
        axes = len(plan.patch_shape)
        far, patch = np.full(axes, _FAR), np.array(plan.patch_shape, dtype=np.int64)
        self.raw = Ints(graph, positions, -far, far, True)
        self.patch = Ints(graph, sizes, np.ones(axes, dtype=np.int64), patch, False)
        self._spans: dict[int, Span] = {}
        self._boxes: dict[int, tuple[Ints, Ints]] = {}
        self._values: dict[int, list[Interval] | None] = {}

    def place(self, read: Read) -> Place:
        """The geometry of one read."""
        base = self.plan.base(read.base)
        axes = len(read.maps)
        if not axes:  # a tensor without cells: rows are all that there is
            return Place(self.positions, "", None, "", "", "")
        if read.target is None:
            box = None
            start, extent = Ints.of(self.graph, 0, axes), Ints.of(self.graph, [m.in_size for m in read.maps], axes)
        else:
            box = self.box(read.target)
            start, extent = window(read.maps, *box)
        at, size = box or (start, extent)
        offsets = None
        if read.patch is not None:
            over = self.raw if read.patch == RAW_PATCH else self.box(read.patch)[0]
            offsets = self._rows(over - start)
        origins = start + np.array([low for low, _ in base.padding], dtype=np.int64)
        return Place(self._rows(origins), extent.name, offsets, self._rows(start), self._rows(at), size.name)

    def _rows(self, ints: Ints) -> str:
        return ints.rows(self.positions).name

    def box(self, number: int) -> tuple[Ints, Ints]:
        """Where the boxes of a region begin, and their size (`Boxes.around`)."""
        if number not in self._boxes:
            span, entry = self.span(number), self.plan.regions[number]
            extent = span.extent.at_least(np.array(entry.units))
            moved = span.lo.at_most(Ints.of(self.graph, entry.shape, len(entry.shape)) - extent)
            self._boxes[number] = moved, extent
        return self._boxes[number]

    def span(self, number: int) -> Span:
        """A region of the table."""
        if number not in self._spans:
            entry = self.plan.regions[number]
            span = self._input(entry) if isinstance(entry, InputRegion) else self._mapped(entry)
            self._spans[number] = self._bounded(number, span)
        return self._spans[number]

    def _input(self, entry: InputRegion) -> Span:
        """The part of the patch on the image; of one wholly outside, a cell of the image that it doesn't show on."""
        size = np.array(entry.shape, dtype=np.int64)
        lo = self.raw.at_least(0).at_most(size - 1)
        return Span(lo, (self.raw + self.patch).at_most(size).at_least(lo + 1))

    def _mapped(self, entry: MappedRegion) -> Span:
        spans = [region(maps, self.span(source)) for source, maps in zip(entry.sources, entry.maps, strict=True)]
        lo, hi = reduce(Ints.at_most, [s.lo for s in spans]), reduce(Ints.at_least, [s.hi for s in spans])
        return Span(lo, hi)

    def _bounded(self, number: int, span: Span) -> Span:
        """With the bounds that all patches' regions have."""
        values = self._value(number)
        if values is None:
            return span
        lo, hi = (span.lo, span.hi)
        lo = lo.within(np.array([v.lo.min() for v in values]), np.array([v.lo.max() for v in values]))
        hi = hi.within(np.array([v.hi.min() for v in values]), np.array([v.hi.max() for v in values]))
        return Span(lo, hi)

    def _value(self, number: int) -> list[Interval] | None:
        """A region per axis for every patch; None if it is empty for one of them."""
        if number not in self._values:
            entry = self.plan.regions[number]
            found: list[Interval] | None
            if isinstance(entry, InputRegion):
                found = [
                    every_patch(size, patch) for size, patch in zip(entry.shape, self.plan.patch_shape, strict=True)
                ]
            else:
                moved = [self._moved(*pair) for pair in zip(entry.sources, entry.maps, strict=True)]
                known = [intervals for intervals in moved if intervals is not None]
                hulls = [reduce(Interval.__or__, axis) for axis in zip(*known, strict=True)]
                found = hulls if len(known) == len(moved) else None
            self._values[number] = found
        return self._values[number]

    def _moved(self, source: int, maps: tuple[AxisMap, ...]) -> list[Interval] | None:
        values = self._value(source)
        if values is None:
            return None
        moved = [m.region(value) for m, value in zip(maps, values, strict=True)]
        return None if any(interval.empty.any() for interval in moved) else moved
