"""Axis maps as integer arithmetic: what `core.axis_map` and `core.boxes` evaluate, written into the graph.

One rule differs: an interval is never empty here. Where the map's own would be, it is some cell of the output. A box
that is larger than it need be is exact all the same, and without empty intervals each axis is a matter of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kcompile.core.axis_map import AxisMap, Blocks, Everything, Identity, Sliding, Table, Transposed
from kcompile.passes.to_onnx.graph import Graph
from kcompile.passes.to_onnx.integers import Ints, joined


@dataclass(frozen=True)
class Span:
    """Intervals ``[lo, hi)`` per axis, none of them empty."""

    lo: Ints
    hi: Ints

    def column(self, axis: int) -> Span:
        """Those of one axis."""
        return Span(self.lo.column(axis), self.hi.column(axis))

    @property
    def extent(self) -> Ints:
        """The largest size of the batch, [axes]."""
        return (self.hi - self.lo).largest()


def region(maps: Sequence[AxisMap], changed: Span) -> Span:
    """Where outputs may change when inputs change inside the intervals (`AxisMap.region`)."""
    if (sliding := _all_sliding(maps)) is not None:
        return _clipped(_slid(sliding, changed), maps)
    columns = [_region(m, changed.column(axis)) for axis, m in enumerate(maps)]
    return _clipped(Span(joined([c.lo for c in columns]), joined([c.hi for c in columns])), maps)


def window(maps: Sequence[AxisMap], at: Ints, extent: Ints) -> tuple[Ints, Ints]:
    """Where the windows for boxes begin, and their common size (`Boxes.window`).

    Args:
        maps: One per axis.
        at: Where the boxes begin, [N, axes].
        extent: Their size, [axes].
    """
    if (sliding := _all_sliding(maps)) is not None:
        stride, padding, span = (_each(sliding, name) for name in ("stride", "padding", "span"))
        return at * stride - padding, (extent - 1) * stride + (span + 1)
    pairs = [_window(m, at.column(axis), extent.column(axis)) for axis, m in enumerate(maps)]
    return joined([lo for lo, _ in pairs]), joined([size for _, size in pairs])


def _all_sliding(maps: Sequence[AxisMap]) -> list[Sliding] | None:
    """The maps as sliding kernels, if all are; an identity is one of a single tap."""
    if not all(isinstance(m, (Identity, Sliding)) for m in maps):
        return None
    return [m if isinstance(m, Sliding) else Sliding(1, 1, 0, 1, m.in_size, m.out_size) for m in maps]


def _each(maps: Sequence[Sliding], name: str) -> np.ndarray:
    return np.array([getattr(m, name) for m in maps], dtype=np.int64)


def _clipped(span: Span, maps: Sequence[AxisMap]) -> Span:
    """Moved to lie inside the output; what is empty becomes one cell."""
    size = np.array([m.out_size for m in maps], dtype=np.int64)
    lo = span.lo.at_least(0).at_most(size - 1)
    return Span(lo, span.hi.at_most(size).at_least(lo + 1))


def _slid(maps: Sequence[Sliding], changed: Span) -> Span:
    """``ceil((lo + p - span) / s)`` and ``floor((hi - 1 + p) / s) + 1``."""
    stride, padding, span = (_each(maps, name) for name in ("stride", "padding", "span"))
    low = (changed.lo + (padding - span + stride - 1)) // stride
    return Span(low, (changed.hi + (padding - 1)) // stride + 1)


def _region(m: AxisMap, changed: Span) -> Span:
    """One axis of a map, before it is clipped."""
    if isinstance(m, (Identity, Sliding)):
        return _slid(_all_sliding([m]) or [], changed)
    if isinstance(m, Everything):
        graph = changed.lo.graph
        return Span(Ints.of(graph, 0, 1), Ints.of(graph, m.out_size, 1))
    if isinstance(m, Blocks):
        return Span(changed.lo * [m.factor], changed.hi * [m.factor])
    if isinstance(m, Transposed):
        high = (changed.hi - 1) * [m.stride] + (m.span + 1 - m.padding)
        return Span(changed.lo * [m.stride] - m.padding, high)
    return _readers(m, changed)


def _readers(m: Table, changed: Span) -> Span:
    """The hull of the outputs that read a changed cell."""
    g = changed.lo.graph
    reads = g.op(
        "And", g.op("Less", g.ints(*m.first), changed.hi.name), g.op("Greater", g.ints(*m.stop), changed.lo.name)
    )
    cells = np.arange(m.out_size)
    low = g.op("Where", reads, g.ints(*cells), g.ints(m.out_size))
    high = g.op("Where", reads, g.ints(*(cells + 1)), g.ints(0))
    bounds = np.array([0]), np.array([m.out_size])
    keep = changed.lo.batched or changed.hi.batched
    return Span(
        Ints(g, g.op("ReduceMin", low, g.ints(-1), keepdims=1), *bounds, keep),
        Ints(g, g.op("ReduceMax", high, g.ints(-1), keepdims=1), *bounds, keep),
    )


def _window(m: AxisMap, at: Ints, extent: Ints) -> tuple[Ints, Ints]:
    """One axis of a window."""
    if isinstance(m, (Identity, Sliding)):
        return window([m], at, extent)
    if isinstance(m, Everything):
        return Ints.of(at.graph, 0, 1), Ints.of(at.graph, m.in_size, 1)
    if isinstance(m, Blocks):
        low = at // [m.factor]
        return low, ((at + extent + (m.factor - 1)) // [m.factor] - low).largest()
    if isinstance(m, Transposed):
        return _transposed(m, at, extent)
    return _read(m, at, extent)


def _transposed(m: Transposed, at: Ints, extent: Ints) -> tuple[Ints, Ints]:
    """See `Transposed.window`."""
    first = (at + m.padding) // [m.stride]
    low = ((at + (m.padding - m.span + m.stride - 1)) // [m.stride]).at_most(first)
    high = ((at + extent + (m.padding - 1)) // [m.stride] + 1).at_least(low + 1)
    return low, (high - low).largest()


def _read(m: Table, at: Ints, extent: Ints) -> tuple[Ints, Ints]:
    """The hulls of what boxes of outputs read, moved to lie inside the input."""
    g = at.graph
    cells = g.op("Add", at.name, steps(g, extent))
    bounds = np.array([0]), np.array([m.in_size])
    low, high = (
        Ints(g, g.op(kind, g.op("Gather", g.ints(*table), cells), g.ints(-1), keepdims=1), *bounds, at.batched)
        for kind, table in (("ReduceMin", m.first), ("ReduceMax", m.stop))
    )
    size = (high - low).largest().at_least(0)
    return low.at_most(Ints.of(g, m.in_size, 1) - size), size


def steps(g: Graph, extent: Ints) -> str:
    """0 … of one axis's extent, [cells]."""
    return g.op("Range", g.constant(0, "int64"), g.op("Squeeze", extent.name), g.constant(1, "int64"))
