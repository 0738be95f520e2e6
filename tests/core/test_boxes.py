"""Boxes of one extent hold every region, lie inside the tensor, and their windows hold all that is needed."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from kcompile.core.axis_map import AxisMap, Identity, Sliding
from kcompile.core.boxes import Boxes
from kcompile.core.interval import Interval
from kcompile.core.region import Region
from tests.core.strategies import maps_with_changes


def spans(boxes: Boxes) -> Region:
    return Region.of(*(Interval.of(lo, lo + size) for lo, size in zip(boxes.origins.T, boxes.extent, strict=True)))


def through(m: AxisMap, changed: Interval) -> Region:
    return Region.of(m.region(changed))


@given(maps_with_changes())
def test_around(drawn: tuple[AxisMap, Interval, Interval]) -> None:
    m, changed, _ = drawn
    region = through(m, changed)
    boxes = Boxes.around(region, (m.out_size,))
    assert spans(boxes).contains(region).all()
    assert (boxes.origins >= 0).all()
    assert (boxes.origins + np.array(boxes.extent) <= m.out_size).all()
    assert boxes.extent == (max(1, int(region.axes[0].size.max())),)


@given(maps_with_changes())
def test_window_holds_what_the_boxes_need(drawn: tuple[AxisMap, Interval, Interval]) -> None:
    m, changed, _ = drawn
    boxes = Boxes.around(through(m, changed), (m.out_size,))
    window = boxes.window((m,))
    assert spans(window) == spans(boxes).window((m,))
    assert spans(window).contains(through(m, changed).window((m,))).all()


def test_by_hand() -> None:
    region = Region.of(Interval.of([0, 5, 0], [2, 8, 0]), Interval.of([1, 9, 0], [2, 10, 0]))
    boxes = Boxes.around(region, (8, 10))
    assert boxes.extent == (3, 1)
    assert boxes.origins.tolist() == [[0, 1], [5, 9], [0, 0]]


def test_a_box_wider_than_its_region_moves_inside_the_tensor() -> None:
    region = Region.of(Interval.of([0, 7, 3], [3, 8, 4]), Interval.of([2, 0, 9], [3, 1, 10]))
    assert Boxes.around(region, (8, 10)).origins.tolist() == [[0, 2], [5, 0], [3, 9]]


def test_offsets_say_where_boxes_begin_inside_a_window() -> None:
    boxes = Boxes(np.array([[2, 3], [0, 0]]), (2, 2))
    window = boxes.window((Sliding(3, 1, 1, 1, 8, 8), Identity(8)))
    assert window.origins.tolist() == [[1, 3], [-1, 0]]
    assert window.extent == (4, 2)
    assert boxes.offsets(window).tolist() == [[1, 0], [1, 0]]
