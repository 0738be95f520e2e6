"""Regions are boxes of cells: emptiness couples the axes."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from kcompile.core.axis_map import Everything, Identity, Sliding
from kcompile.core.interval import Interval
from kcompile.core.region import InputRegion, MappedRegion, Region, RegionDef, evaluate
from tests.core.strategies import BATCH, regions


def cells(region: Region) -> list[set[tuple[int, ...]]]:
    bounds = [zip(axis.lo.tolist(), axis.hi.tolist(), strict=True) for axis in region.axes]
    return [set(product(*(range(lo, hi) for lo, hi in box))) for box in zip(*bounds, strict=True)]


def box(*axes: tuple[int, int]) -> Region:
    return Region.of(*(Interval.of([lo], [hi]) for lo, hi in axes))


EMPTY = Region.of(*(Interval.of([0] * BATCH, 0) for _ in range(2)))


def test_one_empty_axis_empties_the_box() -> None:
    empty = box((0, 0), (3, 7))
    assert empty == box((0, 0), (0, 0))
    assert empty | box((8, 9), (1, 2)) == box((8, 9), (1, 2))
    assert box((0, 2), (0, 2)) & box((5, 6), (0, 2)) == box((0, 0), (0, 0))


@given(regions(), regions())
def test_operators_are_those_of_the_cells(a: Region, b: Region) -> None:
    assert cells(a & b) == [x & y for x, y in zip(cells(a), cells(b), strict=True)]
    assert all(hull >= x | y for hull, x, y in zip(cells(a | b), cells(a), cells(b), strict=True))
    assert a.contains(b).tolist() == [y <= x for x, y in zip(cells(a), cells(b), strict=True)]
    assert (a == b) == (cells(a) == cells(b))


@given(regions(), regions(), regions())
def test_laws(a: Region, b: Region, c: Region) -> None:
    assert a | b == b | a
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)
    assert a | a == a
    assert a & a == a
    assert a | EMPTY == a
    assert a & EMPTY == EMPTY
    assert (a | b).contains(a).all()
    assert a.contains(a & b).all()


@given(regions(), regions())
def test_hull_is_the_smallest_box(a: Region, b: Region) -> None:
    for hull, x, y in zip(cells(a | b), cells(a), cells(b), strict=True):
        for axis in range(2):
            assert {cell[axis] for cell in hull} == _filled({cell[axis] for cell in x | y})


def _filled(line: set[int]) -> set[int]:
    return set(range(min(line), max(line) + 1)) if line else set()


@given(regions(), st.tuples(st.integers(-5, 5), st.integers(-5, 5)))
def test_shift_and_cells(a: Region, by: tuple[int, int]) -> None:
    assert cells(a.shift(by)) == [{(r + by[0], c + by[1]) for r, c in x} for x in cells(a)]
    assert a.cells.tolist() == [len(x) for x in cells(a)]


def test_maps_do_not_revive_an_empty_axis() -> None:
    strided = Sliding(1, 2, 0, 1, 8, 4)
    odd = box((3, 4), (2, 6)).through((strided, Everything(8, 5)))
    assert odd == box((0, 0), (0, 0))
    assert odd.window((strided, Everything(8, 5))) == box((0, 0), (0, 0))


def test_evaluate_by_hand() -> None:
    three, strided = Sliding(3, 1, 1, 1, 8, 8), Sliding(1, 2, 0, 1, 8, 4)
    same = (Identity(4), Identity(4))
    table: list[RegionDef] = [
        InputRegion((8, 8)),
        MappedRegion((0,), ((three, three),), (8, 8)),
        MappedRegion((0,), ((strided, strided),), (4, 4)),
        MappedRegion((1,), ((strided, strided),), (4, 4)),
        MappedRegion((2, 3), (same, same), (4, 4)),
    ]
    patch = Region.of(Interval.of([-1, 5], [1, 6]), Interval.of([6, 5], [10, 6]))
    image, first, shortcut, second, hull = evaluate(table, patch)
    assert image == Region.of(Interval.of([0, 5], [1, 6]), Interval.of([6, 5], [8, 6]))
    assert first == Region.of(Interval.of([0, 4], [2, 7]), Interval.of([5, 4], [8, 7]))
    assert shortcut == Region.of(Interval.of([0, 0], [1, 0]), Interval.of([3, 0], [4, 0]))
    assert second == Region.of(Interval.of([0, 2], [1, 4]), Interval.of([3, 2], [4, 4]))
    assert hull == second


def test_a_patch_outside_of_the_image_changes_nothing() -> None:
    table = [InputRegion((8, 8)), MappedRegion((0,), ((Everything(8, 1), Everything(8, 1)),), (1, 1))]
    assert all(region.empty.all() for region in evaluate(table, box((-4, 0), (2, 6))))


def test_printing() -> None:
    assert repr(Region.of(Interval.of(1, 2), Interval.of(3, 5))) == "[1, 2) x [3, 5)"
    assert box((1, 2)) != "[1, 2)"
