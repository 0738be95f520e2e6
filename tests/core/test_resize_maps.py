"""Blocks, transposed convolutions and tables against which outputs read which inputs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kcompile.core.axis_map import AxisMap, Blocks, Everything, Identity, Sliding, Table, Transposed
from kcompile.core.boxes import Boxes
from kcompile.core.interval import Interval
from kcompile.core.region import InputRegion, MappedRegion, Region
from tests.core.strategies import (
    axis_maps,
    blocks,
    intervals,
    resize_maps_with_changes,
    tables,
    transposed,
)  # fmt: skip

MAPS = resize_maps_with_changes()
Drawn = tuple[Blocks | Transposed | Table, Interval]


def reads(m: AxisMap, out: int) -> set[int]:
    """The input cells that one output reads."""
    if isinstance(m, Blocks):
        return {out // m.factor}
    if isinstance(m, Table):
        return set(range(m.first[out], m.stop[out]))
    assert isinstance(m, Transposed)
    return {
        cell
        for cell in range(m.in_size)
        for tap in range(m.kernel)
        if cell * m.stride - m.padding + tap * m.dilation == out
    }


def pairs(interval: Interval) -> list[tuple[int, int]]:
    return list(zip(interval.lo.tolist(), interval.hi.tolist(), strict=True))


def has_holes(m: AxisMap) -> bool:
    """True if a hull's end may be an output that no tap writes: taps beyond the border leave a gap behind it."""
    return isinstance(m, Transposed) and (m.dilation > 1 or m.stride > m.kernel)


@given(MAPS)
def test_region_holds_every_output_that_reads_a_changed_cell(drawn: Drawn) -> None:
    m, changed = drawn
    for (lo, hi), (first, last) in zip(pairs(changed), pairs(m.region(changed)), strict=True):
        hit = [out for out in range(m.out_size) if reads(m, out) & set(range(lo, hi))]
        assert all(first <= out < last for out in hit)
        assert 0 <= first <= last <= m.out_size


@given(MAPS)
def test_region_is_the_hull(drawn: Drawn) -> None:
    """Holes aside: whole blocks, and no output too many at either end."""
    m, changed = drawn
    for (lo, hi), region in zip(pairs(changed), pairs(m.region(changed)), strict=True):
        hit = [out for out in range(m.out_size) if reads(m, out) & set(range(lo, hi))]
        if not has_holes(m):
            assert region == ((min(hit), max(hit) + 1) if hit else (0, 0)) or (not hit and region[0] >= region[1])


@given(transposed())
def test_region_without_a_border_is_the_hull_whatever_the_holes(m: Transposed) -> None:
    """Where no tap falls beyond the tensor, first and last tap are written."""
    for lo in range(m.in_size):
        for hi in range(lo + 1, m.in_size + 1):
            first, last = lo * m.stride - m.padding, (hi - 1) * m.stride - m.padding + m.span
            if first >= 0 and last < m.out_size:
                region = m.region(Interval.of(lo, hi))
                assert (int(region.lo), int(region.hi)) == (first, last + 1)


@given(MAPS)
def test_window_holds_all_that_is_read(drawn: Drawn) -> None:
    m, _ = drawn
    for lo in range(m.out_size):
        for hi in range(lo + 1, m.out_size + 1):
            window = m.window(Interval.of(lo, hi))
            needed = set().union(*(reads(m, out) for out in range(lo, hi)))
            assert all(int(window.lo) <= cell < int(window.hi) for cell in needed)
            assert window.size > 0, "an op cannot run on nothing"


@given(st.one_of(blocks(), tables()))
def test_window_of_blocks_and_tables_is_the_hull_of_what_is_read(m: Blocks | Table) -> None:
    for lo in range(m.out_size):
        for hi in range(lo + 1, m.out_size + 1):
            window = m.window(Interval.of(lo, hi))
            needed = set().union(*(reads(m, out) for out in range(lo, hi)))
            assert (int(window.lo), int(window.hi)) == (min(needed), max(needed) + 1)


@given(transposed())
def test_windows_of_a_transposed_convolution_write_the_whole_box(m: Transposed) -> None:
    """The result on a window begins at or before the box and, with ``stride - 1`` cells more, ends behind it."""
    for lo in range(m.out_size):
        for hi in range(lo + 1, m.out_size + 1):
            window = m.window(Interval.of(lo, hi))
            first = int(window.lo) * m.stride - m.padding
            cells = (int(window.size) - 1) * m.stride + m.span + 1 + (m.stride - 1)
            assert first <= lo
            assert first + cells >= hi


@given(transposed())
def test_windows_of_a_transposed_convolution_lie_within_its_overhang(m: Transposed) -> None:
    """Those of boxes of one extent too, whose common size is the largest."""
    low, high = m.overhang
    for size in range(1, m.out_size + 1):
        boxes = Boxes(np.arange(m.out_size - size + 1)[:, None], (size,))
        window = boxes.window((m,))
        assert (window.origins >= -low).all()
        assert (window.origins + window.extent[0] <= m.in_size + high).all()


@given(st.one_of(blocks(), tables()))
def test_other_windows_lie_inside(m: Blocks | Table) -> None:
    assert m.overhang == (0, 0)
    unit = m.factor if isinstance(m, Blocks) else 1
    for size in range(unit, m.out_size + 1, unit):
        boxes = Boxes(np.arange(0, m.out_size - size + 1, unit)[:, None], (size,))
        window = boxes.window((m,))
        assert (window.origins >= 0).all()
        assert (window.origins + window.extent[0] <= m.in_size).all()


