"""Needs of queries: what front, tail and full inference take at the largest boxes that patches of a size can have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from kcompile.core.interval import Interval
from kcompile.core.plan import Plan
from kcompile.core.region import Region, evaluate
from kcompile.runtime.base_store import BaseStore, stored_shape
from kcompile.runtime.budget import Kinds, Needs
from kcompile.runtime.full import Deferred
from kcompile.runtime.metering import Footprint, Meter, empty_rows, footprint
from kcompile.runtime.scheduler import patch_regions

if TYPE_CHECKING:
    from kcompile.runtime.executor import Executor


def query_needs(executor: Executor, kinds: Kinds, sizes: Sequence[int]) -> Needs:
    """What queries with patches of up to ``sizes`` pixels take."""
    boxes = largest_boxes(executor.plan, sizes)

    def make(rows: int) -> list[Any]:
        return _arguments(executor, kinds, sizes, boxes, rows)

    def front(given: list[Any], meter: Meter) -> Any:
        meter.add(given[0])
        meter.note(3 * _nbytes(given[0]))  # masks, and what lies beneath
        return executor.front(*given[1:])

    made = footprint(make, front)
    tail = footprint(lambda rows: list(executor.front(*make(rows)[1:])), lambda given, _: executor.tail(*given))
    return Needs(made, tail, _full(executor, kinds, sizes), made.outputs)


def largest_boxes(plan: Plan, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Per region of a plan the largest extent that patches of a size can have, wherever they are."""
    last = [image - size for image, size in zip(plan.input_shape[1:], sizes, strict=True)]
    steps = np.arange(max(last) + 1)
    diagonal = np.stack([np.minimum(steps, most) for most in last], axis=1)  # the axes are independent
    regions = evaluate(plan.regions, patch_regions(diagonal, sizes))
    return [tuple(int(axis.size.max()) for axis in region.axes) for region in regions]


def _arguments(
    executor: Executor, kinds: Kinds, sizes: Sequence[int], boxes: list[tuple[int, ...]], rows: int
) -> list[Any]:
    """Patches, and all arguments of the front."""
    plan, like = executor.plan, kinds.rows[0]
    zeros = np.zeros(rows, dtype=np.int64)
    regions = [Region.of(*(Interval.of(zeros, zeros + size) for size in box)) for box in boxes]
    dtypes = kinds.dtypes
    tensors = {base.name: like.new_empty(stored_shape(base, 1), dtype=dtypes[base.name]) for base in plan.bases}
    patches = like.new_empty((rows, plan.input_shape[0], *sizes))
    positions = np.zeros((rows, len(sizes)), dtype=np.int64)
    return [patches, *executor.arguments(BaseStore(tensors, like), patches, positions, zeros, regions)]


def _full(executor: Executor, kinds: Kinds, sizes: Sequence[int]) -> Footprint | None:
    full, channels = executor.full, executor.plan.input_shape[0]
    if full is None:
        return None
    if isinstance(full, Deferred):
        full.ready()  # weights can't be packed without data

    def make(rows: int) -> list[Any]:
        return empty_rows(kinds.rows, rows)

    def run(given: list[Any], meter: Meter) -> Any:
        meter.add(*given)
        patches = len(given[0]) * channels * int(np.prod(sizes)) * given[0].element_size()
        meter.note(_nbytes(given[0]) + 3 * patches)  # the images before the patches are laid over them
        return full(*given)

    return footprint(make, run)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
