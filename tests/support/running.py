"""Compile a small network with everything incremental that can be, and run its graphs by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from kcompile.core.interval import IntArray
from kcompile.core.plan import Layer, Placement
from kcompile.core.region import Region, evaluate
from kcompile.passes import place
from kcompile.passes.pipeline import Compiled, compile_model
from kcompile.runtime.base_store import BaseStore
from kcompile.runtime.executor import Executor
from kcompile.runtime.scheduler import patch_regions


@contextmanager
def incremental_wherever_possible() -> Iterator[None]:
    """Switch off the cost model's cut: copying costs nothing, so that only a refusal makes a node dense."""
    with mock.patch.object(place, "MACS_PER_VALUE", 0.0):
        yield


def compile_incremental(model: nn.Module, shape: Sequence[int], patch: Sequence[int]) -> Compiled:
    """Compile for images of ``shape`` (C, *S), without the cut of the cost model."""
    dtype = next((p.dtype for p in model.parameters()), torch.float64)
    with incremental_wherever_possible():
        return compile_model(model, torch.rand(2, *shape, dtype=dtype), tuple(patch))


@dataclass
class Runner:
    """The graphs of a compiled model, run on one batch of queries as it comes: no scheduler, no grouping."""

    compiled: Compiled
    store: BaseStore
    base_outputs: list[Tensor]

    @classmethod
    def of(cls, compiled: Compiled, images: Tensor) -> Runner:
        """Materialise the images [B, C, *S]."""
        with torch.no_grad():
            outputs, sources = compiled.materialize(images)
        return cls(compiled, BaseStore.fill(compiled.plan, sources, images), list(outputs))

    def __call__(self, patches: Tensor, positions: IntArray, base_index: IntArray | None = None) -> list[Tensor]:
        """Outputs of the tail for patches [N, C, *S] at positions [N, axes], all in one batch."""
        plan, front, tail = self.compiled.plan, self.compiled.front, self.compiled.tail
        index = np.zeros(len(positions), dtype=np.int64) if base_index is None else base_index
        arguments = Executor(plan, front, tail).arguments(self.store, patches, positions, index)
        with torch.no_grad():
            return list(tail(*front(*arguments)))


def positions_inside(sizes: Sequence[int], patch: Sequence[int]) -> IntArray:
    """Every position at which the patch lies in the image."""
    return _grid([range(size - p + 1) for size, p in zip(sizes, patch, strict=True)])


def positions_touching(sizes: Sequence[int], patch: Sequence[int]) -> IntArray:
    """Every position at which at least one pixel of the patch lies in the image."""
    return _grid([range(1 - p, size) for size, p in zip(sizes, patch, strict=True)])


def _grid(axes: list[range]) -> IntArray:
    return np.array(list(product(*axes)), dtype=np.int64)


def paste(images: Tensor, patches: Tensor, positions: IntArray) -> Tensor:
    """Patched copies of images [N, C, *S]; what sticks out is cropped."""
    result = images.clone()
    for row, (patch, position) in enumerate(zip(patches, positions.tolist(), strict=True)):
        into, part = result[row], patch
        for axis, begin in enumerate(position):
            low, high = max(begin, 0), min(begin + patch.shape[axis + 1], images.shape[axis + 2])
            into = into.narrow(axis + 1, low, high - low)
            part = part.narrow(axis + 1, low - begin, high - low)
        into.copy_(part)
    return result


def regions_at(compiled: Compiled, positions: IntArray, patch: Sequence[int]) -> list[Region]:
    """All regions of the plan for patches of one size."""
    return evaluate(compiled.plan.regions, patch_regions(positions, patch))


def last_incremental(compiled: Compiled) -> Layer:
    """The last layer that runs on regions."""
    return [layer for layer in compiled.plan.layers if layer.placement is Placement.INCREMENTAL][-1]


def cells_of(region: Region, sizes: Sequence[int]) -> Tensor:
    """A mask [N, *sizes], true inside each box (cells outside of the tensor are left out)."""
    count = len(np.atleast_1d(region.axes[0].lo))
    mask = torch.ones((count, *sizes), dtype=torch.bool)
    for axis, (interval, size) in enumerate(zip(region.axes, sizes, strict=True)):
        cells = np.arange(size)
        inside = (interval.lo[:, None] <= cells) & (cells < interval.hi[:, None])
        shape = [count] + [size if other == axis else 1 for other in range(len(sizes))]
        mask &= torch.from_numpy(inside).reshape(shape)
    return mask


def hull_of(mask: Tensor) -> Tensor:
    """The smallest box around the true cells of each row of a mask [N, *sizes], as a mask."""
    result = torch.ones_like(mask)
    for axis in range(1, mask.dim()):
        others = [other for other in range(1, mask.dim()) if other != axis]
        line = mask.amax(others, keepdim=True) if others else mask
        result &= (line.cumsum(axis) > 0) & (line.flip(axis).cumsum(axis).flip(axis) > 0)
    return result