@given(axis_maps(), st.data())
def test_window_of_equal_boxes_is_that_of_the_map(m: AxisMap, data: st.DataObject) -> None:
    """Each window begins where the map's does or, moved into the tensor, before; all are as long as the longest."""
    unit = m.factor if isinstance(m, Blocks) else 1
    size = unit * data.draw(st.integers(1, m.out_size // unit))
    starts = np.arange(0, m.out_size - size + 1, unit)
    window, own = Boxes(starts[:, None], (size,)).window((m,)), m.window(Interval.of(starts, starts + size))
    lo, extent = window.origins[:, 0], window.extent[0]
    assert extent == own.size.max()
    assert (lo <= own.lo).all()
    assert (lo + extent >= own.hi).all()
    if isinstance(m, (Identity, Sliding, Everything, Blocks)):
        assert (lo == own.lo).all()
        assert (own.size == extent).all()


@given(MAPS, st.data())
def test_both_are_monotone(drawn: Drawn, data: st.DataObject) -> None:
    m, outer = drawn
    inner = outer & data.draw(intervals(0, m.in_size))
    assert m.region(outer).contains(m.region(inner)).all()
    wanted = data.draw(intervals(0, m.out_size))
    assert m.window(wanted).contains(m.window(wanted & data.draw(intervals(0, m.out_size)))).all()


@given(MAPS)
def test_empty_stays_empty(drawn: Drawn) -> None:
    m, changed = drawn
    assert (m.region(changed).empty | ~changed.empty).all()
    assert m.region(Interval.of(0, 0)).empty
    assert m.window(Interval.of([1, 0], [1, 0])).empty.all()


@given(blocks(), st.data())
def test_boxes_around_blocks_stay_aligned(m: Blocks, data: st.DataObject) -> None:
    """Hulls of several regions, and boxes that are moved to lie inside, are whole blocks."""
    changed, other = (data.draw(intervals(0, m.in_size)) for _ in range(2))
    entry = MappedRegion((0, 0), ((m,), (m,)), (m.out_size,))
    region = Region.of(m.region(changed)) | Region.of(m.region(other))
    boxes = Boxes.around(region, entry.shape, entry.units)
    assert entry.units == (m.factor,)
    assert boxes.extent[0] % m.factor == 0
    assert (boxes.origins % m.factor == 0).all()
    assert (boxes.origins >= 0).all()
    assert (boxes.origins + boxes.extent[0] <= m.out_size).all()
    window = boxes.window((m,))
    assert (window.origins * m.factor == boxes.origins).all()
    assert window.extent[0] * m.factor == boxes.extent[0]


def test_units_of_several_maps_are_a_common_multiple() -> None:
    two, three = (Blocks(2, 6), Identity(5)), (Blocks(3, 4), Blocks(5, 1))
    assert MappedRegion((0, 0), (two, three), (12, 5)).units == (6, 5)
    assert MappedRegion((0,), ((Sliding(3, 2, 1, 1, 9, 5), Everything(3, 1)),), (5, 1)).units == (1, 1)
    assert InputRegion((9, 11)).units == (1, 1)


def test_shapes_of_batches_are_kept() -> None:
    for m in (Blocks(2, 4), Transposed(3, 2, 1, 1, 4, 7), Table((2, 0, 1), (3, 2, 4), 4)):
        assert m.region(Interval.of(0, 2)).lo.shape == ()
        assert m.window(Interval.of(0, 2)).lo.shape == ()
        assert m.window(Interval.of(np.zeros((2, 3), dtype=np.int64), 2)).lo.shape == (2, 3)
        assert m.region(Interval.of(np.zeros((2, 3), dtype=np.int64), 2)).hi.shape == (2, 3)


def test_no_boxes_at_all() -> None:
    nothing = Interval.of(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    for m in (Blocks(2, 4), Transposed(3, 2, 1, 1, 4, 7), Table((2, 0, 1), (3, 2, 4), 4)):
        assert m.region(nothing).lo.shape == m.window(nothing).hi.shape == (0,)


def test_by_hand() -> None:
    assert Blocks(3, 4).region(Interval.of([0, 1], [1, 3])) == Interval.of([0, 3], [3, 9])
    assert Blocks(3, 4).window(Interval.of([0, 2, 3], [1, 4, 6])) == Interval.of([0, 0, 1], [1, 2, 2])
    up = Transposed(kernel=4, stride=2, padding=1, dilation=1, in_size=5, out_size=10)
    assert up.region(Interval.of([0, 2, 4], [1, 3, 5])) == Interval.of([0, 3, 7], [3, 7, 10])
    assert up.window(Interval.of([0, 4], [1, 6])) == Interval.of([-1, 1], [1, 4])
    holes = Transposed(kernel=1, stride=3, padding=0, dilation=1, in_size=4, out_size=10)
    assert holes.region(Interval.of([1, 1], [2, 3])) == Interval.of([3, 3], [4, 7])
    assert holes.window(Interval.of([4, 3], [6, 4])) == Interval.of([1, 1], [2, 2])
    mirrored = Table((2, 1, 0, 1, 2, 3), (3, 2, 1, 2, 3, 4), 4)
    assert mirrored.region(Interval.of([0, 1, 3], [1, 2, 4])) == Interval.of([2, 1, 5], [3, 4, 6])
    assert mirrored.window(Interval.of([0, 2, 5], [2, 4, 6])) == Interval.of([1, 0, 3], [3, 2, 4])
