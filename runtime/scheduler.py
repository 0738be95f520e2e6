"""Position scheduler: batches of positions with like extents, and their geometry. Imports no torch.

A batch computes, at every layer, boxes of one common extent (the maximum over its positions), so positions are put
together whose extents agree (docs/design.md, section 5). Where a class of equal extents has few positions, classes are
merged as long as the extra arithmetic costs less than the batch that is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kcompile.core.axis_map import AxisMap
from kcompile.core.boxes import Boxes
from kcompile.core.interval import IntArray, Interval
from kcompile.core.plan import RAW_PATCH, Plan, Read
from kcompile.core.region import Region, evaluate

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Geometry:
    """Where one read takes its windows for one batch.

    ``origins`` [N, axes] in padded coordinates of the base tensor, ``extent`` cells per axis, ``offsets`` [N, axes] of
    the patch tensor inside the window (None for a read without one). For a placed read, ``start`` and ``at`` [N, axes]
    are where the window and the wanted box begin, each in its tensor without padding, and ``size`` is the box's extent.
    ``padding`` is what the op adds itself to the window, per axis.
    """

    origins: IntArray
    extent: tuple[int, ...]
    offsets: IntArray | None
    start: IntArray | None = None
    at: IntArray | None = None
    size: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()


def patch_regions(positions: IntArray, sizes: Sequence[int]) -> Region:
    """Boxes of patches of one size at positions [N, axes]."""
    return Region.of(*(Interval.of(low, low + size) for low, size in zip(positions.T, sizes, strict=True)))


def centre(plan: Plan) -> IntArray:
    """The position [1, axes] that centres a full-sized patch on the image."""
    sizes = zip(plan.input_shape[1:], plan.patch_shape, strict=True)
    return np.array([[(size - patch) // 2 for size, patch in sizes]], dtype=np.int64)


def geometry(
    plan: Plan, positions: IntArray, sizes: Sequence[int], regions: Sequence[Region] | None = None
) -> dict[str, Geometry]:
    """The geometry of every read of a plan for one batch of positions.

    Args:
        plan: Gives the reads.
        positions: [N, axes].
        sizes: Patch size per axis.
        regions: The plan's regions for these positions, if they were evaluated before.
    """
    if regions is None:
        regions = evaluate(plan.regions, patch_regions(positions, sizes))
    boxes = [
        Boxes.around(region, entry.shape, entry.units) for region, entry in zip(regions, plan.regions, strict=True)
    ]
    raw = Boxes(positions, tuple(sizes))
    padding = {base.name: np.array([low for low, _ in base.padding], dtype=np.int64) for base in plan.bases}
    windows: dict[object, tuple[Boxes, tuple[int, ...]]] = {}
    result = {}
    for read in plan.reads:
        key = (read.target, read.maps, read.native)
        if key not in windows:
            windows[key] = (
                (_whole(read.maps, len(positions)), ()) if read.target is None else _window(read, boxes[read.target])
            )
        window, native = windows[key]
        over = None if read.patch is None else (raw if read.patch == RAW_PATCH else boxes[read.patch])
        offsets = None if over is None else over.offsets(window)
        box = boxes[read.target] if read.placed and read.target is not None else None
        made = Geometry(window.origins + padding[read.base], window.extent, offsets, padding=native)
        if box is not None:
            made = replace(made, start=window.origins, at=box.origins, size=box.extent)
        result[read.name] = made
    return result


def _window(read: Read, box: Boxes) -> tuple[Boxes, tuple[int, ...]]:
    """The window of a read, and the padding that the op adds to it by itself.

    Where a box spans an axis, the op reads the whole axis and pads it, which is less to copy and to multiply.
    """
    window = box.window(read.maps)
    spans = [bool(p) and size == m.out_size for p, size, m in zip(read.native, box.extent, read.maps, strict=False)]
    if not any(spans):
        return window, (0,) * len(read.native)
    extent = [m.in_size if whole else size for m, size, whole in zip(read.maps, window.extent, spans, strict=True)]
    origins = np.where(spans, 0, window.origins)
    return Boxes(origins, tuple(extent)), tuple(p * whole for p, whole in zip(read.native, spans, strict=True))


def _whole(maps: Sequence[AxisMap], count: int) -> Boxes:
    return Boxes(np.zeros((count, len(maps)), dtype=np.int64), tuple(m.in_size for m in maps))


def schedule(
    plan: Plan,
    positions: IntArray,
    sizes: Sequence[int],
    batch: int,
    overhead: float,
    regions: Sequence[Region] | None = None,
) -> list[IntArray]:
    """Split positions into batches of like extents.

    Args:
        plan: Gives regions and the multiply-adds per cell.
        positions: [N, axes], top-left corners.
        sizes: Patch size per axis.
        batch: Largest number of positions in one batch.
        overhead: What one more batch costs, in multiply-adds.
        regions: The plan's regions for all positions, if they were evaluated before.

    Returns:
        Index arrays into ``positions``; every position is in exactly one.
    """
    if not len(positions):
        return []
    if regions is None:
        regions = evaluate(plan.regions, patch_regions(positions, sizes))
    extents = np.stack([np.stack([axis.size for axis in region.axes]) for region in regions]).astype(np.float64)
    labels = merged_classes(extents, np.asarray(plan.cell_macs()), overhead)
    order = np.lexsort((*positions.T[::-1], labels))
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    batches = []
    for group in np.split(order, cuts):
        parts = -(-len(group) // batch)
        batches += [np.sort(part) for part in np.array_split(group, parts)]
    return batches


def merged_classes(extents: FloatArray, weights: FloatArray, overhead: float, most: int | None = None) -> IntArray:
    """Merge classes of like extents as long as that saves time, and until there are few.

    Args:
        extents: [regions, axes, N].
        weights: Multiply-adds per cell of each region.
        overhead: What one more batch costs, in multiply-adds.
        most: Largest number of classes, if any.

    Returns:
        One label per position; equal labels may share a batch.
    """
    axes = [_AxisClasses(extents, weights, axis) for axis in range(extents.shape[1])]
    while True:
        cells = np.count_nonzero(np.bincount(_joint(axes)))
        options = [(axis.best_merge(), i) for i, axis in enumerate(axes) if len(axis.counts) > 1]
        gains = [(cost - overhead * cells / len(axes[i].counts), i, pair) for (cost, pair), i in options]
        if not gains or (min(gains)[0] >= 0 and (most is None or cells <= most)):
            break
        _, i, pair = min(gains)
        axes[i].merge(*pair)
    return _joint(axes)


def _joint(axes: Sequence[_AxisClasses]) -> IntArray:
    """One label per position for its classes along all axes."""
    labels = np.zeros_like(axes[0].labels)
    for axis in axes:
        labels = labels * len(axis.counts) + axis.labels
    return labels


class _AxisClasses:
    """Classes of equal extents along one axis, merged step by step."""

    def __init__(self, extents: FloatArray, weights: FloatArray, axis: int) -> None:
        unique, self.labels, self.counts = np.unique(extents[:, axis], axis=1, return_inverse=True, return_counts=True)
        self.labels = self.labels.reshape(-1)
        self.extents = unique.T
        others = np.delete(extents, axis, axis=1).prod(axis=1).mean(axis=1)
        self.weights = weights * others  # cost of one more cell of this axis's extent, per region

    def best_merge(self) -> tuple[float, tuple[int, int]]:
        """The cheapest pair of classes to merge, and the extra multiply-adds that this costs."""
        own = self.extents @ self.weights
        both = np.maximum(self.extents[:, None], self.extents[None]) @ self.weights
        counts = self.counts
        extra = (counts[:, None] + counts) * both - (counts * own)[:, None] - counts * own
        extra[np.tril_indices(len(counts))] = np.inf
        a, b = np.unravel_index(int(np.argmin(extra)), extra.shape)
        return float(extra[a, b]), (int(a), int(b))

    def merge(self, a: int, b: int) -> None:
        """Make one class of two (a < b)."""
        self.extents[a] = np.maximum(self.extents[a], self.extents[b])
        self.counts[a] += self.counts[b]
        self.labels[self.labels == b] = a
        self.labels[self.labels > b] -= 1
        self.extents = np.delete(self.extents, b, axis=0)
        self.counts = np.delete(self.counts, b)


def work_share(plan: Plan) -> float:
    """Multiply-adds of a query in the image's middle, as a share of a full inference's; at most 1."""
    boxes = evaluate(plan.regions, patch_regions(centre(plan), plan.patch_shape))
    cells = [float(box.cells[0]) for box in boxes]
    macs = sum(c * w for c, w in zip(cells, plan.cell_macs(), strict=True)) + plan.dense_macs()
    return min(macs / max(plan.full_macs(), 1), 1.0)
