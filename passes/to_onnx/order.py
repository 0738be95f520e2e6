"""The order in which positions go into batches of one size: like extents together (docs/design.md, section 5).

Within a loop in the graph batches can't be made of classes of positions, as the runtime's scheduler makes them. Instead
positions are sorted by a key, a sum of one number per axis, so that neighbours in this order have like extents.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kcompile.core.interval import IntArray, Interval
from kcompile.core.plan import Plan
from kcompile.core.region import Region, evaluate

_GROUPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # of the first axes' positions, to choose from
_STEP = 4  # pixels, of the map for which the choice is made

FloatArray = npt.NDArray[np.float64]


def sort_keys(plan: Plan, batch: int) -> list[IntArray]:
    """Per axis the part of the key of each position from ``1 - patch`` to ``size - 1``.

    Positions are ranked per axis by what their extents cost. All axes but the last are divided into groups; the number
    of these that needs the fewest multiply-adds is taken.
    """
    weights = np.asarray(plan.cell_macs())
    extents = [_extents(plan, axis) for axis in range(len(plan.patch_shape))]
    means = [e.mean(axis=1) for e in extents]
    ranks = []
    for axis, mine in enumerate(extents):
        others = np.prod([m for other, m in enumerate(means) if other != axis], axis=0) if len(means) > 1 else 1.0
        ranks.append(np.unique((weights * others) @ mine, return_inverse=True)[1].astype(np.int64))
    options = [_keys(ranks, groups) for groups in _GROUPS]
    return min(options, key=lambda keys: _cost(plan, keys, extents, weights, batch))


def _extents(plan: Plan, axis: int) -> FloatArray:
    """Extents [regions, positions] along one axis of full patches at all positions."""
    places = [
        _places(plan, other) if other == axis else np.zeros(1, np.int64) for other in range(len(plan.patch_shape))
    ]
    count = len(places[axis])
    lows = [np.broadcast_to(place, (count,)) for place in places]
    boxes = Region.of(*(Interval.of(low, low + size) for low, size in zip(lows, plan.patch_shape, strict=True)))
    return np.stack([region.axes[axis].size for region in evaluate(plan.regions, boxes)]).astype(np.float64)


def _places(plan: Plan, axis: int) -> IntArray:
    return np.arange(1 - plan.patch_shape[axis], plan.input_shape[axis + 1])


def _keys(ranks: list[IntArray], groups: int) -> list[IntArray]:
    """The last axis by rank, the others by which of so many groups of ranks they are in."""
    keys, unit = [ranks[-1]], int(ranks[-1].max()) + 1
    for rank in ranks[-2::-1]:
        order = np.argsort(np.argsort(rank, kind="stable"), kind="stable")  # groups of equally many positions
        group = order * groups // len(rank)
        keys.insert(0, group * unit)
        unit *= groups
    return keys


def _cost(plan: Plan, keys: list[IntArray], extents: list[FloatArray], weights: FloatArray, batch: int) -> float:
    """Multiply-adds of a map in batches of this order."""
    inside = []
    for axis, (size, patch) in enumerate(zip(plan.input_shape[1:], plan.patch_shape, strict=True)):
        coarse = _STEP if len(plan.patch_shape) < 3 else max(_STEP, size // 12)
        inside.append(np.arange(0, size - patch + 1, coarse) + plan.patch_shape[axis] - 1)
    grid = np.stack(np.meshgrid(*inside, indexing="ij"), axis=-1).reshape(-1, len(inside))
    key = sum(keys[axis][grid[:, axis]] for axis in range(len(keys)))
    order = np.argsort(key, kind="stable")
    total = 0.0
    for rows in np.array_split(order, -(-len(order) // batch)):
        cells = np.ones(len(weights))
        for axis, mine in enumerate(extents):
            cells = cells * mine[:, grid[rows, axis]].max(axis=1)
        total += len(rows) * float(cells @ weights)
    return total
