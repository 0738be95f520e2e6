"""Random intervals, regions and axis maps."""

from __future__ import annotations

from hypothesis import assume
from hypothesis import strategies as st

from kcompile.core.axis_map import AxisMap, Blocks, Everything, Identity, Sliding, Table, Transposed
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
def transposed(draw: st.DrawFn) -> Transposed:
    """A transposed kernel on an axis, with output padding or without, wider than its stride or not."""
    kernel, stride, dilation, size = (draw(st.integers(1, most)) for most in (4, 4, 3, 6))
    span = (kernel - 1) * dilation
    padding, extra = draw(st.integers(0, span + 1)), draw(st.integers(0, max(stride, dilation) - 1))
    out = (size - 1) * stride - 2 * padding + span + 1 + extra
    assume(out > 0)
    return Transposed(kernel, stride, padding, dilation, size, out)


@st.composite
def blocks(draw: st.DrawFn) -> Blocks:
    return Blocks(draw(st.integers(1, 4)), draw(st.integers(1, 6)))


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Any reads at all: not ascending, of unequal lengths, some cells read by nobody."""
    size = draw(st.integers(1, 9))
    ends = draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, size)), min_size=1, max_size=10))
    return Table(tuple(min(a, b - 1) for a, b in ends), tuple(max(a + 1, b) for a, b in ends), size)


@st.composite
def axis_maps(draw: st.DrawFn) -> AxisMap:
    """A map of any kind."""
    return draw(st.one_of(plain_maps(), blocks(), transposed(), tables()))


@st.composite
def plain_maps(draw: st.DrawFn) -> Identity | Sliding | Everything:
    """A map that says by formula which cells an output reads."""
    size, other = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return draw(st.one_of(sliding(), st.just(Identity(size)), st.just(Everything(size, other))))


@st.composite
def maps_with_changes(draw: st.DrawFn) -> tuple[AxisMap, Interval, Interval]:
    """A plain map and two batches of intervals of its input, the second inside the first."""
    m = draw(plain_maps())
    outer = draw(intervals(0, m.in_size))
    return m, outer, outer & draw(intervals(0, m.in_size))


@st.composite
def resize_maps_with_changes(draw: st.DrawFn) -> tuple[Blocks | Transposed | Table, Interval]:
    """One of the other maps and a batch of intervals of its input."""
    m = draw(st.one_of(blocks(), transposed(), tables()))
    return m, draw(intervals(0, m.in_size))
