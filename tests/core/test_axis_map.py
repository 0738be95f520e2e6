"""Axis maps against the taps themselves."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from kcompile.core.axis_map import AxisMap, Everything, Identity, Sliding
from kcompile.core.interval import Interval
from tests.core.strategies import BATCH, maps_with_changes, sliding


def taps(m: AxisMap, out: int) -> set[int]:
    """The cells that one output reads, padding included."""
    if isinstance(m, Identity):
        return {out}
    if isinstance(m, Everything):
        return set(range(m.in_size))
    return {out * m.stride - m.padding + m.dilation * tap for tap in range(m.kernel)}


def pairs(interval: Interval) -> list[tuple[int, int]]:
    return list(zip(interval.lo.tolist(), interval.hi.tolist(), strict=True))


@given(maps_with_changes())
def test_every_output_that_a_tap_hits_is_in_the_region(drawn: tuple[AxisMap, Interval, Interval]) -> None:
    m, changed, _ = drawn
    for (lo, hi), (first, last) in zip(pairs(changed), pairs(m.region(changed)), strict=True):
        hit = [out for out in range(m.out_size) if taps(m, out) & set(range(lo, hi))]
        assert all(first <= out < last for out in hit)
        assert 0 <= first <= last <= m.out_size


@given(maps_with_changes())
def test_region_is_the_hull_of_what_the_taps_hit(drawn: tuple[AxisMap, Interval, Interval]) -> None:
    """Unless the change is narrower than the distance between taps."""
    m, changed, _ = drawn
    wide = m.dilation if isinstance(m, Sliding) and m.kernel > 1 else 1
    for (lo, hi), region in zip(pairs(changed), pairs(m.region(changed)), strict=True):
        hit = [out for out in range(m.out_size) if taps(m, out) & set(range(lo, hi))]
        if hi - lo >= wide or lo == hi:
            assert region == ((min(hit), max(hit) + 1) if hit else (0, 0))


@given(maps_with_changes())
def test_window_is_exactly_from_the_first_tap_to_the_last(drawn: tuple[AxisMap, Interval, Interval]) -> None:
    m, _, _ = drawn
    for lo in range(m.out_size):
        for hi in range(lo + 1, m.out_size + 1):
            window = m.window(Interval.of(lo, hi))
            read = set().union(*(taps(m, out) for out in range(lo, hi)))
            assert (int(window.lo), int(window.hi)) == (min(read), max(read) + 1)


@given(maps_with_changes())
def test_both_are_monotone(drawn: tuple[AxisMap, Interval, Interval]) -> None:
    m, outer, inner = drawn
    assert m.region(outer).contains(m.region(inner)).all()
    scaled = Interval.of(outer.lo * m.out_size // m.in_size, outer.hi * m.out_size // m.in_size)
    smaller = scaled & Interval.of(scaled.lo + 1, scaled.hi)
    assert m.window(scaled).contains(m.window(smaller)).all()


@given(maps_with_changes())
def test_region_and_window_belong_together(drawn: tuple[AxisMap, Interval, Interval]) -> None:
    """A change meets the window of one output exactly where the region holds this output."""
    m, changed, _ = drawn
    region = m.region(changed)
    for out in range(m.out_size):
        meets = ~(m.window(Interval.of([out] * BATCH, out + 1)) & changed).empty
        assert (region.contains(Interval.of([out] * BATCH, out + 1)) == meets).all()


@given(maps_with_changes())
def test_empty_stays_empty(drawn: tuple[AxisMap, Interval, Interval]) -> None:
    m, changed, _ = drawn
    assert (m.region(changed).empty | ~changed.empty).all()
    assert m.region(Interval.of(3, 3)).empty
    assert m.window(Interval.of(3, 3)).empty


@given(sliding())
def test_all_of_the_input_changes_all_that_reads_it(m: Sliding) -> None:
    """Outputs at a border that read padding alone do not change."""
    region = m.region(Interval.of(0, m.in_size))
    reading = [out for out in range(m.out_size) if taps(m, out) & set(range(m.in_size))]
    assert all(int(region.lo) <= out < int(region.hi) for out in reading)


def test_by_hand() -> None:
    m = Sliding(kernel=3, stride=2, padding=1, dilation=1, in_size=9, out_size=5)
    assert m.span == 2
    assert m.region(Interval.of([0, 4, 8], [1, 6, 9])) == Interval.of([0, 2, 4], [1, 4, 5])
    assert m.window(Interval.of([0, 2], [1, 4])) == Interval.of([-1, 3], [2, 8])
    assert Identity(7).in_size == Identity(7).out_size == 7


def test_shapes_of_batches_are_kept() -> None:
    for m in (Identity(4), Sliding(2, 1, 0, 1, 4, 3), Everything(4, 3)):
        assert m.region(Interval.of(0, 2)).lo.shape == ()
        assert m.window(Interval.of(np.zeros((2, 3)), 2)).lo.shape == (2, 3)
