"""Intervals behave as sets of cells."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kcompile.core.interval import Interval
from tests.core.strategies import BATCH, intervals

EMPTY = Interval.of([0] * BATCH, [0] * BATCH)


def cells(interval: Interval) -> list[set[int]]:
    return [set(range(lo, hi)) for lo, hi in zip(interval.lo.tolist(), interval.hi.tolist(), strict=True)]


@given(intervals(), intervals())
def test_intersection_is_that_of_the_cells(a: Interval, b: Interval) -> None:
    assert cells(a & b) == [x & y for x, y in zip(cells(a), cells(b), strict=True)]


@given(intervals(), intervals())
def test_hull_is_the_smallest_interval_with_all_cells(a: Interval, b: Interval) -> None:
    for hull, x, y in zip(cells(a | b), cells(a), cells(b), strict=True):
        both = x | y
        assert hull == (set(range(min(both), max(both) + 1)) if both else set())


@given(intervals(), intervals(), intervals())
def test_laws(a: Interval, b: Interval, c: Interval) -> None:
    assert a | b == b | a
    assert a & b == b & a
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)
    assert a | a == a
    assert a & a == a
    assert a | (a & b) == a
    assert a & (a | b) == a


@given(intervals())
def test_empty_is_neutral_for_hull_and_absorbs_in_intersection(a: Interval) -> None:
    assert a | EMPTY == a
    assert EMPTY | a == a
    assert a & EMPTY == EMPTY


@given(intervals(), intervals())
def test_containment(a: Interval, b: Interval) -> None:
    assert a.contains(b).tolist() == [y <= x for x, y in zip(cells(a), cells(b), strict=True)]
    assert (a | b).contains(a).all()
    assert a.contains(a & b).all()
    assert a.contains(EMPTY).all()


@given(intervals(), st.integers(-9, 9))
def test_shift(a: Interval, by: int) -> None:
    assert cells(a.shift(by)) == [{cell + by for cell in x} for x in cells(a)]
    assert a.shift(by).shift(-by) == a
    assert (a.shift(by).size == a.size).all()


@given(intervals(), st.lists(st.booleans(), min_size=BATCH, max_size=BATCH))
def test_where(a: Interval, keep: list[bool]) -> None:
    assert cells(a.where(keep)) == [x if k else set() for x, k in zip(cells(a), keep, strict=True)]


@given(intervals())
def test_empty_ones_are_all_alike(a: Interval) -> None:
    assert (a.lo[a.empty] == 0).all()
    assert (a.hi[a.empty] == 0).all()
    assert a.size.tolist() == [len(x) for x in cells(a)]


def test_ends_are_broadcast() -> None:
    assert Interval.of([1, 2], 4) == Interval.of([1, 2], [4, 4])


@given(intervals(), intervals())
def test_equality_and_key_agree(a: Interval, b: Interval) -> None:
    assert (a == b) == (cells(a) == cells(b))
    assert (a.key() == b.key()) == (a == b)


def test_other_types_are_not_equal() -> None:
    assert EMPTY != 3
    assert Interval.of([1], [2]) != Interval.of([1, 1], [2, 2])


def test_printing() -> None:
    assert repr(Interval.of(2, 5)) == "[2, 5)"
    assert repr(Interval.of(7, 5)) == "[0, 0)"
    assert repr(Interval.of([1, 2], [3, 4])) == "Interval([1, 2], [3, 4])"


def test_integers_of_any_width_become_int64() -> None:
    assert Interval.of(np.int8(1), np.uint8(200)).hi.dtype == np.int64
