"""Batches of few kinds, for runners that prepare each kind once (CUDA graphs)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kcompile.core.interval import IntArray
from kcompile.core.plan import Plan
from kcompile.core.region import Region
from kcompile.runtime.scheduler import FloatArray, merged_classes

MOST = 16


def buckets(
    plan: Plan, regions: Sequence[Region], rows: IntArray, batch: int, overhead: float, most: int = MOST
) -> list[tuple[IntArray, int]]:
    """Split queries into batches such that few extents and numbers of queries occur.

    Classes of extents are merged by the cost model, as `schedule` does, but until there are few. Each batch of a class
    has equally many queries and the class's largest extents: it is filled up with queries of the class that have them.

    Args:
        plan: Gives the multiply-adds per cell.
        regions: The plan's regions for all queries.
        rows: Which queries, as indices.
        batch: Largest number of queries in one batch.
        overhead: What one more batch costs, in multiply-adds.
        most: Largest number of classes.

    Returns:
        For each batch its queries and how many of them count: what follows these is there to fill up.
    """
    if not len(rows):
        return []
    extents = np.stack([np.stack([axis.size[rows] for axis in region.axes]) for region in regions])
    labels = merged_classes(extents.astype(np.float64), np.asarray(plan.cell_macs()), overhead, most)
    found = []
    for label in np.unique(labels):
        group = np.flatnonzero(labels == label)
        found += [(rows[part], real) for part, real in _filled(group, extents[:, :, group], batch)]
    return found


def _filled(group: IntArray, extents: IntArray, batch: int) -> list[tuple[IntArray, int]]:
    """The batches of one class; ``extents`` is [regions, axes, len(group)]."""
    if len(group) <= batch:
        return [(group, len(group))]
    widest = _cover(extents.reshape(-1, len(group)).astype(np.float64))
    room = max(batch - len(widest), 1)
    parts = np.array_split(np.arange(len(group)), -(-len(group) // room))
    size = len(parts[0]) + len(widest)
    batches = []
    for part in parts:
        filling = np.concatenate([widest, np.repeat(widest[:1], size - len(part) - len(widest))])
        batches.append((group[np.concatenate([part, filling])], len(part)))
    return batches


def _cover(extents: FloatArray) -> IntArray:
    """Few columns of [extents, queries] that have the largest value of each row among them, greedily."""
    largest = extents == extents.max(axis=1, keepdims=True)
    chosen = []
    while len(largest):
        best = int(np.argmax(largest.sum(axis=0)))
        chosen.append(best)
        largest = largest[~largest[:, best]]
    return np.array(chosen, dtype=np.int64)
