"""Random intervals, regions and axis maps."""

from __future__ import annotations

from hypothesis import strategies as st

from kcompile.core.axis_map import AxisMap, Everything, Identity, Sliding
from kcompile.core.interval import Interval
from kcompile.core.region import Region

BATCH = 5  # boxes per batch


@st.composite
def intervals(draw: st.DrawFn, low: int = -12, high: int = 12, count: int = BATCH) -> Interval:
    """A batch of intervals, some of them empty, some of those with the ends the wrong way round."""
    ends = st.lists(st.integers(low, high), min_size=count, max_size=count)
    return Interval.of(draw(ends), draw(ends))


@st.composite
def regions(draw: st.DrawFn, axes: int = 2) -> Region:
    return Region.of(*(draw(intervals()) for _ in range(axes)))


@st.composite
def sliding(draw: st.DrawFn) -> Sliding:
    """A kernel on an axis, with ceil mode or without."""
    kernel, stride, dilation = (draw(st.integers(1, most)) for most in (5, 4, 3))
    span = (kernel - 1) * dilation
    padding, size = draw(st.integers(0, span)), draw(st.integers(span + 1, 20))
    steps = size + 2 * padding - span - 1
    ceil = draw(st.booleans()) and (-(-steps // stride)) * stride < size + padding
    return Sliding(kernel, stride, padding, dilation, size, (-(-steps // stride) if ceil else steps // stride) + 1)


@st.composite
def axis_maps(draw: st.DrawFn) -> AxisMap:
    size, other = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return draw(st.one_of(sliding(), st.just(Identity(size)), st.just(Everything(size, other))))


@st.composite
def maps_with_changes(draw: st.DrawFn) -> tuple[AxisMap, Interval, Interval]:
    """An axis map and two batches of intervals of its input, the second inside the first."""
    m = draw(axis_maps())
    outer = draw(intervals(0, m.in_size))
    return m, outer, outer & draw(intervals(0, m.in_size))
