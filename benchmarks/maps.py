"""What the benchmarks share: the positions of a map, its arithmetic, patched images, and samples of a map.

Imports only what runs a compiled module, so that it works where the explainers' packages are absent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kcompile.core.region import evaluate
from kcompile.runtime import executor as executor_module
from kcompile.runtime.module import IncrementalModule
from kcompile.runtime.scheduler import patch_regions, schedule

IntArray = npt.NDArray[np.int64]


def positions_of(size: int, patch: int, stride: int) -> IntArray:
    """All positions [N, 2] of a square map, row by row."""
    steps = np.arange(0, size - patch + 1, stride)
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int64)


def occluded(
    image: Tensor,
    positions: IntArray,
    patch: int,
    value: float = 0.0,
    layout: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Copies [N, C, H, W] of an image [C, H, W] with a square of one value each; one pass on its device.

    Squares that stick out are cropped.
    """
    inside = []
    for axis, first in enumerate(torch.from_numpy(positions).to(image.device).unbind(1)):
        steps = torch.arange(image.shape[axis + 1], device=image.device) - first[:, None]
        inside.append((steps >= 0) & (steps < patch))
    mask = (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1)
    return image.unsqueeze(0).contiguous(memory_format=layout).masked_fill(mask, value).contiguous(memory_format=layout)


def own_box_bound(inc: IncrementalModule, positions: IntArray) -> float:
    """Multiply-adds of full inference over those of each position's own boxes (Krypton eq. 14, per position)."""
    return inc.plan.full_macs() / float(np.mean(own_box_macs(inc, positions)))


def own_box_macs(inc: IncrementalModule, positions: IntArray) -> npt.NDArray[np.float64]:
    """Multiply-adds [N] that each position's own boxes and the dense layers take."""
    plan = inc.plan
    regions = evaluate(plan.regions, patch_regions(positions, plan.patch_shape))
    macs = np.full(len(positions), float(plan.dense_macs()))
    for weight, region in zip(plan.cell_macs(), regions, strict=True):
        macs += weight * region.cells
    return macs


@dataclass
class Sample:
    """Some whole batches of a map's own schedule, to be run as they would be in the whole map.

    Scheduled anew, a few positions would be put into other batches (fewer of each extent, so more are merged); so the
    whole map is scheduled each time and the chosen batches alone are run.

    Attributes:
        everything: Positions [total, 2] of the whole map.
        rows: Indices of the chosen positions in the map, batch by batch.
        batches: The chosen batches, as indices into ``rows``.
        scheduling: Seconds that scheduling the whole map took at the last run.
    """

    everything: IntArray
    rows: IntArray
    batches: list[IntArray]
    scheduling: float = 0.0

    @property
    def positions(self) -> IntArray:
        """The chosen positions [n, 2]."""
        return self.everything[self.rows]

    @property
    def scale(self) -> float:
        """Positions of the map per chosen position."""
        return len(self.everything) / len(self.rows)

    @contextmanager
    def scheduled(self) -> Iterator[None]:
        """Inside, `forward_patches` of `positions` runs the chosen batches."""

        def chosen(plan: Any, positions: IntArray, *rest: Any) -> list[IntArray]:
            start = time.perf_counter()
            schedule(plan, self.everything, *rest[:3])  # its regions are evaluated here, for the whole map
            self.scheduling = time.perf_counter() - start
            return self.batches

        with mock.patch.object(executor_module, "schedule", chosen):
            yield


def sample_of(inc: IncrementalModule, positions: IntArray, count: int) -> Sample:
    """A representative sample of about ``count`` positions of a map (0 or more than there are: all of it).

    The map's batches are ordered by arithmetic per position and taken at even distances, counted in positions: each
    kind of batch comes in the share that it has in the map.
    """
    batches = _batches(inc, positions)
    if 0 < count < len(positions):
        macs = own_box_macs(inc, positions)
        batches.sort(key=lambda rows: float(macs[rows].mean()))
        batches = [batches[i] for i in _evenly([len(rows) for rows in batches], count)]
    ends = np.cumsum([len(rows) for rows in batches])
    return Sample(positions, np.concatenate(batches), np.split(np.arange(ends[-1]), ends[:-1]))


def _batches(inc: IncrementalModule, positions: IntArray) -> list[IntArray]:
    runner = inc.executor()
    return list(schedule(inc.plan, positions, inc.plan.patch_shape, runner.batch, runner.choice.overhead))


def _evenly(sizes: Sequence[int], count: int) -> list[int]:
    """Indices of the batches that hold every so-maniest position, so that about ``count`` positions are taken."""
    ends = np.cumsum(sizes)
    points = max(round(count * len(sizes) / ends[-1]), 1)
    at = (np.arange(points) + 0.5) / points * ends[-1]
    return sorted(set(np.searchsorted(ends, at, side="right").tolist()))
