"""How large the region of a layer is: Krypton's worst case, and each position's own box."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import or_

import numpy as np
from torch import fx

from kcompile.core.axis_map import AxisMap, Sliding
from kcompile.core.interval import IntArray, Interval
from kcompile.core.region import Region, evaluate
from kcompile.passes.propagate import Analysis, NodeInfo, tensor_inputs
from kcompile.passes.rules.registry import Spatial


def krypton_extents(found: Analysis, patch: tuple[int, ...]) -> dict[fx.Node, tuple[int, ...]]:
    """Krypton's worst case: cells per axis of each node's region for a patch in the middle of the image.

    Widths follow eq. 16 (every stride rounds up), origins eq. 15 and 33-34, and joins take the hull of all their inputs
    (eq. 22); pools count as convolutions (section 2.2). One patch origin, ``(size - patch) // 2``, stands for all: this
    is what the paper's figure 3 shows.

    Args:
        found: The propagated graph.
        patch: Patch size per axis, in pixels.

    Returns:
        Extents of the nodes that have a region.
    """
    boxes: dict[fx.Node, tuple[Interval, ...]] = {}
    for node, info in found.nodes.items():
        if node is found.image and info.record.out is not None:
            boxes[node] = tuple(_centred(size, width) for size, width in zip(info.record.out.sizes, patch, strict=True))
        elif info.region is not None:
            boxes[node] = _joined(info, boxes)
    return {node: tuple(int(axis.size) for axis in box) for node, box in boxes.items()}


def own_boxes(found: Analysis, patch: tuple[int, ...], positions: IntArray) -> list[Region]:
    """Each position's own, exact region, for every entry of the table of regions.

    Args:
        found: The propagated graph.
        patch: Patch size per axis, in pixels.
        positions: Top-left corners [N, axes].
    """
    spots = zip(positions.T, patch, strict=True)
    return evaluate(found.table.defs, Region.of(*(Interval.of(low, low + width) for low, width in spots)))


def _joined(info: NodeInfo, boxes: dict[fx.Node, tuple[Interval, ...]]) -> tuple[Interval, ...]:
    """Hull of a node's inputs' boxes moved through its rule's maps (eq. 22)."""
    moved = [
        tuple(output_box(m, axis) for m, axis in zip(maps, box, strict=True)) for box, maps in _sources(info, boxes)
    ]
    return tuple(reduce(or_, axis) for axis in zip(*moved, strict=True))


def _sources(
    info: NodeInfo, boxes: dict[fx.Node, tuple[Interval, ...]]
) -> Iterator[tuple[tuple[Interval, ...], tuple[AxisMap, ...]]]:
    assert isinstance(info.answer, Spatial)
    for arg, maps in zip(tensor_inputs(info.node), info.answer.maps, strict=True):
        if arg in boxes and maps is not None:
            yield boxes[arg], maps


def output_box(m: AxisMap, box: Interval) -> Interval:
    """One axis of Krypton's output patch: eq. 15 (origin), eq. 16 (width) and eq. 33-34 (moved inside the output).

    A dilated kernel counts with its span, ``K = (kernel - 1) * dilation + 1``; the paper has none. Maps of other kinds
    than a sliding kernel are not in the paper either and give their exact interval.
    """
    if not isinstance(m, Sliding):
        return m.region(box)
    width = np.minimum(-(-(box.size + m.span) // m.stride), m.out_size)
    origin = np.maximum(-((m.span - m.padding - box.lo) // m.stride), 0)
    origin = np.minimum(origin, m.out_size - width)
    return Interval.of(origin, origin + width)


def _centred(size: int, width: int) -> Interval:
    origin = (size - width) // 2
    return Interval.of(origin, origin + width)
