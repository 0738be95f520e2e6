"""What patches can change of outputs that are maps, as arrays (`runtime.outputs`: as tensors). Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kcompile.core.boxes import Boxes
from kcompile.core.interval import IntArray
from kcompile.core.plan import OutputMap, Plan
from kcompile.core.region import Region, evaluate
from kcompile.runtime.onnx_session import Array


@dataclass(frozen=True)
class ArrayRegion:
    """What patches can change of an output that is a map; elsewhere it is the base's.

    Attributes:
        values: [N, …], laid out as the output itself, its spatial axes cut to one extent for all queries.
        origins: int64 [N, axes], the first cell of each region.
        axes: The dimensions of the spatial axes.
    """

    values: Array
    origins: IntArray
    axes: tuple[int, ...]

    def paste(self, base: Array, base_index: IntArray | None = None) -> Array:
        """The output in full, given the output [B, …] for the base images."""
        full = base[np.zeros(len(self.values), np.int64) if base_index is None else base_index]
        for row, origin in enumerate(self.origins):
            full[row][_cut(full.ndim, self.axes, origin, self.values.shape)] = self.values[row]
        return full


class ArrayRegions:
    """Cuts the regions out of the results of a call's batches."""

    def __init__(self, plan: Plan, patch: Region) -> None:
        """Work out where each query's patch (its box around all boxes) can change each result."""
        regions = evaluate(plan.regions, patch)
        self.maps = plan.outputs
        self.places = [
            None if out is None else Boxes.changed(regions[out.region], plan.regions[out.region].shape)
            for out in plan.outputs
        ]

    def cut(self, rows: IntArray, results: Sequence[Array]) -> list[Array]:
        """The regions of some queries' results; what is no map, or changes everywhere, stays whole."""
        made = []
        for out, place, result in zip(self.maps, self.places, results, strict=True):
            made.append(result if out is None or place is None else _region(out, place, rows, result))
        return made

    def wrap(self, results: Sequence[Array]) -> list[Array | ArrayRegion]:
        """The cut results of all queries with their origins."""
        made: list[Array | ArrayRegion] = []
        for out, place, result in zip(self.maps, self.places, results, strict=True):
            whole = out is None or place is None
            made.append(result if whole else ArrayRegion(result, place.origins, out.axes))  # type: ignore[union-attr]
        return made


def _region(out: OutputMap, place: Boxes, rows: IntArray, result: Array) -> Array:
    sizes = dict(zip(out.axes, place.extent, strict=True))
    shape = [len(rows), *(sizes.get(dim, size) for dim, size in enumerate(result.shape[1:], start=1))]
    made = np.empty(shape, dtype=result.dtype)
    for number, row in enumerate(rows):
        made[number] = result[number][_cut(result.ndim, out.axes, place.origins[row], made.shape)]
    return made


def _cut(rank: int, axes: Sequence[int], origin: IntArray, shape: Sequence[int]) -> tuple[slice, ...]:
    """Where a region lies in one query's output."""
    cut = [slice(None)] * (rank - 1)
    for dim, low in zip(axes, origin.tolist(), strict=True):
        cut[dim - 1] = slice(low, low + shape[dim])
    return tuple(cut)
